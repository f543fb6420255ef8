"""What a top-K search looks for, as the kernels and their twin take it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class IdLists:
    """A list of ids per query: ``ids`` int64 ``(n,)``; ``spans`` int64 ``(B, 2)``, where the ids of each query are."""

    ids: Tensor
    spans: Tensor


@dataclass(frozen=True)
class BiasLevels:
    """Biases of a table's ids, float32 ``(N,)``, and how the kernels bound them.

    ``codes`` uint8 ``(N,)`` by tier and row, ``levels`` float32 ``(256,)`` ascending: no bias is above its level.
    Both are empty where the torch twin does the work.
    """

    bias: Tensor
    codes: Tensor
    levels: Tensor


@dataclass(frozen=True)
class TopKJob:
    """What to look for; all tensors are on the table's device, contiguous, and in range except for the ids.

    Attributes:
        queries: float32 ``(B, d)``. For cosine of length 1, or zeros.
        k: 1 to N.
        cosine: divide scores by the rows' lengths; rows of zeros score 0.
        bias: added to the scores, not with ``cosine``.
        excluded: ids that a query must not get.
        candidates: the only ids that a query may get; one given twice counts once.
        hidden: bool ``(N,)`` or ``(B, N)``: ids that are not to be returned.
    """

    queries: Tensor
    k: int
    cosine: bool = False
    bias: BiasLevels | None = None
    excluded: IdLists | None = None
    candidates: IdLists | None = None
    hidden: Tensor | None = None
