"""What commands read: vectors, with what is said of them, and ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mgqe.cli.terminal import say
from mgqe.vectors.read import FRAMES, read_vectors
from mgqe.vectors.vectors import Vectors


def read_noted(file: Path, **columns: Any) -> Vectors:
    """`read_vectors`, with a note of what is taken or left out that may not be meant."""
    read = read_vectors(file, **columns)
    for note in read.notes:
        say(f"{file}: {note}")
    return read


def read_all(file: Path, tensor: str | None, ids: str | None, vectors: str | None) -> tuple[Vectors, Any]:
    """The vectors of a file and their ids: of a column of the file, of a file of their own, or none.

    Raises ValueError for ids that are not as many as the rows, or that are neither a column nor a file.
    """
    is_frame = file.is_file() and file.suffix.lower() in FRAMES
    if ids is None or (is_frame and not Path(ids).is_file()):
        read = read_noted(file, tensor=tensor, ids=ids, vectors=vectors)
        return read, read.ids
    read = read_noted(file, tensor=tensor, ids=False if is_frame else None, vectors=vectors)
    listed = read_ids(Path(ids))
    if len(listed) != len(read.rows):
        raise ValueError(f"--ids {ids}: {len(listed):,} ids, but {file} has {len(read.rows):,} rows: give one per row")
    return read, listed


def read_ids(path: Path) -> Any:
    """Ids from a file: .npy, a JSON list, or text with one id per line."""
    if not path.is_file():
        raise ValueError(f"--ids: no file {path}, and the vectors' file has no such column")
    if path.suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"--ids {path}: cannot be read as .npy: {error}") from error
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            lines = text.splitlines()
            if "" in lines:
                raise ValueError(f"line {lines.index('') + 1} is empty")
            return lines
        listed = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--ids {path}: {error}") from error
    if not isinstance(listed, list):
        raise ValueError(f"--ids {path}: expected a JSON list of ids, got {type(listed).__name__}")
    return listed
