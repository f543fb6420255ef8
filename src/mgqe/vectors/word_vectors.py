"""Word vectors: the text and binary files of word2vec, fastText and GloVe."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mgqe.vectors.vectors import Vectors

LINES = 20_000  # read at a time
MOST_DIMENSIONS = 1 << 16
HEADER_BYTES = 64  # in which the first line of a binary file ends


def read_word_text(path: Path) -> Vectors:
    """A line per word: the word and its numbers. A first line of two numbers, "N d", may come before.

    Raises ValueError that names the line whose vector is of another length or holds no numbers.
    """
    words: list[str] = []
    blocks: list[np.ndarray] = []
    width: int | None = None
    with path.open("rb") as file:
        first = file.readline()
        header = _header(first)
        if header is None:
            file.seek(0)
        number = 1 if header is None else 2  # of the next line
        while lines := list(islice(file, LINES)):
            width = width or len(lines[0].split()) - 1
            blocks.append(_parsed(lines, width, number, words))
            number += len(lines)
    if not words or not width:
        raise ValueError("it holds no word vectors: a line has a word and its numbers")
    if header is not None and header != (len(words), width):
        raise ValueError(
            f"its first line says {header[0]:,} vectors of {header[1]} numbers, and it has {len(words):,} of {width}: "
            "the file is cut short, or damaged"
        )
    return Vectors(np.concatenate(blocks), words)


def _parsed(lines: list[bytes], width: int, first: int, words: list[str]) -> np.ndarray:
    parts = [line.rstrip().rsplit(b" ", width) for line in lines]
    if all(len(part) == width + 1 for part in parts):
        try:
            rows = np.array([part[1:] for part in parts], dtype=bytes).astype(np.float32)
            words += [part[0].decode() for part in parts]
            return rows
        except ValueError:
            pass
    for number, line in enumerate(lines, first):
        numbers = line.split()[1:]
        if len(numbers) != width:
            raise ValueError(f"line {number} has {len(numbers)} numbers, the first vector {width}")
        try:
            np.array(numbers, dtype=bytes).astype(np.float32)
            line.decode()
        except ValueError:
            raise ValueError(f"line {number} holds text where numbers should be: {line[:60]!r}") from None
    raise ValueError(f"lines {first} to {first + len(lines) - 1} are not separated by single spaces")


def read_word_binary(path: Path) -> Vectors:
    """A line "N d", then for each word its bytes, a space, and d little-endian float32 numbers."""
    with path.open("rb") as file:
        header = _header(file.readline(HEADER_BYTES))
        if header is None:
            raise ValueError('it does not begin with a line "N d", as a binary file of word2vec does')
        n, d = header
        if (least := 4 * n * d) > (nbytes := path.stat().st_size):
            raise ValueError(
                f"its first line says {n:,} vectors of {d:,} numbers, at least {least:,} bytes, and it has {nbytes:,}: "
                "the file is cut short"
            )
        rows, words = np.empty((n, d), np.float32), []
        for row, (word, values) in enumerate(_entries(file, n, d)):
            words.append(word)
            rows[row] = values
    return Vectors(rows, words)


def _entries(file: BinaryIO, n: int, d: int) -> Iterator[tuple[str, np.ndarray]]:
    block, at = b"", 0
    for row in range(n):
        while (end := block.find(b" ", at)) < 0 or len(block) - end - 1 < 4 * d:
            if not (more := file.read(1 << 20)):
                raise ValueError(f"it ends in vector {row:,} of {n:,}: the file is cut short")
            block, at = block[at:] + more, 0
        word = block[at:end].lstrip(b"\n")
        try:
            yield word.decode(), np.frombuffer(block, "<f4", d, end + 1)
        except UnicodeDecodeError as error:
            raise ValueError(f"the word of vector {row:,} is no text: {error}") from error
        at = end + 1 + 4 * d


def is_word_binary(path: Path) -> bool:
    """Whether a file begins as a binary file of word2vec does."""
    with path.open("rb") as file:
        return _header(file.readline(HEADER_BYTES)) is not None


def _header(line: bytes) -> tuple[int, int] | None:
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or not line.endswith(b"\n"):
        return None
    n, d = map(int, parts)
    return (n, d) if 0 < d <= MOST_DIMENSIONS else None
