"""A frozen table as the kernels see it: plain C structs that point into its tensors (``mgqe_native.h``)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_int32, c_int64, c_void_p
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from mgqe.checks.scalars import as_int, as_ints
from mgqe.ops._checks import codebook_layout
from mgqe.ops.layout.packed_format import BLOCK_BITS, LEVEL_BITS, MAX_BITS, MAX_TIERS, WORDS_PER_BLOCK, level_lengths
from mgqe.ops.layout.pieces import Piece, check_bits, codebook_sizes, mixed_row_bytes, pieces

DTYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2}


# What the kernels read beyond the centroids of a flat codebook, and what the rows of a matrix are multiples of.
_BOOK_ROOM = 16
_MATRIX_STEP = 16
# What kernels that multiply bytes take: bits of a code, codes of a row, and numbers of a codebook less than so many.
_BYTE, _MAX_CODES, _MAX_BOOK = 8, 1024, 1 << 16


class CPiece(ctypes.Structure):
    _fields_ = (
        ("bit", c_int64),
        ("entry", c_int64),
        ("bits", c_int32),
        ("coordinate", c_int32),
        ("width", c_int32),
        ("num_centroids", c_int32),
    )


class CTier(ctypes.Structure):
    _fields_ = (
        ("codes", c_void_p),
        ("centroids", c_void_p),
        ("scales", c_void_p),
        ("layout", POINTER(CPiece)),
        ("bytes", c_void_p),
        ("levels", c_void_p),
        ("book_floats", c_int64),
        ("rows", c_int64),
        ("row_bytes", c_int64),
        ("bits", c_int32),
        ("num_subspaces", c_int32),
        ("pieces", c_int32),
        ("num_centroids", c_int32),
        ("width", c_int32),
        ("dtype", c_int32),
        ("preceding", c_int32),
        ("following", c_int32),
    )


class CLevel(ctypes.Structure):
    _fields_ = (("bits", c_void_p), ("ranks", c_void_p), ("length", c_int64), ("tier", c_int64))


class CTable(ctypes.Structure):
    _fields_ = (
        ("tiers", POINTER(CTier)),
        ("levels", POINTER(CLevel)),
        ("starts", POINTER(c_int64)),
        ("num_embeddings", c_int64),
        ("mean", c_void_p),
        ("matrix", c_void_p),
        ("column_scales", c_void_p),
        ("byte_matrix", c_void_p),
        ("byte_sums", c_void_p),
        ("embedding_dim", c_int64),
        ("num_coordinates", c_int64),
        ("padding_idx", c_int64),
        ("mapped_ids", c_int64),
        ("num_tiers", c_int32),
        ("num_levels", c_int32),
        ("last_tier", c_int32),
        ("diagonal", c_int32),
        ("mapped_tiers", c_int32),
    )


@dataclass(frozen=True)
class TableBuffers:
    """The tensors and numbers of a frozen table, as the operators of ``torch.ops.mgqe`` take them, in their order.

    Attributes:
        codes: of each tier: packed rows, uint8 ``(n_g, row_bytes)``, as :func:`mgqe.codec.packing.pack` makes them.
        centroids: of each codebook: ``(Dc, Kc, sc)`` in the layout of :func:`mgqe.ops.gather`; float32, float16, or
            int8 with the float32 value ``int8 * scale[piece]``.
        scales: of each codebook: ``(Dc,)`` float32 for int8, else an empty tensor.
        map_bits, map_ranks, order: the tier map (:class:`mgqe.codec.tier_map.TierMap`); empty when ids are in
            frequency order, tier g then being the next ``sizes[g]`` ids. Tiers beyond those in ``order`` are
            extents: ranges of ids appended after the map was made.
        splits: of each tier of the map, how many entries of ``codes``, one after another, have its rows, each with an
            entry of its own in ``sizes`` and the other lists; empty where each has one.
        sizes, bits, num_subspaces, codebook_of: of each tier: its ids, the bits of a code, the codes of a row, and the
            codebook.
        embedding_dim: d.
        padding_idx: the id whose row is zeros, -1 for none.
        widths: of each subspace, where these differ in width or in bits: a *mixed* table. Empty in all other tables. A
            codebook is then flat, ``(sum over subspaces of K_j * width_j,)``, with scales ``(D,)``, and ``bits`` are
            those of a tier's widest code.
        code_bits: of a mixed table: the bits of each code, 0 to 16, of tier 0, then of tier 1, and so on.
        mean, matrix, matrix_scales: of a mixed table whose rows are mean + coordinates @ matrix: float32 ``(d,)``;
            ``(L, d)`` of float32, float16, or int8 with the float32 value ``int8 * scale[coordinate]``; ``(L,)`` for
            int8, else None. None where rows are their coordinates, L = d.
        column_scales: float32 ``(d,)``, instead of matrix_scales, where coordinates are whole numbers (int8 centroids
            without scales) and rows are mean + column_scales * (coordinates @ matrix), the matrix being int8.
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
    widths: Sequence[int] = ()
    code_bits: Sequence[int] = ()
    mean: Tensor | None = None
    matrix: Tensor | None = None
    matrix_scales: Tensor | None = None
    column_scales: Tensor | None = None
    splits: Sequence[int] = ()

    @property
    def is_mixed(self) -> bool:
        """Whether subspaces have widths and bits of their own."""
        return len(self.widths) > 0

    @property
    def num_coordinates(self) -> int:
        """L, the numbers that the codes of a row decode to; d unless there is a matrix."""
        return sum(self.widths) if self.is_mixed else self.embedding_dim

    @property
    def num_embeddings(self) -> int:
        """Rows of the table, in all tiers."""
        return sum(self.sizes)

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self.codes[0].device

    @property
    def mapped_tiers(self) -> int:
        """Entries of tiers that the tier map splits, the first ones; 0 when every tier is a range of ids."""
        return sum(self.splits) or (len(self.order) if self.map_bits else 0)

    @property
    def entries(self) -> list[range]:
        """Of each tier of the map, its entries."""
        ends = list(accumulate(self.splits or [1] * len(self.order), initial=0))
        return [range(start, end) for start, end in pairwise(ends)]

    @property
    def mapped_sizes(self) -> list[int]:
        """Of each tier of the map, its ids."""
        return [sum(self.sizes[a] for a in of_tier) for of_tier in self.entries]

    @property
    def mapped_ids(self) -> int:
        """Ids that the tier map knows; those from here on are in tiers that are ranges."""
        return sum(self.sizes[: self.mapped_tiers])

    def tensors(self) -> list[Tensor]:
        """All of its tensors."""
        transform = (self.mean, self.matrix, self.matrix_scales, self.column_scales)
        lists = (self.codes, self.centroids, self.scales, self.map_bits, self.map_ranks)
        return [*(each for of_list in lists for each in of_list), *(each for each in transform if each is not None)]

    def without_holding(self) -> TableBuffers:
        """The same memory by other tensors, so that those of this table can be let go of."""
        return TableBuffers(**{f.name: _mapped(Tensor.detach, getattr(self, f.name)) for f in fields(self)})

    def is_the_same_as(self, other: TableBuffers) -> bool:
        """Whether the other's numbers are these, and its tensors lie where these do, with their shapes and types."""
        return all(
            _mapped(_place, getattr(self, f.name)) == _mapped(_place, getattr(other, f.name)) for f in fields(self)
        )

    def with_plain_numbers(self) -> TableBuffers:
        """The same table, its numbers as plain ints; raises TypeError for anything that is no whole number."""
        names = ("order", "sizes", "bits", "num_subspaces", "codebook_of", "widths", "code_bits", "splits")
        numbers: dict[str, Any] = {name: as_ints(name, getattr(self, name)) for name in names}
        numbers |= {name: as_int(name, getattr(self, name)) for name in ("embedding_dim", "padding_idx")}
        return replace(self, **numbers)

    def arguments(self) -> list[Any]:
        """The attributes in order, as the operators take them. One by one: compilers do not see through ``vars``."""
        tensors = [list(t) for t in (self.codes, self.centroids, self.scales, self.map_bits, self.map_ranks)]
        numbers = [list(n) for n in (self.order, self.sizes, self.bits, self.num_subspaces, self.codebook_of)]
        splits = [list(self.splits)] if self.splits else []  # what has none is as before there were any
        even = [*tensors, *numbers, self.embedding_dim, self.padding_idx]
        if not self.is_mixed:
            return even + splits
        transform = [self.mean, self.matrix, self.matrix_scales, self.column_scales]
        return [*even, list(self.widths), list(self.code_bits), *transform, *splits]

    @classmethod
    def of_arguments(cls, arguments: Sequence[Any]) -> TableBuffers:
        """The inverse of :meth:`arguments`; splits may be left out."""
        of_even = list(arguments)
        if len(of_even) == _EVEN_ARGUMENTS + 1:
            splits = of_even.pop()
            return replace(cls(*of_even), splits=splits)
        return cls(*arguments)

    def operator(self, name: str) -> Any:
        """The operator of this name that takes these arguments: mixed tables have more of them."""
        return getattr(torch.ops.mgqe, f"{name}_mixed" if self.is_mixed else name)

    def bits_of(self, tier: int) -> Sequence[int]:
        """Of a mixed table: the bits of each code of a tier's rows."""
        subspaces = len(self.widths)
        return self.code_bits[tier * subspaces : (tier + 1) * subspaces]

    def pieces(self, tier: int) -> tuple[Piece, ...]:
        """Of a mixed table: where the pieces of a tier's rows lie."""
        return pieces(self.widths, self.bits_of(tier), self.codebook_sizes(self.codebook_of[tier]))

    def codebook_sizes(self, codebook: int) -> tuple[int, ...]:
        """Of a mixed table: the centroids that a codebook holds for each subspace."""
        return codebook_sizes([self.bits_of(g) for g, read in enumerate(self.codebook_of) if read == codebook])

    def matrix_values(self) -> Tensor | None:
        """The matrix as it decodes, float32 ``(L, d)``; whole numbers where there are column scales."""
        if self.matrix is None or self.matrix_scales is None:
            return None if self.matrix is None else self.matrix.float()
        return self.matrix.float() * self.matrix_scales[:, None]

    def values(self, codebook: int) -> Tensor:
        """A codebook's centroids as they decode, float32: ``(Dc, Kc, sc)``, or flat in a mixed table."""
        book = self.centroids[codebook]
        if self.is_mixed:
            if book.dtype != torch.int8 or self.column_scales is not None:
                return book.float()
            lengths = [w * k for w, k in zip(self.widths, self.codebook_sizes(codebook), strict=True)]
            sizes = torch.tensor(lengths, device=book.device)
            return book.float() * torch.repeat_interleave(self.scales[codebook], sizes)
        return book.float() * self.scales[codebook][:, None, None] if book.dtype == torch.int8 else book.float()

    def check(self) -> None:
        """Raises TypeError or ValueError, naming the argument, unless everything fits together."""
        m = len(self.sizes)
        for name in ("codes", "bits", "num_subspaces", "codebook_of"):
            if len(getattr(self, name)) != m:
                raise ValueError(f"{name} must have one entry per tier, {m}, got {len(getattr(self, name))}")
        if not 1 <= m <= MAX_TIERS:
            raise ValueError(f"a table has 1 to {MAX_TIERS} tiers, got {m}")
        if self.padding_idx != -1 and not 0 <= self.padding_idx < self.num_embeddings:
            raise ValueError(f"padding_idx must be -1 or in 0 .. {self.num_embeddings - 1}, got {self.padding_idx}")
        if len(devices := {str(tensor.device) for tensor in self.tensors()}) > 1:
            raise ValueError(f"the tensors of a table must be on one device, got {', '.join(sorted(devices))}")
        self._check_mixed(m)
        for g in range(m):
            self._check_tier(g)
        self._check_map(m)

    def _check_mixed(self, m: int) -> None:
        if not self.is_mixed:
            if self.code_bits or self.mean is not None or self.matrix is not None:
                raise ValueError("code_bits, mean and matrix are for tables with widths")
            return
        if min(self.widths) < 1 or len(self.code_bits) != m * len(self.widths):
            raise ValueError(f"widths must be positive, and code_bits {m} x {len(self.widths)}, one for each code")
        check_bits(self.code_bits)
        if (self.mean is None) != (self.matrix is None):
            raise ValueError("a table has a mean and a matrix, or neither")
        if self.mean is None or self.matrix is None:
            if self.num_coordinates != self.embedding_dim:
                raise ValueError(f"widths sum to {self.num_coordinates}, but the table has {self.embedding_dim}")
            return
        expected = {"mean": (self.embedding_dim,), "matrix": (self.num_coordinates, self.embedding_dim)}
        for name, tensor in (("mean", self.mean), ("matrix", self.matrix)):
            if tuple(tensor.shape) != expected[name] or not tensor.is_contiguous():
                raise ValueError(f"{name} must be contiguous {expected[name]}, got {tuple(tensor.shape)}")
        if self.mean.dtype != torch.float32 or self.matrix.dtype not in DTYPES:
            raise TypeError(f"mean must be float32, matrix float32, float16 or int8, got {self.matrix.dtype}")
        given = [scales is not None for scales in (self.matrix_scales, self.column_scales)]
        if sum(given) != (self.matrix.dtype == torch.int8):
            raise ValueError("a matrix of int8 has scales of its rows or of its columns, and no other has")
        columns, scales = self.column_scales, self.matrix_scales
        if columns is not None and (columns.dtype != torch.float32 or tuple(columns.shape) != expected["mean"]):
            raise ValueError(f"column_scales must be float32 {expected['mean']}, got {tuple(columns.shape)}")
        if columns is not None and any(book.dtype != torch.int8 for book in self.centroids):
            raise TypeError("with column_scales centroids must be int8")
        if scales is not None and (scales.dtype != torch.float32 or tuple(scales.shape) != expected["matrix"][:1]):
            raise ValueError(f"matrix_scales must be float32 {expected['matrix'][:1]}, got {tuple(scales.shape)}")

    def _check_tier(self, g: int) -> None:
        codes, bits, subspaces = self.codes[g], self.bits[g], self.num_subspaces[g]
        if not 1 <= bits <= MAX_BITS or subspaces < 1:
            raise ValueError(f"tier {g}: bits must be 1 to {MAX_BITS} and num_subspaces positive")
        if codes.dtype != torch.uint8:
            raise TypeError(f"codes of tier {g} must be packed uint8, got {codes.dtype}: see mgqe.codec.packing.pack")
        row_bytes = mixed_row_bytes(self.bits_of(g)) if self.is_mixed else -(-subspaces * bits // 8)
        expected = (self.sizes[g], row_bytes)
        if tuple(codes.shape) != expected or not codes.is_contiguous():
            raise ValueError(f"codes of tier {g} must be contiguous {expected}, got {tuple(codes.shape)}")
        if not 0 <= self.codebook_of[g] < len(self.centroids):
            raise ValueError(f"tier {g} names codebook {self.codebook_of[g]} of {len(self.centroids)}")
        book = self.centroids[self.codebook_of[g]]
        if book.dtype not in DTYPES:
            raise TypeError(f"centroids must be float32, float16 or int8, got {book.dtype}")
        if self.is_mixed:
            return self._check_flat_book(g, book)
        if book.dim() != 3 or 0 in book.shape or not book.is_contiguous():
            raise ValueError(f"centroids must be contiguous (pieces, K, width), got {tuple(book.shape)}")
        dim = subspaces * codebook_layout(subspaces, book.shape[0]) * book.shape[2]
        if dim != self.embedding_dim:
            raise ValueError(f"tier {g} decodes to {dim} dimensions, the table has {self.embedding_dim}")
        if book.dtype == torch.int8:
            scales = self.scales[self.codebook_of[g]]
            if scales.dtype != torch.float32 or scales.numel() != book.shape[0]:
                raise ValueError(f"int8 centroids need {book.shape[0]} float32 scales, got {scales.numel()}")

    def _check_flat_book(self, g: int, book: Tensor) -> None:
        if self.num_subspaces[g] != len(self.widths):
            raise ValueError(f"tier {g} has {self.num_subspaces[g]} subspaces, but there are {len(self.widths)} widths")
        number = self.codebook_of[g]
        size = sum(w * k for w, k in zip(self.widths, self.codebook_sizes(number), strict=True))
        if tuple(book.shape) != (size,) or not book.is_contiguous():
            raise ValueError(f"centroids of codebook {number} must be contiguous ({size},), got {tuple(book.shape)}")
        scales = self.scales[number]
        if self.column_scales is not None:
            return
        if book.dtype == torch.int8 and (scales.dtype != torch.float32 or scales.numel() != len(self.widths)):
            raise ValueError(f"int8 centroids need {len(self.widths)} float32 scales, got {scales.numel()}")

    def _check_map(self, m: int) -> None:
        levels, mapped = len(self.map_bits), self.mapped_tiers
        if levels == 0:
            return
        if self.splits and (len(self.splits) != len(self.order) or min(self.splits) < 1):
            raise ValueError(f"splits must be at least 1 for each of {len(self.order)} tiers, got {self.splits}")
        if mapped > m or len(self.map_ranks) != levels or sorted(self.order) != list(range(levels + 1)):
            raise ValueError(f"a tier map of {mapped} tiers has {mapped - 1} levels and an order of all tiers")
        for of_tier in self.entries:
            shapes = {(self.bits[a], self.num_subspaces[a], self.codebook_of[a], *self.bits_of(a)) for a in of_tier}
            if len(shapes) > 1:
                raise ValueError("the entries of a tier must have the same bits, subspaces and codebook")
        for level, length in enumerate(level_lengths(self.mapped_sizes, self.order)):
            blocks = -(-length // BLOCK_BITS)
            words, ranks = self.map_bits[level], self.map_ranks[level]
            if words.dtype != torch.int64 or ranks.dtype != torch.int32:
                raise TypeError(f"tier map level {level} must be int64 bits and int32 ranks")
            if words.numel() != WORDS_PER_BLOCK * blocks or ranks.numel() != blocks:
                raise ValueError(
                    f"tier map level {level} must have {WORDS_PER_BLOCK * blocks} words and {blocks} ranks"
                )


# What operators take of a table, as schemas write it.
EVEN_SCHEMA = (
    "Tensor[] codes, Tensor[] centroids, Tensor[] scales, Tensor[] map_bits, Tensor[] map_ranks, int[] order, "
    "int[] sizes, int[] bits, int[] num_subspaces, int[] codebook_of, int embedding_dim, int padding_idx"
)
_EVEN_ARGUMENTS = len(EVEN_SCHEMA.split(","))
_SPLITS = "int[] splits=[]"  # programs that were exported before there were any do not give them
MIXED_SCHEMA = (
    f"{EVEN_SCHEMA}, int[] widths, int[] code_bits, Tensor? mean, Tensor? matrix, Tensor? matrix_scales, "
    f"Tensor? column_scales, {_SPLITS}"
)
EVEN_SCHEMA = f"{EVEN_SCHEMA}, {_SPLITS}"


def _mapped(of_tensor: Callable[[Tensor], Any], value: Any) -> Any:
    """What ``of_tensor`` makes of a tensor, or of each in a list; a number itself."""
    if isinstance(value, Tensor):
        return of_tensor(value)
    return [_mapped(of_tensor, each) for each in value] if isinstance(value, (list, tuple)) else value


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if it is mapped from a file at an address that is no multiple of its element size."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % tensor.element_size() == 0 else tensor.clone()


@lru_cache(maxsize=256)
def c_pieces(layout: tuple[Piece, ...]) -> ctypes.Array[CPiece]:
    """The pieces of a tier as the kernels read them."""
    pieces = [CPiece(p.bit, p.entry, p.bits, p.coordinate, p.width, p.num_centroids) for p in layout]
    return (CPiece * len(pieces))(*pieces)


def _flat_book(table: TableBuffers, codebook: int) -> Tensor:
    """A flat codebook as float32, with room behind it."""
    return torch.nn.functional.pad(table.values(codebook), (0, _BOOK_ROOM))


def _mean_and_matrix(table: TableBuffers) -> tuple[Tensor | None, Tensor | None]:
    """The mean and the matrix as float32, their rows filled up with zeros."""
    matrix = table.matrix_values()
    if matrix is None or table.mean is None:
        return None, None
    rest = (0, -table.embedding_dim % _MATRIX_STEP)
    return torch.nn.functional.pad(table.mean, rest), torch.nn.functional.pad(matrix, rest).contiguous()


def _is_identity(table: TableBuffers) -> bool:
    """Whether there are column scales and the matrix is the identity, so that it need not be multiplied with."""
    matrix = table.matrix
    if table.column_scales is None or matrix is None or matrix.shape[0] != matrix.shape[1]:
        return False
    return torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))


def _column_scales(table: TableBuffers) -> Tensor | None:
    """The column scales, filled up with zeros."""
    scales = table.column_scales
    return None if scales is None else torch.nn.functional.pad(scales, (0, -table.embedding_dim % _MATRIX_STEP))


@dataclass(frozen=True)
class _Bytes:
    """What kernels that multiply bytes read of a table of whole numbers; see ``mgqe_native.h``."""

    books: list[Tensor]
    levels: list[Tensor | None]
    matrix: Tensor
    sums: Tensor

    @classmethod
    def of(cls, table: TableBuffers) -> _Bytes | None:
        """None of tables that such kernels do not take."""
        if table.column_scales is None or table.matrix is None or max(table.code_bits) > _BYTE:
            return None
        if len(table.widths) > _MAX_CODES or max(book.numel() for book in table.centroids) >= _MAX_BOOK:
            return None
        shifted = [(book.to(torch.int16) + 128).to(torch.uint8) for book in table.centroids]
        books = [torch.nn.functional.pad(book, (0, _BOOK_ROOM)) for book in shifted]
        rows, columns = table.matrix.shape
        filled = torch.nn.functional.pad(table.matrix, (0, -columns % _MATRIX_STEP, 0, -rows % 4))
        sums = filled.to(torch.int32).sum(0, dtype=torch.int32) * -128
        levels = [_levels(books[number], table.pieces(g)) for g, number in enumerate(table.codebook_of)]
        return cls(books, levels, filled.reshape(-1, 4, filled.shape[1]).transpose(1, 2).contiguous(), sums)


def _levels(book: Tensor, layout: tuple[Piece, ...]) -> Tensor | None:
    """The centroids that coordinates with codes of as many bits share; None where they do not."""
    if any(piece.width > 1 or piece.bits > LEVEL_BITS for piece in layout):
        return None
    levels = book.new_zeros(2 << LEVEL_BITS)
    for bits in {piece.bits for piece in layout}:
        entries = torch.tensor([piece.entry for piece in layout if piece.bits == bits])
        centroids = book[entries[:, None] + torch.arange(1 << bits)]
        if not torch.equal(centroids, centroids[:1].expand_as(centroids)):
            return None
        start = 1 << bits if bits == LEVEL_BITS else (1 << bits) - 1
        levels[start : start + (1 << bits)] = centroids[0]
    return levels


class Descriptor:
    """The C structs of a table on the CPU. Keeps alive the tensors that they point into.

    Tensors are not copied where their addresses are aligned, but for the codebooks and the matrix of a mixed table,
    which the kernels read as float32 with zeros behind: 4 bytes per number of a codebook, and 64 bytes per coordinate
    and 16 columns of the matrix. That is some tens of kB for codes of up to 8 bits.
    """

    def __init__(self, table: TableBuffers) -> None:
        books = [_flat_book(table, c) if table.is_mixed else _aligned(b) for c, b in enumerate(table.centroids)]
        scales = [_aligned(scale) for scale in table.scales]
        maps = [(_aligned(b), _aligned(r)) for b, r in zip(table.map_bits, table.map_ranks, strict=True)]
        layouts = [c_pieces(table.pieces(g)) for g in range(len(table.sizes))] if table.is_mixed else []
        in_bytes = _Bytes.of(table)
        tiers = (CTier * len(table.sizes))()
        for g, tier in enumerate(tiers):
            book = books[table.codebook_of[g]]
            tier.codes = table.codes[g].data_ptr()
            tier.rows, tier.row_bytes = table.codes[g].shape
            tier.bits, tier.num_subspaces = table.bits[g], table.num_subspaces[g]
            tier.centroids, tier.dtype = book.data_ptr(), DTYPES[book.dtype]
            if table.is_mixed:
                tier.layout = layouts[g]
                if in_bytes is not None:
                    tier.bytes = in_bytes.books[table.codebook_of[g]].data_ptr()
                    shared = in_bytes.levels[g]
                    tier.levels = None if shared is None else shared.data_ptr()
                tier.bits, tier.book_floats = max(1, *table.bits_of(g)), book.numel()
                continue
            tier.pieces, tier.num_centroids, tier.width = book.shape
            if book.dtype == torch.int8:
                tier.scales = scales[table.codebook_of[g]].data_ptr()
        levels = (CLevel * len(maps))()
        entries = table.entries if maps else []
        for of_tier in entries:
            for number, a in enumerate(of_tier):
                tiers[a].preceding, tiers[a].following = number, len(of_tier) - 1 - number
        lengths = level_lengths(table.mapped_sizes, table.order) if maps else ()
        for level, length, tier_number, (bits, ranks) in zip(levels, lengths, table.order, maps):
            level.bits, level.ranks = bits.data_ptr(), ranks.data_ptr()
            level.length, level.tier = length, entries[tier_number][0]
        starts = (c_int64 * (len(table.sizes) + 1))(*accumulate(table.sizes, initial=0))
        mean, matrix = _mean_and_matrix(table)
        column_scales = _column_scales(table)
        transform = (mean, matrix, column_scales, in_bytes)
        self._alive = (table, books, scales, maps, layouts, tiers, levels, starts, transform)
        self.table = CTable(
            tiers=tiers,
            levels=levels,
            starts=starts,
            num_embeddings=table.num_embeddings,
            mean=None if mean is None else mean.data_ptr(),
            matrix=None if matrix is None else matrix.data_ptr(),
            column_scales=None if column_scales is None else column_scales.data_ptr(),
            byte_matrix=None if in_bytes is None else in_bytes.matrix.data_ptr(),
            byte_sums=None if in_bytes is None else in_bytes.sums.data_ptr(),
            embedding_dim=table.embedding_dim,
            num_coordinates=table.num_coordinates,
            padding_idx=table.padding_idx,
            mapped_ids=table.mapped_ids,
            num_tiers=len(tiers),
            num_levels=len(maps),
            last_tier=entries[table.order[-1]][0] if maps else 0,
            diagonal=_is_identity(table),
            mapped_tiers=table.mapped_tiers,
        )
        self.address = ctypes.addressof(self.table)
