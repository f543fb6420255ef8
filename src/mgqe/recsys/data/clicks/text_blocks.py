"""Reads text files, plain or gzip, in blocks of whole lines, each of which must have a given number of fields."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO

import numpy as np

from mgqe.ids.logs.text import excerpt, open_decompressed

BLOCK = 32 * 2**20  # bytes of text
NEWLINE = ord("\n")


@dataclass(frozen=True)
class TextBlock:
    """Whole lines of a file; first_line: the number of the first of them in the file, from 1."""

    path: str
    first_line: int
    content: bytes

    @cached_property
    def ends(self) -> np.ndarray:
        """The position of each line's end, int64."""
        return np.flatnonzero(np.frombuffer(self.content, np.uint8) == NEWLINE)

    def __len__(self) -> int:
        return len(self.ends)

    def line(self, at: int) -> str:
        """The text of a line, `at` counted from 0 in this block."""
        start = self.ends[at - 1] + 1 if at else 0
        return self.content[start : self.ends[at]].decode("utf-8", "replace")

    def where(self, at: int) -> str:
        """The file and the line, for errors."""
        return f"{self.path}, line {self.first_line + at:,}"


def text_blocks(
    path: str, separator: str, columns: tuple[str, ...], header: bool, nbytes: int = BLOCK
) -> Iterator[TextBlock]:
    """The lines of a file, about `nbytes` at a time; a last line without an end is a line.

    header: whether the first line names the columns, which then must be `columns`; it is left out.

    ValueError names the line that has another number of fields, or says that the file is damaged or empty.
    """
    line, rest = 1, b""
    with open_decompressed(path) as file:
        if header:
            _check_header(path, _read_header(file, path), separator, columns)
            line = 2
        while chunk := _read(file, nbytes, path, line):
            whole, end, rest = (rest + chunk).rpartition(b"\n")
            if end:
                block = TextBlock(path, line, whole + end)
                yield _checked(block, separator, len(columns))
                line += len(block)
    if rest:
        yield _checked(TextBlock(path, line, rest + b"\n"), separator, len(columns))
    elif line == 1 + header:
        raise ValueError(f"{path}: holds no rows: expected one per line, {len(columns)} fields each")


def _read(file: IO[bytes], nbytes: int, path: str, line: int) -> bytes:
    try:
        return file.read(nbytes)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path}: cannot be read beyond line {line:,}: the gzip file is damaged or cut short ({error}): download "
            "it again"
        ) from None


def _read_header(file: IO[bytes], path: str) -> str:
    try:
        return file.readline().decode("utf-8", "replace").rstrip("\r\n")
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: the gzip file is damaged or cut short ({error}): download it again") from None


def _check_header(path: str, header: str, separator: str, columns: tuple[str, ...]) -> None:
    if header != separator.join(columns):
        raise ValueError(
            f"{path}, line 1: expected the header {excerpt(separator.join(columns))}, got {excerpt(header)}: use the "
            "file as it was published"
        )


def _checked(block: TextBlock, separator: str, width: int) -> TextBlock:
    separators = np.flatnonzero(np.frombuffer(block.content, np.uint8) == ord(separator))
    fields = np.diff(np.searchsorted(separators, block.ends), prepend=0) + 1
    wrong = np.flatnonzero(fields != width)
    if wrong.size:
        at = int(wrong[0])
        raise ValueError(
            f"{block.where(at)}: expected {width} fields, got {fields[at]}: {excerpt(block.line(at))}: correct or drop "
            "that line"
        )
    return block
