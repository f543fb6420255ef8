"""PreparedPlan: what the training steps of a layer with a plan have in common, worked out once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from mgqe import ops
from mgqe.codec.capacity import BY_COLUMNS, Capacity
from mgqe.codec.equations import round_centroids, scales_of
from mgqe.codec.mixed import flat_index


@dataclass(frozen=True, eq=False)
class PreparedPlan:
    """A plan's buffers as the kernels take them.

    Attributes:
        capacity, buffers, versions: what it was made from.
        coder: all but the centroids.
        units: of each number of the codebooks, that of its coordinate; None where the coder has steps.
        spans: (D, 2), from where to where each subspace of each codebook goes.
        subspace: of each number, in which of them it is.
        searches: the coder's, in numbers.
    """

    capacity: Capacity
    buffers: tuple[Tensor, ...]
    versions: list[int | None]
    coder: ops.MixedCoder
    units: Tensor | None
    spans: Tensor
    subspace: Tensor
    searches: tuple[int, ...]

    @classmethod
    def of(cls, capacity: Capacity, buffers: tuple[Tensor, ...]) -> PreparedPlan:
        """From the buffers of a MixedQuantizer: mean, matrix, matrix scales, encoder, units and steps."""
        mean, matrix, scales, encoder, units, steps = buffers
        length, is_whole = capacity.num_coordinates, capacity.matrix_dtype == BY_COLUMNS
        values = matrix[:length].float()
        coder = ops.MixedCoder(
            mean.clone(),
            encoder[:, :length].contiguous(),
            values if is_whole else values * scales[:length, None],
            scales.clone() if is_whole else None,
            units[:length].clone(),
            steps[:length].clone() if is_whole else None,
            tuple(capacity.pieces(tier) for tier in range(capacity.num_tiers)),
            capacity.codebook_of,
            tuple(size for (size,) in capacity.codebook_shapes),
        )
        books = range(len(coder.sizes))
        coordinates = [flat_index(capacity.pieces_of_codebook(number), mean.device).coordinate for number in books]
        of_numbers = None if is_whole else units[torch.cat(coordinates)]
        starts = accumulate(coder.sizes, initial=0)
        spans = [
            (start + piece.entry, start + piece.entry + piece.width * piece.num_centroids)
            for start, number in zip(starts, books, strict=False)
            for piece in capacity.pieces_of_codebook(number)
        ]
        bounds = torch.tensor(spans, device=mean.device)
        subspace = torch.bucketize(
            torch.arange(coder.num_values, device=mean.device), bounds[:, 1].contiguous(), right=True
        )
        given = (capacity, buffers, _versions(buffers), coder, of_numbers)
        return cls(*given, bounds, subspace, coder.searches.numbers)

    def is_of(self, capacity: Capacity, buffers: tuple[Tensor, ...]) -> bool:
        """Whether it was made from these, and they have not changed since."""
        same = self.capacity is capacity and all(a is b for a, b in zip(self.buffers, buffers, strict=True))
        versions = _versions(buffers)
        return same and None not in versions and versions == self.versions

    def values(self, parameter: Tensor, centroid_dtype: str) -> Tensor:
        """The codebooks of a parameter, flat, as the coder takes them; differentiable by torch's operators."""
        flat = parameter.view(-1)[: self.coder.num_values].float()
        if self.units is None:
            return flat
        by_kernel = centroid_dtype == "int8" and not (flat.requires_grad or torch.compiler.is_compiling())
        if by_kernel and (rounded := ops.round_subspaces(flat, self.units, self.spans)) is not None:
            return rounded
        return round_centroids(flat * self.units, centroid_dtype, self._scales)

    def _scales(self, values: Tensor) -> Tensor:
        """Of the int8 steps of each number's subspace."""
        peaks = values.new_zeros(len(self.spans)).scatter_reduce(0, self.subspace, values.abs(), "amax")
        return scales_of(peaks)[self.subspace]


def _versions(tensors: tuple[Tensor, ...]) -> list[int | None]:
    """How often each tensor was changed in place; None where torch does not count."""
    return [None if tensor.is_inference() else tensor._version for tensor in tensors]
