"""The gradient of a bag's weights: of a frozen table nothing trains, but what weighs its rows may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CHUNK_VALUES = 1 << 22  # floats of the rows that are decoded at once


class WeightedSums(torch.autograd.Function):
    """Pooled rows (B, d) as ``pool(weights)`` gives them, with a gradient for ``weights``; the rows are constants.

    Args:
        weights: float32 ``(n,)``.
        ids, offsets, bag_of: int64; ``offsets`` None where all bags have as many ids.
        pool: ids, offsets, weights -> float32 ``(B, d)``, without a gradient.
        rows_of, padding_idx: as :func:`weights_gradient` takes them.
    """

    @staticmethod
    def forward(
        weights: Tensor,
        ids: Tensor,
        offsets: Tensor | None,
        bag_of: Tensor,
        pool: Callable[[Tensor, Tensor | None, Tensor], Tensor],
        rows_of: Callable[[Tensor], Tensor],
        padding_idx: int,
    ) -> Tensor:
        """The pooled rows."""
        return pool(ids, offsets, weights.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the gradient needs."""
        _, ids, _, bag_of, _, ctx.rows_of, ctx.padding_idx = inputs
        ctx.save_for_backward(ids, bag_of)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the sums -> that of the weights."""
        ids, bag_of = ctx.saved_tensors
        products = weights_gradient(grads[0], ctx.rows_of, ids, bag_of, ctx.padding_idx)
        return products, None, None, None, None, None, None


def weights_gradient(
    grad: Tensor, rows_of: Callable[[Tensor], Tensor], ids: Tensor, bag_of: Tensor, padding_idx: int
) -> Tensor:
    """The inner product of each id's row with the gradient of its bag's sum; 0 for padding, which is in no sum.

    Args:
        grad: ``(B, d)``.
        rows_of: flat ids -> their rows, float32 ``(n, d)``.
        ids, bag_of: int64 ``(n,)``, and the bag of each.
        padding_idx: the id that is left out, -1 for none.

    Returns:
        ``(n,)`` in the dtype of ``grad``.
    """
    step = max(1, CHUNK_VALUES // grad.shape[1])
    products_of_chunk = [
        (rows_of(ids[start : start + step]) * grad[bag_of[start : start + step]]).sum(-1)
        for start in range(0, ids.shape[0], step)
    ]
    products = torch.cat(products_of_chunk) if products_of_chunk else grad.new_zeros(0)
    return products if padding_idx < 0 else products.masked_fill(ids == padding_idx, 0.0)


def bags_of_ids(n: int, offsets: Tensor | None, num_bags: int, device: torch.device) -> Tensor:
    """The bag of each of ``n`` ids, int64 ``(n,)``; ``offsets`` None where all bags have as many ids."""
    positions = torch.arange(n, device=device)
    if offsets is None:
        return positions // (n // max(1, num_bags))
    return torch.bucketize(positions, offsets, right=True) - 1
