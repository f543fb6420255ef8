"""How many of a tier's centroids are in use, and how evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CodebookStats:
    """Use of one tier's centroids over its whole vocabulary.

    Attributes:
        tier: 0 is the most frequent.
        num_ids: ids in the tier.
        num_subspaces: D_g.
        num_centroids: K_g of each subspace, the largest where they differ.
        reachable: centroids that the tier could use at once, min(K_g, num_ids); mean over subspaces.
        used: centroids that are chosen by at least one id, mean over subspaces.
        perplexity: exp of the entropy of the codes, mean over subspaces; at most ``reachable``.
    """

    tier: int
    num_ids: int
    num_subspaces: int
    num_centroids: int
    reachable: float
    used: float
    perplexity: float

    @property
    def usage(self) -> float:
        """used / reachable; 1.0 for an empty tier."""
        return self.used / self.reachable if self.reachable else 1.0


def code_histogram(codes: Tensor, num_centroids: int) -> Tensor:
    """(n, D) codes -> (D, K) counts as float64."""
    subspaces = codes.shape[1]
    offsets = torch.arange(subspaces, device=codes.device) * num_centroids
    flat = (codes.long() + offsets).reshape(-1)
    return torch.bincount(flat, minlength=subspaces * num_centroids).view(subspaces, num_centroids).double()


def tier_stats(tier: int, num_ids: int, histogram: Tensor, code_bits: Sequence[int] = ()) -> CodebookStats:
    """Usage and perplexity from the (D, K) counts of a tier's codes; ``code_bits`` of each code in a mixed table."""
    subspaces, centroids = histogram.shape
    if num_ids == 0:
        return CodebookStats(tier, 0, subspaces, centroids, 0, 0.0, 0.0)
    reachable, used, perplexity = (part.mean().item() for part in subspace_use(histogram, num_ids, code_bits))
    return CodebookStats(tier, num_ids, subspaces, centroids, reachable, used, perplexity)


def subspace_use(histogram: Tensor, num_ids: int, code_bits: Sequence[int] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """Of each subspace of a tier: centroids within reach, centroids in use, and perplexity, float64 (D,).

    The arguments are those of :func:`tier_stats`. In a tier without ids nothing is in use.
    """
    subspaces, centroids = histogram.shape
    within = [1 << bits for bits in code_bits] or [centroids] * subspaces
    reachable = torch.tensor(within, dtype=torch.float64, device=histogram.device).clamp(max=num_ids)
    shares = histogram / histogram.sum(1, keepdim=True).clamp(min=1)
    entropy = -torch.special.xlogy(shares, shares).sum(1)
    return reachable, (histogram > 0).sum(1).double(), entropy.exp()
