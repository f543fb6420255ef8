"""Codes of mixed tables: coordinates <-> codes, and the rounding of flat codebooks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mgqe.ops import assign_mixed as nearest_mixed_codes
from mgqe.ops.pieces import Piece

__all__ = ["flat_index", "gather_mixed", "nearest_mixed_codes", "round_flat", "spread", "subspace_scales"]


@dataclass(frozen=True, eq=False)
class FlatIndex:
    """Where the numbers of a flat codebook belong, as tensors, so that nothing loops over subspaces.

    Attributes:
        subspace, coordinate: int64 (E,), of each number of the codebook.
        of_coordinate: int64 (L,), the subspace of each coordinate.
        width, first: int64 (L,), of each coordinate: how wide its subspace is, and where its number in centroid 0 is.
    """

    subspace: Tensor
    coordinate: Tensor
    of_coordinate: Tensor
    width: Tensor
    first: Tensor

    def places(self, codes: Tensor) -> Tensor:
        """Codes (n, D) -> where the numbers that they name are in the codebook, int64 (n, L)."""
        return codes.long()[:, self.of_coordinate] * self.width + self.first


@lru_cache(maxsize=256)
def flat_index(layout: tuple[Piece, ...], device: torch.device) -> FlatIndex:
    """For the subspaces of a codebook."""
    numbers = [(j, piece.coordinate + t) for j, piece in enumerate(layout) for t in range(piece.width)]
    of_coordinate = [j for j, _ in numbers]
    width = [layout[j].width for j in of_coordinate]
    first = [layout[j].entry + k - layout[j].coordinate for j, k in numbers]
    subspace, coordinate = [], []
    for j, piece in enumerate(layout):
        subspace += [j] * (piece.num_centroids * piece.width)
        coordinate += list(range(piece.coordinate, piece.coordinate + piece.width)) * piece.num_centroids
    tensors = (torch.tensor(each, dtype=torch.int64) for each in (subspace, coordinate, of_coordinate, width, first))
    return FlatIndex(*(tensor.to(device) for tensor in tensors))


def gather_mixed(codes: Tensor, codebook: Tensor, layout: tuple[Piece, ...]) -> Tensor:
    """Coordinates (n, L) from codes (n, D) and a flat codebook whose subspaces lie as ``layout`` says."""
    return codebook[flat_index(layout, codebook.device).places(codes)]


def spread(values: Tensor, layout: tuple[Piece, ...]) -> Tensor:
    """One number per subspace (D,) -> one per number of the flat codebook."""
    return values[flat_index(layout, values.device).subspace]


def subspace_scales(codebook: Tensor, layout: tuple[Piece, ...]) -> Tensor:
    """Of a flat int8 codebook, (D,): max |centroid| / 127 of each subspace; 1 where all are zeros."""
    subspace = flat_index(layout, codebook.device).subspace
    scales = codebook.new_zeros(len(layout)).scatter_reduce(0, subspace, codebook.abs(), "amax") / 127
    # The quotient of the largest float32 is rounded up, and 127 times that is infinite.
    scales = torch.where((scales * 127).isfinite(), scales, torch.nextafter(scales, torch.zeros_like(scales)))
    return torch.where(scales > 0, scales, 1.0)


def reachable(codebook: Tensor, piece: Piece) -> Tensor:
    """The centroids of a flat codebook that a tier chooses among in a subspace: a view (2^bits, width)."""
    return codebook[piece.entry : piece.entry + (piece.width << piece.bits)].view(-1, piece.width)


def round_flat(codebook: Tensor, layout: tuple[Piece, ...], centroid_dtype: str) -> Tensor:
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
