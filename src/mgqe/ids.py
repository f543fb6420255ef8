"""Ids as users pass them -> int64 row numbers that are safe to index with; sizes of a table."""

from __future__ import annotations

import torch
from torch import Tensor

INTEGER_DTYPES = frozenset(
    {
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    }
)


def as_int64(ids: Tensor) -> Tensor:
    """Ids of any integer dtype as int64, same shape; the values are not looked at.

    Raises:
        TypeError: ``ids`` is no tensor, or holds floats or booleans.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"ids must be a torch.Tensor of integers, got {type(ids).__name__}: use torch.as_tensor(ids)")
    if ids.dtype == torch.int64:
        return ids
    if ids.dtype not in INTEGER_DTYPES:
        raise TypeError(f"ids must have an integer dtype such as torch.int64, got {ids.dtype}: cast with ids.long()")
    return ids.to(torch.int64)


def check_ids(ids: Tensor, num_embeddings: int) -> Tensor:
    """Ids (...) of any integer dtype as int64 (...), each known to lie in [0, num_embeddings).

    Raises:
        TypeError: not an integer tensor.
        IndexError: an id is negative or not below ``num_embeddings``; the message names the first such id.
            Not while torch.compile traces: what indexes with the ids then has to check them.
    """
    rows = as_int64(ids)
    if torch.compiler.is_compiling() or rows.numel() == 0:
        return rows
    low, high = (int(x) for x in torch.aminmax(rows))
    if low < 0 or high >= num_embeddings:
        flat = rows.reshape(-1)
        offending = flat[(flat < 0) | (flat >= num_embeddings)][0]
        valid = f"0 to {num_embeddings - 1}" if num_embeddings else "none, the table has no rows"
        raise IndexError(f"id {int(offending)} is out of range: valid ids are {valid}")
    return rows


def check_sizes(num_embeddings: int, embedding_dim: int, padding_idx: int | None) -> int | None:
    """A table's sizes, checked; returns padding_idx as a row number (negative ones count from the end).

    Raises ValueError: negative rows, no dimension, or padding_idx outside the table.
    """
    if num_embeddings < 0:
        raise ValueError(f"num_embeddings must not be negative, got {num_embeddings}")
    if embedding_dim < 1:
        raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}")
    if padding_idx is None:
        return None
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise ValueError(f"padding_idx={padding_idx} is outside the {num_embeddings} rows of the table")
    return padding_idx % num_embeddings
