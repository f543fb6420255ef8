"""What the command compress reads beside the vectors: ids, counts and queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.ids import IdMap
from mgqe.ids.logs.paths import path_exists
from mgqe.vectors.read import FRAMES, read_vectors
from mgqe.vectors.vectors import Vectors


def read_all(file: Path, tensor: str | None, ids: str | None, vectors: str | None) -> tuple[Vectors, Any]:
    """The vectors of a file and their ids: of a column of the file, of a file of their own, or none.

    Raises ValueError for ids that are not as many as the rows, or that are neither a column nor a file.
    """
    is_frame = file.is_file() and file.suffix.lower() in FRAMES
    if ids is None or (is_frame and not Path(ids).is_file()):
        read = read_vectors(file, tensor=tensor, ids=ids, vectors=vectors)
        return read, read.ids
    read = read_vectors(file, tensor=tensor, vectors=vectors)
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


def read_counts(source: str, column: str | None, ids: IdMap | None, num_rows: int) -> Tensor:
    """How often the id of each row occurs: (N,).

    Args:
        source: an .npy file of counts, one per row; or a log of ids, whose ``column`` is counted.
        ids: of the rows; None where they are numbered.
    """
    if source.endswith(".npy"):
        try:
            numbers = np.load(source, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"--counts {source}: cannot be read as .npy: {error}") from error
        if numbers.shape != (num_rows,) or numbers.dtype.kind not in "iuf":
            raise ValueError(
                f"--counts {source}: expected {num_rows:,} numbers, one per row, got {numbers.dtype} {numbers.shape}"
            )
        return torch.from_numpy(numbers)
    if not path_exists(source):
        raise ValueError(f"--counts: no file {source}")
    if column is None:
        raise ValueError(f"--counts {source}: say which column holds the ids that are counted: --count-column")
    try:
        counted = IdMap.from_log(source, column, kind=None if ids is None else ids.kind)
        wanted = torch.arange(num_rows) if ids is None else ids.ids(torch.arange(num_rows))
        rows = counted.rows(wanted, unknown=-1)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--counts {source}: {error.args[0]}") from error
    if not bool((rows >= 0).any()):
        raise ValueError(f"--counts {source}: none of the ids in column {column!r} is the id of a row")
    return torch.where(rows >= 0, counted.counts[rows.clamp(min=0)], 0)
