"""Counts from .npy files: one number per id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def load_counts(path: Path, num_embeddings: int | None = None) -> Tensor:
    """The counts (N,) of a file.

    Raises ValueError for anything else than an array of numbers of one axis, or for another number of them.
    """
    try:
        numbers = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as .npy: {error}") from error
    wanted = f"{num_embeddings:,} numbers, one per row" if num_embeddings is not None else "one number per id, (N,)"
    if not isinstance(numbers, np.ndarray):
        raise ValueError(f"{path}: expected {wanted}, got an archive")
    if numbers.dtype.kind not in "iuf" or numbers.ndim != 1 or num_embeddings not in (None, len(numbers)):
        matrix = ": `mgqe compress` makes a table of a matrix" if numbers.ndim == 2 else ""
        raise ValueError(f"{path}: expected {wanted}, got {numbers.dtype} {numbers.shape}{matrix}")
    return torch.from_numpy(numbers)
