"""Checks of matrices and of vectors that come as tensors, arrays or lists."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.checks.columns import column_values, is_column
from mgqe.checks.ids import check_dense, no_values

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def as_rows(weight: Any, name: str = "weight") -> Tensor:
    """A matrix of floats (N, d) as a tensor that shares its memory.

    Args:
        weight: a tensor or a NumPy array, also one that is mapped from a file or cannot be written to.
        name: the argument's, for messages.

    Raises:
        TypeError: something else, or no floats. ValueError: another shape.
    """
    if isinstance(weight, np.ndarray):
        weight = shared(weight, name)
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a tensor or a NumPy array of shape (N, d), got {type(weight).__name__}")
    check_dense(weight, name)
    if weight.dtype not in FLOATS:
        raise TypeError(f"{name} must hold floats, got {weight.dtype}: make them with .float()")
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"{name} must have shape (N, d) with N and d at least 1, got {tuple(weight.shape)}")
    if weight.is_meta:
        raise no_values(f"the rows of {name}")
    return weight.detach()


def shared(array: np.ndarray, name: str) -> Tensor:
    """An array of floats as a tensor, which shares its memory where torch can. TypeError: no floats."""
    if array.dtype.kind != "f":
        remedy = ": make them with .astype('float32')" if array.dtype.kind in "iub" else ""
        raise TypeError(f"{name} must hold floats, got an array of {array.dtype}{remedy}")
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):  # which torch cannot share
        array = np.array(array, dtype=array.dtype.newbyteorder("="))
    with warnings.catch_warnings():  # of arrays that cannot be written to: nothing is
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def plain_vectors(vectors: Any, name: str) -> Tensor:
    """Vectors as a tensor: a tensor as it is, an array, a list or a column of a frame as float32 on the CPU.

    Raises TypeError for what holds no numbers, ValueError for a column with missing vectors.
    """
    if isinstance(vectors, Tensor):
        return vectors
    if is_column(vectors):
        vectors = column_values(vectors)
    try:
        array = np.asarray(vectors)
    except ValueError as error:  # lists of unequal lengths
        raise TypeError(f"{name} must be vectors of one length: {error}") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(
            f"{name} must be floats: a tensor, an array, a list or a column of a frame, got {type(vectors).__name__}"
        )
    return torch.from_numpy(np.array(array, dtype=np.float32))
