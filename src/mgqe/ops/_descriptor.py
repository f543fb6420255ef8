"""A frozen table as the kernels see it: plain C structs that point into its tensors (``mgqe_native.h``)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from mgqe.ops._checks import codebook_layout
from mgqe.ops.packed_format import BLOCK_BITS, MAX_BITS, MAX_TIERS, WORDS_PER_BLOCK, level_lengths

DTYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2}


class CTier(ctypes.Structure):
    _fields_ = (
        ("codes", c_void_p),
        ("centroids", c_void_p),
        ("scales", c_void_p),
        ("rows", c_int64),
        ("row_bytes", c_int64),
        ("bits", c_int32),
        ("num_subspaces", c_int32),
        ("pieces", c_int32),
        ("num_centroids", c_int32),
        ("width", c_int32),
        ("dtype", c_int32),
    )


class CLevel(ctypes.Structure):
    _fields_ = (("bits", c_void_p), ("ranks", c_void_p), ("length", c_int64), ("tier", c_int64))


class CTable(ctypes.Structure):
    _fields_ = (
        ("tiers", POINTER(CTier)),
        ("levels", POINTER(CLevel)),
        ("starts", POINTER(c_int64)),
        ("num_embeddings", c_int64),
        ("embedding_dim", c_int64),
        ("padding_idx", c_int64),
        ("mapped_ids", c_int64),
        ("num_tiers", c_int32),
        ("num_levels", c_int32),
        ("last_tier", c_int32),
        ("mapped_tiers", c_int32),
    )


@dataclass(frozen=True)
class TableParts:
    """The tensors and numbers of a frozen table; see :func:`mgqe.ops.lookup` for each.

    Tiers beyond those in ``order`` are extents: ranges of ids appended after the tier map was made.
    """

    codes: Sequence[Tensor]
    centroids: Sequence[Tensor]
    scales: Sequence[Tensor]
    map_bits: Sequence[Tensor]
    map_ranks: Sequence[Tensor]
    order: Sequence[int]
    sizes: Sequence[int]
    bits: Sequence[int]
    num_subspaces: Sequence[int]
    codebook_of: Sequence[int]
    embedding_dim: int
    padding_idx: int

    @property
    def num_embeddings(self) -> int:
        """Rows of the table, all tiers together."""
        return sum(self.sizes)

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self.codes[0].device

    @property
    def mapped_tiers(self) -> int:
        """Tiers that the tier map splits, the first ones; 0 when every tier is a range of ids."""
        return len(self.order) if self.map_bits else 0

    @property
    def mapped_ids(self) -> int:
        """Ids that the tier map knows; those from here on are in tiers that are ranges."""
        return sum(self.sizes[: self.mapped_tiers])

    def check(self) -> None:
        """Raises TypeError or ValueError, naming the part, unless everything fits together."""
        m = len(self.sizes)
        for name in ("codes", "bits", "num_subspaces", "codebook_of"):
            if len(getattr(self, name)) != m:
                raise ValueError(f"{name} must have one entry a tier, {m}, got {len(getattr(self, name))}")
        if not 1 <= m <= MAX_TIERS:
            raise ValueError(f"a table has 1 to {MAX_TIERS} tiers, got {m}")
        if self.padding_idx != -1 and not 0 <= self.padding_idx < self.num_embeddings:
            raise ValueError(f"padding_idx must be -1 or in 0 .. {self.num_embeddings - 1}, got {self.padding_idx}")
        parts = (*self.codes, *self.centroids, *self.scales, *self.map_bits, *self.map_ranks)
        if len(devices := {str(part.device) for part in parts}) > 1:
            raise ValueError(f"the parts of a table must be on one device, got {', '.join(sorted(devices))}")
        for g in range(m):
            self._check_tier(g)
        self._check_map(m)

    def _check_tier(self, g: int) -> None:
        codes, bits, subspaces = self.codes[g], self.bits[g], self.num_subspaces[g]
        if not 1 <= bits <= MAX_BITS or subspaces < 1:
            raise ValueError(f"tier {g}: bits must be 1 to {MAX_BITS} and num_subspaces positive")
        if codes.dtype != torch.uint8:
            raise TypeError(f"codes of tier {g} must be packed uint8, got {codes.dtype}: see mgqe.codec.packing.pack")
        expected = (self.sizes[g], -(-subspaces * bits // 8))
        if tuple(codes.shape) != expected or not codes.is_contiguous():
            raise ValueError(f"codes of tier {g} must be contiguous {expected}, got {tuple(codes.shape)}")
        if not 0 <= self.codebook_of[g] < len(self.centroids):
            raise ValueError(f"tier {g} names codebook {self.codebook_of[g]} of {len(self.centroids)}")
        book = self.centroids[self.codebook_of[g]]
        if book.dtype not in DTYPES:
            raise TypeError(f"centroids must be float32, float16 or int8, got {book.dtype}")
        if book.dim() != 3 or 0 in book.shape or not book.is_contiguous():
            raise ValueError(f"centroids must be contiguous (pieces, K, width), got {tuple(book.shape)}")
        dim = subspaces * codebook_layout(subspaces, book.shape[0]) * book.shape[2]
        if dim != self.embedding_dim:
            raise ValueError(f"tier {g} decodes to {dim} dimensions, the table has {self.embedding_dim}")
        if book.dtype == torch.int8:
            scales = self.scales[self.codebook_of[g]]
            if scales.dtype != torch.float32 or scales.numel() != book.shape[0]:
                raise ValueError(f"int8 centroids need {book.shape[0]} float32 scales, got {scales.numel()}")

    def _check_map(self, m: int) -> None:
        levels, mapped = len(self.map_bits), self.mapped_tiers
        if levels == 0:
            return
        if mapped > m or len(self.map_ranks) != levels or sorted(self.order) != list(range(levels + 1)):
            raise ValueError(f"a tier map of {mapped} tiers has {mapped - 1} levels and an order of all tiers")
        for level, length in enumerate(level_lengths(self.sizes, self.order)):
            blocks = -(-length // BLOCK_BITS)
            words, ranks = self.map_bits[level], self.map_ranks[level]
            if words.dtype != torch.int64 or ranks.dtype != torch.int32:
                raise TypeError(f"tier map level {level} must be int64 bits and int32 ranks")
            if words.numel() != WORDS_PER_BLOCK * blocks or ranks.numel() != blocks:
                raise ValueError(
                    f"tier map level {level} must have {WORDS_PER_BLOCK * blocks} words and {blocks} ranks"
                )


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if a mapped file left it at an address that its type cannot have."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % tensor.element_size() == 0 else tensor.clone()


class Descriptor:
    """The C structs of a table on the CPU. Keeps alive the tensors that they point into."""

    def __init__(self, parts: TableParts) -> None:
        books = [_aligned(book) for book in parts.centroids]
        scales = [_aligned(scale) for scale in parts.scales]
        maps = [(_aligned(b), _aligned(r)) for b, r in zip(parts.map_bits, parts.map_ranks, strict=True)]
        tiers = (CTier * len(parts.sizes))()
        for g, tier in enumerate(tiers):
            book = books[parts.codebook_of[g]]
            tier.codes = parts.codes[g].data_ptr()
            tier.rows, tier.row_bytes = parts.codes[g].shape
            tier.bits, tier.num_subspaces = parts.bits[g], parts.num_subspaces[g]
            tier.centroids, tier.dtype = book.data_ptr(), DTYPES[book.dtype]
            tier.pieces, tier.num_centroids, tier.width = book.shape
            if book.dtype == torch.int8:
                tier.scales = scales[parts.codebook_of[g]].data_ptr()
        levels = (CLevel * len(maps))()
        lengths = level_lengths(parts.sizes, parts.order)
        for level, length, tier_number, (bits, ranks) in zip(levels, lengths, parts.order, maps):
            level.bits, level.ranks = bits.data_ptr(), ranks.data_ptr()
            level.length, level.tier = length, tier_number
        starts = (c_int64 * (len(parts.sizes) + 1))(*accumulate(parts.sizes, initial=0))
        self._kept = (parts, books, scales, maps, tiers, levels, starts)
        self.table = CTable(
            tiers=tiers,
            levels=levels,
            starts=starts,
            num_embeddings=parts.num_embeddings,
            embedding_dim=parts.embedding_dim,
            padding_idx=parts.padding_idx,
            mapped_ids=parts.mapped_ids,
            num_tiers=len(tiers),
            num_levels=len(maps),
            last_tier=parts.order[-1] if maps else 0,
            mapped_tiers=parts.mapped_tiers,
        )
        self.address = ctypes.addressof(self.table)
