"""What a configuration is expected to lose, whoever chose it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mgqe.capacity import Capacity
from mgqe.planning.rate import few_rows, limit, nested_factor, rounding

if TYPE_CHECKING:
    from mgqe.planning.search import Space


def tier_error(width: int, centroids: int, rows: int, held: int = 0) -> float:
    """Of one tier, before its centroids are rounded.

    Args:
        width: s, dimensions a subspace.
        rows: ids of the tier.
        held: of its centroids, those that less frequent tiers fitted.
    """
    fitted = min(centroids - held, rows)  # on the rows of this tier; held ones are as they are
    return limit(width, centroids) * few_rows(width, rows / fitted) * nested_factor(width, held / centroids)


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
