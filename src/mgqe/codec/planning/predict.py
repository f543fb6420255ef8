"""What a configuration is expected to lose, whoever chose it."""

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
    for g, (n, subspaces, k) in enumerate(zip(sizes, capacity.num_subspaces, capacity.num_centroids, strict=True)):
        shares = capacity.share_codebook and g + 1 < len(sizes)
        held = capacity.num_centroids[g + 1] if shares else 0
        width = capacity.embedding_dim // subspaces
        error = tier_error(width, k, n, held if held < k else 0)
        errors.append(error + rounding(centroid_dtype, largest if capacity.share_codebook else k))
    return float(space.tier_weights(sizes) @ np.array(errors)), tuple(errors)
