"""MixedCoder: what turns the rows of a layer with a plan into codes and back."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from mgqe.checks.waiting import reads_wait
from mgqe.ops._descriptor import CPiece, c_pieces
from mgqe.ops.layout.pieces import Piece
from mgqe.ops.layout.searches import Searches, mixed_searches

POINTERS = ("mean", "encoder", "encoder_scales", "matrix", "column_scales", "units", "steps")


class CCoderTier(ctypes.Structure):
    """mgqe_coder_tier."""

    _fields_ = (("pieces", ctypes.POINTER(CPiece)), ("entries", c_int64), ("start", c_int64))


class CCoder(ctypes.Structure):
    """mgqe_coder."""

    _fields_ = (
        *((name, c_void_p) for name in POINTERS),
        ("tiers", ctypes.POINTER(CCoderTier)),
        *((name, c_int64) for name in ("num_tiers", "dim", "num_coordinates", "num_subspaces")),
    )


@dataclass(frozen=True, eq=False)
class MixedCoder:
    """What turns rows into codes and back in a plan: all but the centroids, which training moves.

    Training moves numbers that are centroids in units of their coordinates. Where there are steps, these are the values
    that the kernels take: the values times the units, in whole steps from -127 to 127, are the numbers that the matrix
    takes, and times the steps these are the centroids. Without steps all three are the values.

    Attributes:
        mean: float32 ``(d,)``, as are all the others, contiguous.
        encoder: ``(d, L)``: coordinates are ``(rows - mean) @ encoder``.
        matrix: ``(L, d)``: rows are ``mean + numbers @ matrix``.
        column_scales: ``(d,)``, which the products are multiplied with before the mean is added; or None.
        units: ``(L,)``; also what gradients of values are multiplied with.
        steps: ``(L,)``, or None.
        layouts: the subspaces as the rows of each tier have them.
        codebook_of: the codebook of each tier.
        sizes: how many values each flat codebook holds. The codebooks lie one after another.
    """

    mean: Tensor
    encoder: Tensor
    matrix: Tensor
    column_scales: Tensor | None
    units: Tensor
    steps: Tensor | None
    layouts: tuple[tuple[Piece, ...], ...]
    codebook_of: tuple[int, ...]
    sizes: tuple[int, ...]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each tier's codebook begins."""
        starts = list(accumulate(self.sizes, initial=0))
        return tuple(starts[number] for number in self.codebook_of)

    @cached_property
    def encoder_scales(self) -> Tensor | None:
        """``(d,)``, the diagonal of an encoder with zeros beside it; None of others, and where to look would wait."""
        diagonal = self.encoder.diagonal()
        if reads_wait(self.encoder.device) or not torch.equal(self.encoder, torch.diag(diagonal)):
            return None
        return diagonal.contiguous()

    @property
    def num_values(self) -> int:
        """Of all codebooks."""
        return sum(self.sizes)

    def book(self, values: Tensor, tier: int) -> Tensor:
        """The flat codebook of a tier among all of them."""
        return values[self.starts[tier] :][: self.sizes[self.codebook_of[tier]]]

    @cached_property
    def searches(self) -> Searches:
        """Of all tiers, as the kernels for GPUs take them."""
        return mixed_searches(self.layouts, self.starts, self.num_values)

    @cached_property
    def c_coder(self) -> CCoder:
        """The coder as the kernels read it; valid while this object lives."""
        tiers = (CCoderTier * len(self.layouts))()
        for g, layout in enumerate(self.layouts):
            tiers[g].pieces = c_pieces(layout)
            tiers[g].entries, tiers[g].start = self.sizes[self.codebook_of[g]], self.starts[g]
        coder = CCoder(tiers=tiers, num_tiers=len(self.layouts))
        for name in POINTERS:
            tensor = getattr(self, name)
            setattr(coder, name, None if tensor is None else tensor.data_ptr())
        coder.dim, coder.num_coordinates = self.encoder.shape
        coder.num_subspaces = len(self.layouts[0])
        return coder
