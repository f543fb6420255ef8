"""Pure-torch twin of the pooled look-up: complete on every device, and slow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def bag(
    rows_of: Callable[[Tensor], Tensor],
    ids: Tensor,
    offsets: Tensor,
    embedding_dim: int,
    mode: str,
    weights: Tensor | None,
    padding_idx: int,
) -> Tensor:
    """Pooled rows ``(B, d)``, bit for bit as the native kernel gives them.

    The l-th ids of all bags together, for l = 0, 1, ...: within a bag rows are added in the order of its ids,
    starting from 0, each product and sum rounded to float32.

    Args:
        rows_of: flat ids -> their rows, float32 ``(n, d)``.
        ids: int64 ``(n,)``, known to be in range.
        offsets: int64 ``(B,)``, checked.
        embedding_dim: d.
        mode: "sum", "mean" or "max".
        weights: float32 ``(n,)`` or None.
        padding_idx: ids left out, -1 for none.
    """
    bags = offsets.shape[0]
    ends = torch.cat([offsets[1:], offsets.new_tensor([ids.shape[0]])])[:bags]
    lengths = ends - offsets
    pooled = torch.full(
        (bags, embedding_dim), -torch.inf if mode == "max" else 0.0, dtype=torch.float32, device=ids.device
    )
    counted = torch.zeros(bags, dtype=torch.int64, device=ids.device)
    for step in range(int(lengths.max()) if bags else 0):
        live = (lengths > step).nonzero().squeeze(1)
        at = offsets[live] + step
        if padding_idx >= 0:
            counts = ids[at] != padding_idx
            live, at = live[counts], at[counts]
        rows = rows_of(ids[at])
        before = pooled[live]
        if mode == "max":
            pooled[live] = torch.where(rows > before, rows, before)
        else:
            pooled[live] = before + (rows if weights is None else rows * weights[at, None])
        counted[live] += 1
    if mode == "mean":
        pooled = pooled / counted.clamp(min=1).float()[:, None]
    return torch.where(counted[:, None] > 0, pooled, 0.0)
