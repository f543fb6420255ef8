"""Text files with quoted fields of several lines: read record by record, and what is wanted put by in Parquet.

Whether a line break is inside quotes depends on all that comes before it, so that such a file is read from its
beginning to its end by Python's own reader, once, in batches. A quote that is never closed, or closed where another
was to open, would swallow the rows between them; such places are errors.
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
# Python's reader refuses a carriage return inside a field without quotes, which for other programs is a sign like any.
_LONE_RETURN, _RETURN = re.compile(r"\r(?!\n)"), "\uf8fe"


def scan_records(pl: Any, file: TextFile, folder: Path) -> Any:
    """As scan_text, of temporary files that are written to ``folder``.

    Raises:
        ValueError: quotes that cannot be meant; the file is compressed in a way that Python cannot read.
    """
    schema = {LINE: pl.UInt32, COUNT: pl.UInt32, **dict.fromkeys(file.places, pl.String)}
    records = _records(file)
    parts = []
    while rows := list(islice(records, BATCH)):
        parts.append(folder / f"{len(list(folder.iterdir())):08}.parquet")
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(parts[-1])
    return pl.scan_parquet(parts) if parts else pl.LazyFrame(schema=schema)


def _records(file: TextFile) -> Iterator[tuple[Any, ...]]:
    """(line, fields, wanted values) of each record."""
    layout, places = file.layout, list(file.places.values())
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
            values = (fields[place].replace(_RETURN, "\r") if place < len(fields) else None for place in places)
            yield first, len(fields), *values
    except csv.Error:
        raise ValueError(
            f"{file.path}: line {line:,}: a quoted field that begins in this row is not closed before a separator or "
            f"the end of a line: {QUOTES}"
        ) from None


class _Lines:
    """A file's lines, of which those since the last record are remembered."""

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
        """The lines of the record that was read last."""
        read, self.read = self.read, []
        return read


def _check_swallowed(file: TextFile, line: int, read: list[str], fields: list[str]) -> None:
    """ValueError if each line of a record looks like a row of the file: then a quote is out of place.

    Text of several lines seldom has just as many separators in each line. In the last column it may, since there the
    record's first line is whole; then the ids must look alike, too.
    """
    own = [fields[place] for place in file.places.values()]
    if any("\n" in field for field in own):  # an id was quoted for its line breaks
        return
    rows = [_row(file, text) for text in read]
    if any(len(row) != file.width for row in rows):
        return
    inner = [[row[place] for place in file.places.values()] for row in rows[1:]]
    last = "\n" in fields[-1]
    if last and not all(_alike(text, other) for row in inner for text, other in zip(row, own)):
        return
    raise ValueError(
        f"{file.path}: line {line:,}: a quoted field goes on to line {line + len(inner):,} and holds what looks like "
        f"{len(inner):,} further rows: {QUOTES}"
    )


def _row(file: TextFile, text: str) -> list[str]:
    """The fields of a line, its quotes being text; or by its quotes, if that makes a whole row."""
    row = text.rstrip("\r\n").split(file.layout.separator)
    return row if len(row) == file.width else split_line(text, file.layout)


def _alike(text: str, other: str) -> bool:
    """Whether a text may be an id like another: a number if that is one, and no words if that is one word."""
    if looks_like_data(other):
        return looks_like_data(text)
    return len(text.split()) <= max(1, len(other.split()))
