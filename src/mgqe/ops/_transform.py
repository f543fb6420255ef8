"""Rows times a small matrix, with one rounding per product, so that every machine gives the same bits."""

from __future__ import annotations

from torch import Tensor

from mgqe.ops import reference


def transform(rows: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """mean + rows @ matrix, added up in the order of the rows' numbers, whatever the batch and the machine.

    Args:
        rows: float32 ``(n, L)``, contiguous.
        mean: float32 ``(d,)``.
        matrix: float32 ``(L, d)``, contiguous.

    Returns:
        float32 ``(n, d)``; the native kernel and the torch twin agree bit for bit.
    """
    return reference.transform(rows, mean, matrix)
