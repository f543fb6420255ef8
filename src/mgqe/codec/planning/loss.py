"""What a configuration loses of a table: predicted without it, or measured on a sample of its rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mgqe.codec.capacity import Capacity
from mgqe.codec.equations import nearest_codes, round_centroids, tier_codebook
from mgqe.codec.kmeans import Frame, KMeans, draw_places, start_codebooks
from mgqe.codec.planning.rate import rounding, tier_error
from mgqe.codec.planning.search import Candidate, Space

SAMPLE_ROWS = 16_384  # of a tier
EFFORT = KMeans(spread=True)


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


@torch.no_grad()
def measured(space: Space, candidate: Candidate, rows: Tensor) -> tuple[float, tuple[float, ...]]:
    """The mean of the tiers' errors, weighted as in the search, and each tier's error: the share of its squares lost.

    Args:
        rows: (N, d) float32 on the CPU.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    tiers, capacity = space.tiers(candidate.sizes), candidate.capacity(space.embedding_dim)
    parts = []
    for g in range(tiers.num_tiers):
        members = tiers.members(g)
        if space.padding_idx is not None:
            members = members[members != space.padding_idx]
        if len(members) > SAMPLE_ROWS:
            members = members[draw_places(len(members), SAMPLE_ROWS, generator)]
        parts.append(rows[members])
    books = start_codebooks(parts, capacity, generator, EFFORT)
    books = [round_centroids(book, candidate.centroid_dtype) for book in books]
    errors = []
    for tier, part in zip(capacity.tiers, parts, strict=True):
        book, subspaces, k = books[tier.codebook], tier.num_subspaces, tier.num_centroids
        codes = nearest_codes(part, book, subspaces, k)
        decoded = tier_codebook(book, subspaces, k)[torch.arange(subspaces, device="cpu"), codes.long()].reshape(
            len(part), -1
        )
        # Only the ratio matters: by a power of two, which is exact, squares of any rows are in float32.
        scale = 1.0 if (frame := Frame.of(part.unsqueeze(1), 1)) is None else frame.scale
        lost = ((part - decoded) * scale).square().sum()
        errors.append(float(lost / (part * scale).square().sum().clamp(min=1e-30)))
    return float(space.tier_weights(candidate.sizes) @ np.array(errors)), tuple(errors)
