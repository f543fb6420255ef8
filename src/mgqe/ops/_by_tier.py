"""Rows of all tiers through their codes at once, and the gradient of their centroids, by the kernels for GPUs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mgqe.ops._checks import same_device
from mgqe.ops._triton import triton_on
from mgqe.ops.layout.searches import Searches


class ByTier(NamedTuple):
    """Rows through their codes.

    Attributes:
        codes: int32 ``(n, D)``; rows of a tier of fewer subspaces have theirs first.
        vectors: float32 ``(n, L)``, NaN where the row is not finite.
        errors: float32 ``(n, L)``, a row's weight times how far it is from its centroids.
        loss: float32 scalar, the sum of the rows' weights times the squares of that, times a factor.
    """

    codes: Tensor
    vectors: Tensor
    errors: Tensor
    loss: Tensor


def row_weights(counts: Tensor | None, num_rows: int, dim: int) -> Tensor | float:
    """Each row's share in a mean over ids and dimensions, of how often it counts: int64 ``(n,)``, None for ones."""
    if counts is None:
        return 1 / max(1, num_rows * dim)
    return counts.to(torch.float32).div_(counts.sum().clamp_(min=1).mul_(dim))


def quantizes_by_tier(device: torch.device) -> bool:
    """Whether there are kernels for :func:`quantize_by_tier` on a device; elsewhere tiers are quantised one by one."""
    return triton_on(device) is not None


def quantize_by_tier(
    rows: Tensor, tiers: Tensor | None, weights: Tensor | float, book: Tensor, searches: Searches, factor: float
) -> ByTier:
    """Codes as of :func:`mgqe.ops.assign`, what they decode to, and how far that is from the rows: two kernels.

    Runs eagerly only; not differentiable.

    Args:
        rows: float32 ``(n, L)``.
        tiers: integers ``(n,)``; None where there is one.
        weights: float32 ``(n,)``, or one number for all.
        book: float32, the flat codebooks.
        searches: where the tiers' centroids are in them.
        factor: what the loss is multiplied with.

    Raises:
        ValueError: tensors on several devices.
    """
    same_device(rows=rows, tiers=tiers, book=book)
    kernels = triton_on(rows.device)
    rows, book = rows.detach().contiguous(), book.detach().contiguous()
    return ByTier(*kernels.nearest(rows, tiers, book, searches, weights, factor))


def scatter_by_tier(
    errors: Tensor, tiers: Tensor | None, codes: Tensor, searches: Searches, scale: Tensor, factor: float
) -> Tensor:
    """Sums of errors ``(n, L)`` by the centroids that codes name, times a scalar and a factor: float32 ``(E,)``."""
    sums: Tensor = triton_on(errors.device).scatter(errors, tiers, codes, searches, scale, factor)
    return sums
