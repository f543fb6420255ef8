"""What an even shape is expected to lose of Gaussian rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mgqe.codec.capacity import Capacity
from mgqe.codec.planning.rate import rounding, tier_error
from mgqe.codec.planning.search import Space


def predicted(
    space: Space, sizes: Sequence[int], capacity: Capacity, centroid_dtype: str
) -> tuple[float, tuple[float, ...]]:
    """The weighted share of the squares that is lost, and each tier's plain share, of ids sorted by frequency.

    Tiers that share a codebook must have the same subspaces and fall in centroids.
    """
    largest = max(capacity.num_centroids)
    errors = []
    for tier, next_tier in zip(capacity.tiers, (*capacity.tiers[1:], None), strict=True):
        k = tier.num_centroids
        inherited = next_tier.num_centroids if capacity.share_codebook and next_tier else 0
        width = capacity.embedding_dim // tier.num_subspaces
        error = tier_error(width, k, tier.ids, inherited if inherited < k else 0)
        errors.append(error + rounding(centroid_dtype, largest if capacity.share_codebook else k))
    return float(space.tier_weights(sizes) @ np.array(errors)), tuple(errors)
