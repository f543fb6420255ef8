"""Pure-torch twins of the native kernels: the oracle in tests, the path for CUDA and without a compiler.

Inputs are already checked by the callers in this package. :func:`assign`, :func:`gather` and :func:`lookup`
agree with the native kernels bit for bit, :func:`scatter` up to rounding. They are complete, not fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Scores held at once. Torch temporaries much above the caches are slow and erratic.
_SCORES_AT_ONCE = 1 << 20


def half_squared_norms(centroids: Tensor) -> Tensor:
    """0.5 * ||c||^2 for centroids ``(D, K, s)``, returned as ``(D, K)``, summed over s in order."""
    total = torch.zeros_like(centroids[..., 0])
    for t in range(centroids.shape[2]):
        total = total + centroids[..., t] * centroids[..., t]
    return 0.5 * total


def assign(rows: Tensor, centroids: Tensor, bias: Tensor | None) -> Tensor:
    """argmin_k bias[j, k] - <rows[i, j], centroids[j, k]>: rows ``(n, D * s)`` to int32 codes ``(n, D)``.

    No matrix product here: its rounding depends on the shape of the whole batch, and a row's code must not.
    """
    num_subspaces, num_centroids, width = centroids.shape
    n = rows.shape[0]
    parts = rows.reshape(n, num_subspaces, width)
    start = half_squared_norms(centroids) if bias is None else bias
    codes = torch.empty(n, num_subspaces, dtype=torch.int32, device=rows.device)
    step = max(1, _SCORES_AT_ONCE // (num_subspaces * num_centroids))
    for at in range(0, n, step):
        part = parts[at : at + step]
        scores = start.expand(part.shape[0], -1, -1)
        for t in range(width):
            scores = scores - part[:, :, t, None] * centroids[None, :, :, t]
        codes[at : at + step] = _argmin_ignoring_nan(scores).to(torch.int32)
    return codes


def _argmin_ignoring_nan(scores: Tensor) -> Tensor:
    """Lowest index of the least score on the last axis; NaN loses even against +inf, all NaN gives 0."""
    number = ~scores.isnan()
    usable = torch.where(number, scores, torch.inf)
    lowest = usable.eq(usable.amin(dim=-1, keepdim=True)).logical_and_(number)
    # argmax of 0/1 picks the first 1, and 0 where there is none.
    return lowest.to(torch.uint8).argmax(dim=-1)


def gather(codes: Tensor, codebook: Tensor) -> Tensor:
    """Rows ``(n, d)`` from codes ``(n, D)`` and a codebook ``(Dc, Kc, sc)``; see :func:`mgqe.ops.gather`."""
    n, num_subspaces = codes.shape
    pieces, _, width = codebook.shape
    if pieces == 1:
        return codebook[0][codes.long()].reshape(n, num_subspaces * width)
    spread = codes.long().repeat_interleave(pieces // num_subspaces, dim=1)
    piece = torch.arange(pieces, device=codes.device)
    return codebook[piece, spread].reshape(n, pieces * width)


def scatter(
    grad: Tensor, codes: Tensor, weights: Tensor | None, pieces: int, num_centroids: int, width: int
) -> tuple[Tensor, Tensor]:
    """Transpose of :func:`gather`: sums ``(Dc, Kc, sc)`` and counts ``(Dc, Kc)`` an entry was chosen for."""
    n, num_subspaces = codes.shape
    entry = codes.long()
    if pieces > 1:
        entry = entry.repeat_interleave(pieces // num_subspaces, dim=1)
        entry = entry + torch.arange(pieces, device=codes.device) * num_centroids
    flat = entry.reshape(-1)
    values = grad.reshape(n, entry.shape[1], width)
    ones = torch.ones(n, dtype=grad.dtype, device=grad.device) if weights is None else weights
    values = values * ones[:, None, None]
    sums = torch.zeros(pieces * num_centroids, width, dtype=grad.dtype, device=grad.device)
    counts = torch.zeros(pieces * num_centroids, dtype=grad.dtype, device=grad.device)
    sums.index_add_(0, flat, values.reshape(-1, width))
    counts.index_add_(0, flat, ones[:, None].expand(n, entry.shape[1]).reshape(-1))
    return sums.reshape(pieces, num_centroids, width), counts.reshape(pieces, num_centroids)


def unique(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct ids, inverse and counts, in order of first appearance."""
    values, inverse, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    position = torch.arange(ids.shape[0], device=ids.device)
    first = torch.full_like(values, ids.shape[0]).scatter_reduce_(0, inverse, position, "amin")
    order = first.argsort()
    place = torch.empty_like(order)
    place[order] = torch.arange(order.shape[0], device=ids.device)
    return values[order], place[inverse], counts[order]
