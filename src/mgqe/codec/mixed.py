"""Codes of mixed tables: coordinates <-> codes, subspace by subspace, and the rounding of flat codebooks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mgqe import ops
from mgqe.ops.pieces import Piece
from mgqe.ops.reference import gather_mixed

__all__ = ["gather_mixed", "nearest_mixed_codes", "round_flat", "spread", "subspace_scales"]


def nearest_mixed_codes(coordinates: Tensor, codebook: Tensor, layout: Sequence[Piece]) -> Tensor:
    """In each subspace the nearest of the first 2^bits centroids; the lowest index on ties.

    Args:
        coordinates: (n, L) float32.
        codebook: flat, float32.
        layout: the subspaces as the rows of a tier have them.

    Returns:
        (n, D) int32.
    """
    codes = torch.zeros((coordinates.shape[0], len(layout)), dtype=torch.int32, device=coordinates.device)
    for j, piece in enumerate(layout):
        if piece.bits:
            rows = coordinates[:, piece.coordinate : piece.coordinate + piece.width].contiguous()
            codes[:, j] = ops.assign(rows, reachable(codebook, piece).unsqueeze(0).contiguous(), None)[:, 0]
    return codes


def reachable(codebook: Tensor, piece: Piece) -> Tensor:
    """The centroids of a flat codebook that a tier chooses among in a subspace: a view (2^bits, width)."""
    return codebook[piece.entry : piece.entry + (piece.width << piece.bits)].view(-1, piece.width)


def spread(values: Tensor, layout: Sequence[Piece]) -> Tensor:
    """One number per subspace (D,) -> one per element of the flat codebook."""
    lengths = torch.tensor([piece.num_centroids * piece.width for piece in layout], device=values.device)
    return torch.repeat_interleave(values, lengths)


def subspace_scales(codebook: Tensor, layout: Sequence[Piece]) -> Tensor:
    """Of a flat int8 codebook, (D,): max |centroid| / 127 of each subspace; 1 where all are zeros."""
    stops = [piece.entry + piece.num_centroids * piece.width for piece in layout]
    peaks = [codebook[piece.entry : stop].abs().amax() for piece, stop in zip(layout, stops, strict=True)]
    scales = torch.stack(peaks) / 127
    # The quotient of the largest float32 is rounded up, and 127 times that is infinite.
    scales = torch.where((scales * 127).isfinite(), scales, torch.nextafter(scales, torch.zeros_like(scales)))
    return torch.where(scales > 0, scales, 1.0)


def round_flat(codebook: Tensor, layout: Sequence[Piece], centroid_dtype: str) -> Tensor:
    """A flat codebook as a frozen table of ``centroid_dtype`` decodes it; the gradient passes straight through."""
    if centroid_dtype == "float32":
        return codebook
    values = codebook.detach()
    if centroid_dtype == "float16":
        rounded = values.to(torch.float16).to(values.dtype)
    else:
        scales = spread(subspace_scales(values, layout), layout)
        rounded = (values / scales).round().clamp(-127, 127) * scales
    return rounded + (codebook - values)
