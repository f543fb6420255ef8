"""A table of text, shown in the terminal or written as Markdown between marks in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from mgqe.files.atomic import write_text


@dataclass(frozen=True)
class TextTable:
    """Rows of cells under a header; all columns but the first `left` are aligned to the right."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    left: int = 1

    def terminal(self) -> Table:
        """For a rich console."""
        table = Table(title=self.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for at, name in enumerate(self.header):
            widest = max(len(cell.replace("`", "")) for cell in (name, *(row[at] for row in self.rows)))
            # Long texts are folded where a terminal is narrow. Numbers are shorter than this, and stay on one line.
            width = min(widest, 16)
            table.add_column(name, justify="left" if at < self.left else "right", overflow="fold", min_width=width)
        for row in self.rows:
            table.add_row(*(cell.replace("`", "") for cell in row))
        return table

    def markdown(self) -> str:
        """With the title, if there is one, in bold above it."""
        line = ["---" if at < self.left else "---:" for at in range(len(self.header))]
        lines = ["| " + " | ".join(row) + " |" for row in (self.header, line, *self.rows)]
        return (f"**{self.title}**\n\n" if self.title else "") + "\n".join(lines)


def fill(path: Path, blocks: Mapping[str, str]) -> list[str]:
    """Put each block between `<!-- NAME -->` and `<!-- /NAME -->` of a text file; returns names that the file lacks.

    ValueError when a mark is not closed; the file is then left as it is.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    missing = []
    for name, block in blocks.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if start not in text:
            missing.append(name)
            continue
        if text.find(end) < text.find(start):
            raise ValueError(f"{path}: {start} has no {end} after it")
        inside = f"{start}\n\n{block.strip()}\n\n{end}" if block.strip() else f"{start}\n\n{end}"
        text = re.sub(re.escape(start) + r".*?" + re.escape(end), lambda _: inside, text, count=1, flags=re.DOTALL)  # noqa: B023
    write_text(path, text)
    return missing
