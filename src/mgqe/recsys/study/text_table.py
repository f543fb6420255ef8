"""A table of text, shown in the terminal or written as Markdown between marks in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.table import Table

from mgqe.files.atomic import write_text

GAP = 2  # spaces between columns


@dataclass(frozen=True)
class TextTable:
    """Rows of cells under a header; all columns but the first `left` are aligned to the right.

    keys: the first columns, which say what a row is of, and stand in every part of a table that is shown in parts.
    """

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    left: int = 1
    keys: int = 1

    def terminal(self, width: int) -> Table:
        """For a rich console of `width` characters."""
        table = Table(title=self.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for at, (name, wide) in enumerate(zip(self.header, self._widths(width), strict=True)):
            table.add_column(name, justify="left" if at < self.left else "right", overflow="fold", width=wide)
        for row in self.rows:
            table.add_row(*map(_shown, row))
        return table

    def parts(self, width: int) -> list[TextTable]:
        """The columns in as few tables as fit in `width` characters, in order, each after the keys.

        Rows that have nothing in a part's columns but the keys are left out of it. A column that is too wide for any
        part is a part of its own. Only the first part has the title.
        """
        least, keys = [self._least_width(at) for at in range(len(self.header))], range(self.keys)
        of_parts = [list(keys)]
        for at in range(self.keys, len(self.header)):
            if len(of_parts[-1]) > len(keys) and sum(least[each] + GAP for each in (*of_parts[-1], at)) > width + GAP:
                of_parts.append(list(keys))
            of_parts[-1].append(at)
        return [self._part(columns, "" if number else self.title) for number, columns in enumerate(of_parts)]

    def _part(self, columns: list[int], title: str) -> TextTable:
        rows = [[row[at] for at in columns] for row in self.rows if any(row[at] for at in columns[self.keys :])]
        left = sum(at < self.left for at in columns)
        return replace(self, title=title, header=[self.header[at] for at in columns], rows=rows, left=left)

    def _widths(self, width: int) -> list[int]:
        """Of all columns: what is folded most is widened first; where numbers have no room, the widest are folded."""
        widths = [self._least_width(at) for at in range(len(self.header))]
        lacking = [max(map(len, self._texts(at))) - least for at, least in enumerate(widths)]
        room = width - sum(widths) - GAP * (len(widths) - 1)
        for _ in range(min(room, sum(lacking))):
            at = lacking.index(max(lacking))
            widths[at], lacking[at] = widths[at] + 1, lacking[at] - 1
        for _ in range(-room):
            at = widths.index(max(widths))
            widths[at] = max(1, widths[at] - 1)
        return widths

    def _least_width(self, at: int) -> int:
        """How narrow a column may become.

        Headers and long texts are folded between words. Numbers are shorter than 16, and stay on one line.
        """
        header, *cells = self._texts(at)
        words = [word for cell in cells for word in cell.split()] if at < self.left else []
        folded = min(max(map(len, cells), default=0), 12 if at < self.left else 16)
        return max(folded, min(max(map(len, words), default=0), 18), *map(len, header.split() or [""]))

    def _texts(self, at: int) -> list[str]:
        """What a terminal shows of a column, its header first."""
        return [_shown(row[at]) for row in (self.header, *self.rows)]

    def markdown(self) -> str:
        """With the title, if there is one, in bold above it."""
        line = ["---" if at < self.left else "---:" for at in range(len(self.header))]
        lines = ["| " + " | ".join(row) + " |" for row in (self.header, line, *self.rows)]
        return (f"**{self.title}**\n\n" if self.title else "") + "\n".join(lines)


def _shown(cell: str) -> str:
    """A cell on a terminal: without the marks of code in Markdown."""
    return cell.replace("`", "")


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
