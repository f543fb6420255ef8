"""Text files with quoted fields of several lines: read record by record, and copied to temporary Parquet files.

Whether a line break is inside quotes depends on everything before it. Such a file is therefore read once from its
beginning to its end, in batches, by Python's own reader. A quote that is never closed, or that another quote closes by
mistake, would swallow the rows in between; this is an error.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mgqe.ids.logs.text import COUNT, LINE, QUOTES, TextFile, looks_like_data, open_decompressed, split_line

BATCH = 100_000  # records
# Python's reader refuses a carriage return inside an unquoted field; other programs treat it as any other character.
_LONE_RETURN, _RETURN = re.compile(r"\r(?!\n)"), "\uf8fe"


def scan_records(pl: Any, file: TextFile, folder: Path) -> Any:
    """Lazy frame like that of scan_text with LINE, of temporary files that are written to ``folder``.

    Raises:
        ValueError: misplaced quotes, or a compression that Python cannot read.
    """
    schema = {LINE: pl.UInt32, COUNT: pl.UInt32, **dict.fromkeys(file.positions, pl.String)}
    records = _records(file)
    paths = []
    while rows := list(islice(records, BATCH)):
        paths.append(folder / f"{len(list(folder.iterdir())):08}.parquet")
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(paths[-1])
    return pl.scan_parquet(paths) if paths else pl.LazyFrame(schema=schema)


def _records(file: TextFile) -> Iterator[tuple[Any, ...]]:
    """(line, number of fields, values of the columns to read) of each record."""
    layout, positions = file.layout, list(file.positions.values())
    lines = _Lines(file.path)
    reader = csv.reader(iter(lines), delimiter=layout.separator, quotechar=layout.quote, strict=True)
    line = 1
    try:
        for fields in reader:
            first, line, read = line, reader.line_num + 1, lines.take()
            header = first == 1 and file.header
            if header or (file.width > 1 and not any(field.strip() for field in fields)):
                continue
            if len(read) > 1 and len(fields) == file.width:
                _check_swallowed(file, first, read, fields)
            values = (
                fields[position].replace(_RETURN, "\r") if position < len(fields) else None for position in positions
            )
            yield first, len(fields), *values
    except csv.Error:
        raise ValueError(
            f"{file.path}: line {line:,}: a quoted field that begins in this row is not closed before a separator or "
            f"the end of a line: {QUOTES}"
        ) from None


class _Lines:
    """A file's lines; keeps those that have been read since the last record."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.read: list[str] = []

    def __iter__(self) -> Iterator[str]:
        with io.TextIOWrapper(
            open_decompressed(self.path), encoding="utf-8-sig", errors="replace", newline="\n"
        ) as file:
            for line in file:
                self.read.append(line)
                yield _LONE_RETURN.sub(_RETURN, line)

    def take(self) -> list[str]:
        """The lines of the last record, which are then forgotten."""
        read, self.read = self.read, []
        return read


def _check_swallowed(file: TextFile, line: int, read: list[str], fields: list[str]) -> None:
    """ValueError if each line of a record looks like a row of the file, because of a misplaced quote.

    Text of several lines seldom has that many separators in each line, except in the last column, where the record's
    first line is complete. There the ids have to look alike as well.
    """
    ids = [fields[position] for position in file.positions.values()]
    if any("\n" in field for field in ids):  # an id was quoted for its line breaks
        return
    rows = [_row(file, text) for text in read]
    if any(len(row) != file.width for row in rows):
        return
    inner = [[row[position] for position in file.positions.values()] for row in rows[1:]]
    last = "\n" in fields[-1]
    if last and not all(_alike(text, other) for row in inner for text, other in zip(row, ids)):
        return
    raise ValueError(
        f"{file.path}: line {line:,}: a quoted field goes on to line {line + len(inner):,} and holds what looks like "
        f"{len(inner):,} further rows: {QUOTES}"
    )


def _row(file: TextFile, text: str) -> list[str]:
    """The fields of a line: split at every separator if that gives a whole row, otherwise split by its quotes."""
    row = text.rstrip("\r\n").split(file.layout.separator)
    return row if len(row) == file.width else split_line(text, file.layout)


def _alike(text: str, other: str) -> bool:
    """Whether a text may be an id like ``other``: a number if that is one, and else of no more words."""
    if looks_like_data(other):
        return looks_like_data(text)
    return len(text.split()) <= max(1, len(other.split()))
