"""Text files of a log: their lines, their header, and the positions of the columns to read."""

from __future__ import annotations

import codecs
import csv
import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mgqe.ids.logs.paths import GZIP, ZSTD
from mgqe.ids.logs.text_layout import NO_HEADER, NO_QUOTE, TextLayout

# Columns that are added to those of a file; the zero byte keeps the names apart from any in a file.
LINE, COUNT, TEXT = "\0line", "\0count", "\0text"
SAMPLE = 1000  # lines by which a header is recognised
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_TYPED = re.compile(r"[^:]+:(token|float)(_seq)?")


@dataclass(frozen=True)
class TextFile:
    """One text file and its columns.

    names: of all columns: those of the header, or numbers from 1 without a header.
    positions: name -> position, from 0, of the columns to read.
    header: 1 if the first line is a header, else 0.
    empty: whether no line follows the header.
    """

    path: str
    layout: TextLayout
    names: list[str]
    positions: dict[str, int]
    header: int
    empty: bool = False

    @property
    def width(self) -> int:
        """The number of fields of every line."""
        return len(self.names)


def scan_lines(pl: Any, path: str, skip: int = 0, numbered: bool = False) -> Any:
    """Lazy frame of the column TEXT, null for an empty line; bytes that are no UTF-8 become U+FFFD.

    skip: the number of lines to leave out at the beginning. numbered: adds the column LINE, from 1, which takes memory
    for each line.
    """
    index = {"row_index_name": LINE, "row_index_offset": 1 + skip} if numbered else {}
    frame = pl.scan_csv(
        path, has_header=False, separator="\0", quote_char=None, schema={TEXT: pl.String}, encoding="utf8-lossy",
        skip_rows=skip, glob=False, **index,
    )  # fmt: skip
    return frame.with_columns(pl.col(TEXT).str.strip_suffix("\r"))


def first_lines(pl: Any, path: str, lines: int = SAMPLE) -> list[str]:
    """The first lines, without a byte order mark. ValueError: the file cannot be read, or is empty."""
    try:
        head = [line or "" for line in scan_lines(pl, path).head(lines).collect()[TEXT].to_list()]
    except pl.exceptions.NoDataError:
        head = []
    except (pl.exceptions.PolarsError, OSError):
        raise unreadable_error(path) from None
    if head:
        head[0] = head[0].removeprefix("\ufeff")
    if not any(line.strip() for line in head):
        raise ValueError(f"{path}: cannot be read: it is empty")
    if len(head) == 1 and "\r" in head[0]:
        raise ValueError(f"{path}: cannot be read as text: its lines end in carriage returns alone: write line feeds")
    return head


def unreadable_error(path: str) -> ValueError:
    """The error for a text file whose lines cannot be read."""
    with open(path, "rb") as file:
        head = file.read(4)
    why = "it holds NUL bytes, which text does not"
    if head.startswith((GZIP, ZSTD)):
        why = "it is compressed, and damaged, cut short or packed in an unusual way: decompress it first"
    return ValueError(f"{path}: cannot be read as text: {why}")


def split_line(line: str, layout: TextLayout) -> list[str]:
    """The fields of one line without a quoted line break."""
    if layout.quote and layout.quote in line:
        try:
            return next(csv.reader([line], delimiter=layout.separator, quotechar=layout.quote), [""])
        except csv.Error:  # a carriage return in it, or a field of more than 131,072 characters
            pass
    return line.split(layout.separator)


def is_recbole(path: str, first: str) -> bool:
    """Whether a file is in RecBole's format, by its extension or by the types of all names in its header."""
    return Path(path).suffix.lower() == ".inter" or all(map(_TYPED.fullmatch, first.split("\t")))


def parse_text_file(pl: Any, path: str, names: Sequence[str], layout: TextLayout) -> TextFile:
    """Find the columns ``names`` in the header, or by their numbers.

    Raises:
        KeyError: no such column. ValueError: the file cannot be read, a header looks like data, or data like a header.
    """
    head = first_lines(pl, path)
    file = parse_header(path, head, layout)
    positions = {name: _position(file, name) for name in names}
    _check_header(file, positions, head)
    return TextFile(path, file.layout, file.names, positions, file.header, len(head) == file.header)


def parse_header(path: str, head: list[str], layout: TextLayout) -> TextFile:
    """The names of all columns, from a file's first lines. ValueError: the first line is empty."""
    if is_recbole(path, head[0]):  # tab-separated, never quoted; a type after each name
        layout = TextLayout("\t", "", layout.header)
    if not head[0].strip():
        raise ValueError(f"{path}, line 1: expected a header line with the columns' names, got an empty line")
    first = split_line(head[0], layout)
    if layout.header is False:
        return TextFile(path, layout, [str(number + 1) for number in range(len(first))], {}, 0)
    names = [name.split(":")[0].strip() if _TYPED.fullmatch(name) else name.strip() for name in first]
    return TextFile(path, layout, names, {}, 1)


def _position(file: TextFile, name: str) -> int:
    names = file.names
    if name not in names and _TYPED.fullmatch(name):
        name = name.split(":")[0]
    if name not in names:
        if not file.header:
            raise KeyError(
                f"no column {name!r}: without a header, columns are numbers from 1 to {len(names)} ({file.path})"
                f"{_hint(file)}"
            )
        raise KeyError(f"no column {name!r}: the file has {', '.join(names)} ({file.path}){_hint(file)}")
    if names.count(name) > 1:
        raise ValueError(
            f"{file.path}, line 1: expected distinct column names, got {', '.join(names)}: {name!r} is ambiguous; "
            "give each column a name of its own"
        )
    return names.index(name)


def _hint(file: TextFile) -> str:
    if len(file.names) == 1:
        return ": say what separates the fields with separator= (--separator)"
    if file.header and any(map(looks_like_data, file.names)):
        return f": if its first line is data, {NO_HEADER}"
    return ""


def looks_like_data(name: str) -> bool:
    """Whether a column's name is a number, as in data and seldom in a header."""
    return _NUMBER.fullmatch(name) is not None


def _check_header(file: TextFile, positions: dict[str, int], head: list[str]) -> None:
    """ValueError if data would be read as a header, or a header as data."""
    rows = [fields for fields in (split_line(line, file.layout) for line in head[1:]) if len(fields) == file.width]
    if file.header and file.layout.header is None:
        for name, position in positions.items():
            if looks_like_data(name) or (name and any(row[position] == name for row in rows)):
                raise ValueError(
                    f"{file.path}: expected a header, but line 1 looks like data: {excerpt(head[0])}: if the file has "
                    f"no header, {NO_HEADER}; if it has, say header=True (--header)"
                )
    other = next((text for text in ("\t", "::") if all(text in line for line in head)), None)
    if file.width == 1 and other and len(head) > 1:
        raise ValueError(
            f"{file.path}: has one column, but {other!r} in every line: say what separates the fields with separator= "
            "(--separator)"
        )
    if not file.header and len(rows) > 1:
        first = split_line(head[0], file.layout)
        for position in positions.values():
            if not looks_like_data(first[position]) and all(looks_like_data(row[position]) for row in rows):
                raise ValueError(
                    f"{file.path}: expected no header, but line 1 looks like one: {excerpt(head[0])}: leave out "
                    "header=False (--no-header)"
                )


def open_decompressed(path: str) -> IO[bytes]:
    """The bytes of a file, decompressed; ValueError for a compression that Python cannot read."""
    with open(path, "rb") as file:
        head = file.read(4)
    if head.startswith(ZSTD):
        raise ValueError(f"{path}: cannot be read as text: it is compressed: decompress it first")
    return gzip.open(path, "rb") if head.startswith(GZIP) else open(path, "rb")  # type: ignore[return-value]


def is_utf8(path: str) -> bool:
    """Whether all of a file is UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open_decompressed(path) as file:
            while chunk := file.read(1 << 20):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except ValueError:
        return False
    return True


def excerpt(text: str, longest: int = 60) -> str:
    """A text as an error shows it: quoted, and cut after ``longest`` characters."""
    return repr(text if len(text) <= longest else text[:longest] + "...")


QUOTES = f"correct it, or {NO_QUOTE}"
