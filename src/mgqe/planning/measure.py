"""What a candidate loses on a trained table: its codebooks are started as they would be, on a sample of the rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mgqe.codebook import draw_places, start_codebooks
from mgqe.planning.search import Candidate, Space
from mgqe.quantizers import nearest_codes, round_centroids, tier_codebook

SAMPLE_ROWS = 16_384  # of a tier


@torch.no_grad()
def measured(space: Space, candidate: Candidate, rows: Tensor, weights: np.ndarray) -> tuple[float, tuple[float, ...]]:
    """The weighted share of the squares that is lost, and each tier's plain share.

    Args:
        rows: (N, d) float32 on the CPU.
        weights: float64 (N,), 0 for padding.
    """
    generator = torch.Generator().manual_seed(0)
    tiers, capacity = space.tiers(candidate.sizes), candidate.capacity(space.embedding_dim)
    counted = torch.from_numpy(weights)
    ids, scale = [], []
    for g, size in enumerate(candidate.sizes):
        members = tiers.members(g)
        members = members[counted[members] > 0]
        if size > SAMPLE_ROWS:
            members = members[draw_places(len(members), SAMPLE_ROWS, generator)]
        ids.append(members)
        scale.append(size / max(1, len(members)))
    parts = [rows[chosen] for chosen in ids]
    books = [round_centroids(book, candidate.centroid_dtype) for book in start_codebooks(parts, capacity, generator)]
    lost, total, errors = 0.0, 0.0, []
    for g, (chosen, part) in enumerate(zip(ids, parts, strict=True)):
        book, subspaces, k = books[capacity.codebook_of[g]], capacity.num_subspaces[g], capacity.num_centroids[g]
        codes = nearest_codes(part, book, subspaces, k)
        decoded = tier_codebook(book, subspaces, k)[torch.arange(subspaces), codes.long()].reshape(len(part), -1)
        wrong, square = (part - decoded).double().square().sum(1), part.double().square().sum(1)
        weight = counted[chosen] * scale[g]
        lost += float(weight @ wrong)
        total += float(weight @ square)
        errors.append(float(wrong.sum() / square.sum().clamp(min=1e-30)))
    return lost / total if total else 0.0, tuple(errors)
