"""Codes of mixed tables: coordinates <-> codes, and the rounding of flat codebooks."""

from __future__ import annotations

from torch import Tensor

from mgqe.codec.equations import in_int8_steps, round_centroids, scales_of
from mgqe.ops import assign_mixed as nearest_mixed_codes
from mgqe.ops.flat_index import flat_index
from mgqe.ops.layout.pieces import Piece
from mgqe.ops.reference import gather_mixed

__all__ = [
    "flat_index",
    "gather_mixed",
    "nearest_mixed_codes",
    "round_flat",
    "round_to_steps",
    "spread",
    "subspace_scales",
    "whole_steps",
]


def spread(values: Tensor, layout: tuple[Piece, ...]) -> Tensor:
    """One number per subspace (D,) -> one per number of the flat codebook."""
    return values[flat_index(layout, values.device).subspace]


def subspace_scales(codebook: Tensor, layout: tuple[Piece, ...]) -> Tensor:
    """Of a flat int8 codebook, (D,): max |centroid| / 127 of each subspace; 1 where all are zeros."""
    subspace = flat_index(layout, codebook.device).subspace
    return scales_of(codebook.new_zeros(len(layout)).scatter_reduce(0, subspace, codebook.abs(), "amax"))


def round_to_steps(codebook: Tensor, steps: Tensor, layout: tuple[Piece, ...]) -> Tensor:
    """A flat codebook in whole multiples, -127 to 127, of its coordinates' steps (L,); the gradient passes through."""
    of_number, values = steps[flat_index(layout, codebook.device).coordinate], codebook.detach()
    return in_int8_steps(values, of_number) * of_number + (codebook - values)


def whole_steps(values: Tensor, steps: Tensor) -> Tensor:
    """Coordinates (..., L) that are whole multiples of steps (L,), up to rounding -> how many steps each is."""
    return (values / steps).round()


def round_flat(codebook: Tensor, layout: tuple[Piece, ...], centroid_dtype: str) -> Tensor:
    """A flat codebook as a frozen table of ``centroid_dtype`` decodes it; the gradient passes straight through."""
    return round_centroids(codebook, centroid_dtype, lambda values: spread(subspace_scales(values, layout), layout))
