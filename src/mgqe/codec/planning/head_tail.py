"""What a plan is expected to lose of frequent ids and of the others, however it divides them into tiers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mgqe.codec.planning.mixed import MixedPlan

HEAD = 0.1  # of the ids
CHUNK = 65_536  # rows


def head_and_tail(plan: MixedPlan, rows: Tensor, counts: Tensor, padding_idx: int | None = None) -> tuple[float, float]:
    """The expected share of the squares that is lost, of the 10% of ids with the largest counts and of the others.

    Squares are about the plan's mean and in its metric, and ids of a group count alike. All rows of a tier are expected
    to lose as much, not as large a share: that is how the plan was made.

    Args:
        rows: (N, d), those of the plan. counts: (N,).
        padding_idx: the id that is left out.
    """
    tiers = plan.tiers
    tier_of = np.repeat(np.arange(tiers.num_tiers), tiers.sizes) if tiers.tier_of is None else tiers.tier_of.numpy()
    chunks = torch.split(rows.detach(), CHUNK)
    squares = np.concatenate([(plan.axes.coordinates(each.cpu().double().numpy()) ** 2).sum(1) for each in chunks])
    weights = (counts.cpu().double().numpy() + 1.0) ** plan.choice.counts_power
    if padding_idx is not None:
        squares[padding_idx] = weights[padding_idx] = 0.0
    mass = np.bincount(tier_of, weights, minlength=tiers.num_tiers)
    mean_squares = np.bincount(tier_of, weights * squares, minlength=tiers.num_tiers) / np.maximum(mass, 1e-300)
    lost = (np.array(plan.errors) * mean_squares)[tier_of] * (weights > 0)
    in_head = np.zeros(len(squares), dtype=bool)
    order = torch.argsort(counts, descending=True, stable=True)
    in_head[order[: max(1, round(HEAD * len(squares)))].numpy()] = True
    head, tail = (float(lost[group].sum() / max(squares[group].sum(), 1e-300)) for group in (in_head, ~in_head))
    return head, tail
