"""Look-ups from packed codes: where an id's row lies, its bytes, its codes' centroids and the small matrix.

One kernel finds tier and row of each id, one goes from bytes to the numbers that the codes name, and, where there is a
matrix, to their product with it, in tensor cores where there are any. Where numbers and matrix are whole, as in tables
of ``int8_columns``, this is exact: sums of products of bytes are below 2^31 in int32. Products of floats are to
float32's precision ("tf32x3": three products of parts of 10 bits), and summed in another order than on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor

from mgqe.ops.triton_kernels.codes import read_numbers
from mgqe.ops.triton_kernels.on_device import on_its_gpu
from mgqe.ops.triton_kernels.scores import Scorer
from mgqe.ops.triton_kernels.tuning import tuned

IDS = 32  # of a program that locates rows
COORDINATES = 32  # of a program that decodes them
MAX_COLUMNS = 128  # of a program, where there is a matrix


@triton.jit
def _ones(words):
    """How many bits are set in int64 words, whose shifts copy the sign: masks clear the copies."""
    x = words - ((words >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    x = (x + (x >> 8)) & 0x00FF00FF00FF00FF
    x = (x + (x >> 16)) & 0x0000FFFF0000FFFF
    return (x + (x >> 32)) & 0xFF


@triton.jit(do_not_specialize=["num_ids", "mapped_ids", "num_levels", "num_entries", "last_tier"])
def _locate(
    ids,
    starts,
    levels,
    first_entry,
    tiers,
    places,
    num_ids,
    mapped_ids,
    num_levels,
    num_entries,
    last_tier,
    HAS_MAP: tl.constexpr,
    IDS: tl.constexpr,
):
    """Of each id the entry (a tier, or a part of one) and the row there."""
    at = tl.program_id(0).to(tl.int64) * IDS + tl.arange(0, IDS)
    inside = at < num_ids
    one = tl.load(ids + at, mask=inside, other=0)
    position = one
    if HAS_MAP:
        # An id's place in the order of tiers: the first of its tier's entries, and its rank in the tier.
        mapped = inside & (one < mapped_ids)
        index = tl.where(mapped, one, 0)
        tier = tl.zeros_like(one) + last_tier
        rank = index
        undecided = mapped
        for level in range(0, num_levels):
            words = tl.load(levels + 3 * level).to(tl.pointer_type(tl.int64))
            ranks = tl.load(levels + 3 * level + 1).to(tl.pointer_type(tl.int32))
            word = index >> 6
            current = tl.load(words + word, mask=undecided, other=0)
            before = tl.load(ranks + (index >> 8), mask=undecided, other=0).to(tl.int64)
            shift = index & 63
            before += _ones(current & ((tl.full((IDS,), 1, tl.int64) << shift) - 1))
            for back in range(1, 4):  # the whole words of the same 256 bits before this one
                earlier = undecided & ((word & 3) >= back)
                before += _ones(tl.load(words + word - back, mask=earlier, other=0))
            here = undecided & (((current >> shift) & 1) == 1)
            tier = tl.where(here, tl.load(levels + 3 * level + 2), tier)
            rank = tl.where(here, before, rank)
            undecided = undecided & (here == 0)
            index = tl.where(undecided, index - before, 0)
        rank = tl.where(undecided, index, rank)
        position = tl.where(mapped, tl.load(first_entry + tier, mask=mapped, other=0) + rank, one)
    entry = tl.zeros_like(one) - 1
    for e in range(0, num_entries):
        entry += (position >= tl.load(starts + e)).to(tl.int64)
    tl.store(tiers + at, entry.to(tl.int32), mask=inside)
    tl.store(places + at, position - tl.load(starts + entry, mask=inside, other=0), mask=inside)


@tuned(
    {"IDS": 32, "num_warps": 4},
    {"IDS": 64, "num_warps": 4},
    {"IDS": 128, "num_warps": 8},
    key=("length",),
    rows="num_ids",
)
@triton.jit(do_not_specialize=["num_ids", "length", "padding_idx"])
def _decode(
    ids,
    tiers,
    places,
    addresses,
    row_bytes,
    fields,
    book,
    out,
    num_ids,
    length,
    padding_idx,
    IDS: tl.constexpr,
    COORDINATES: tl.constexpr,
):
    """The numbers that the codes of ids name, (n, L); zeros for the padding."""
    at = tl.program_id(0).to(tl.int64) * IDS + tl.arange(0, IDS)
    coordinate = tl.program_id(1) * COORDINATES + tl.arange(0, COORDINATES)
    inside = at < num_ids
    tier = tl.load(tiers + at, mask=inside, other=0)
    place = tl.load(places + at, mask=inside, other=0)
    read = inside & (tl.load(ids + at, mask=inside, other=0) != padding_idx)
    value = read_numbers(addresses, row_bytes, fields, book, tier, place, read, coordinate, length)
    there = inside[:, None] & (coordinate < length)[None, :]
    tl.store(out + at[:, None] * length + coordinate[None, :], value, mask=there)


@tuned(
    {"IDS": 32, "num_warps": 4},
    {"IDS": 64, "num_warps": 4},
    {"IDS": 64, "num_warps": 8},
    key=("length", "dim", "WHOLE"),
    rows="num_ids",
)
@triton.jit(do_not_specialize=["num_ids", "length", "dim", "padding_idx"])
def _decode_through(
    ids,
    tiers,
    places,
    addresses,
    row_bytes,
    fields,
    book,
    matrix,
    scales,
    mean,
    out,
    num_ids,
    length,
    dim,
    padding_idx,
    IDS: tl.constexpr,
    WHOLE: tl.constexpr,
    COORDINATES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """mean + numbers @ matrix, (n, d), of floats, and mean + scales * (numbers @ matrix) of int8; 0 for the padding."""
    at = tl.program_id(0).to(tl.int64) * IDS + tl.arange(0, IDS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside, within = at < num_ids, column < dim
    tier = tl.load(tiers + at, mask=inside, other=0)
    place = tl.load(places + at, mask=inside, other=0)
    total = tl.zeros((IDS, COLUMNS), tl.int32 if WHOLE else tl.float32)
    for start in range(0, length, COORDINATES):
        coordinate = start + tl.arange(0, COORDINATES)
        value = read_numbers(addresses, row_bytes, fields, book, tier, place, inside, coordinate, length)
        there = (coordinate < length)[:, None] & within[None, :]
        weight = tl.load(matrix + coordinate[:, None] * dim + column[None, :], mask=there, other=0)
        if WHOLE:
            total = tl.dot(value, weight, total, out_dtype=tl.int32)
        else:
            total = tl.dot(value, weight, total, input_precision="tf32x3")
    product = total.to(tl.float32)
    if WHOLE:
        product = product * tl.load(scales + column, mask=within, other=0.0)[None, :]
    row = tl.load(mean + column, mask=within, other=0.0)[None, :] + product
    padding = tl.load(ids + at, mask=inside, other=0) == padding_idx
    row = tl.where(padding[:, None], 0.0, row)
    tl.store(out + at[:, None] * dim + column[None, :], row, mask=inside[:, None] & within[None, :])


@dataclass(frozen=True, eq=False)
class GpuTable:
    """A frozen table as the kernels read it. The packed codes are not copied, and must live as long as this.

    Attributes:
        codes: of each entry, packed rows uint8.
        starts: where each entry's ids begin, in the order of entries.
        coordinates: of each entry, of each coordinate: where its code begins in a row, the code's bits, the width of
            the subspace, the place in ``book`` of its number in centroid 0, and the last centroid.
        subspaces: of each entry, of each code of a row: where it begins, and its bits.
        book: the numbers of all codebooks, flat: float32, or int8 where ``matrix`` is.
        levels: of each level of the tier map that has ids: its words int64, its ranks int32, and the tier that it
            splits off; empty where ids are in the order of tiers.
        first_entry: of each tier of the map, the position of its first id in the order of entries.
        last_tier, mapped_ids: the tier of ids that no level splits off; how many ids the map knows.
        padding_idx: -1 for none.
        mean, matrix: float32 (d,) and (L, d) of float32 or int8; None where rows are their coordinates.
        column_scales: float32 (d,), of a matrix of int8.
    """

    codes: Sequence[Tensor]
    starts: Sequence[int]
    coordinates: Sequence[Sequence[tuple[int, int, int, int, int]]]
    subspaces: Sequence[Sequence[tuple[int, int]]]
    book: Tensor
    levels: Sequence[tuple[Tensor, Tensor, int]]
    first_entry: Sequence[int]
    last_tier: int
    mapped_ids: int
    padding_idx: int
    mean: Tensor | None
    matrix: Tensor | None
    column_scales: Tensor | None
    _starts: Tensor = field(init=False)
    _levels: Tensor = field(init=False)
    _first_entry: Tensor = field(init=False)
    _addresses: Tensor = field(init=False)
    _row_bytes: Tensor = field(init=False)
    _fields: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Copies the small tables to the device, once."""
        device, levels = self.book.device, [(w.data_ptr(), r.data_ptr(), tier) for w, r, tier in self.levels]
        lists = {
            "_starts": self.starts,
            "_levels": levels or [(0, 0, 0)],
            "_first_entry": self.first_entry or [0],
            "_addresses": [each.data_ptr() for each in self.codes],
            "_row_bytes": [each.shape[1] for each in self.codes],
            "_fields": self.coordinates,
        }
        for name, values in lists.items():
            object.__setattr__(self, name, torch.tensor(values, dtype=torch.int64, device=device))

    @on_its_gpu
    def __call__(self, ids: Tensor) -> Tensor:
        """Rows float32 (n, d) of ids int64 (n,), contiguous and in range.

        They have the bits of :func:`mgqe.ops.lookup`, but through a matrix of floats, where sums are in another order.
        """
        return self.numbers(ids) if self.matrix is None else self._through_the_matrix(ids, self.matrix)

    @on_its_gpu
    def numbers(self, ids: Tensor) -> Tensor:
        """What the codes of ids name, before a matrix: float32 (n, L), zeros for the padding."""
        n, length = ids.shape[0], len(self.coordinates[0])
        out = torch.empty((n, length), dtype=torch.float32, device=ids.device)
        if n:
            found = (*self.found(ids), self.book)
            _decode[lambda shape: (triton.cdiv(n, shape["IDS"]), triton.cdiv(length, COORDINATES))](
                *found, out, n, length, self.padding_idx, COORDINATES=COORDINATES
            )
        return out

    def found(self, ids: Tensor) -> tuple[Tensor, ...]:
        """What the kernels that read codes take first: the ids, where their rows lie, and the table."""
        n = ids.shape[0]
        tiers = torch.empty(n, dtype=torch.int32, device=ids.device)
        places = torch.empty(n, dtype=torch.int64, device=ids.device)
        _locate[(triton.cdiv(n, IDS),)](
            ids,
            self._starts,
            self._levels,
            self._first_entry,
            tiers,
            places,
            n,
            self.mapped_ids,
            len(self.levels),
            len(self.codes),
            self.last_tier,
            HAS_MAP=self.mapped_ids > 0,
            IDS=IDS,
        )
        return ids, tiers, places, self._addresses, self._row_bytes, self._fields

    def scorer(self, tables: Sequence[Tensor]) -> Scorer:
        """What scores ids by partial scores: of each entry float32 (B, D, K), of each code of its rows."""
        return Scorer.of(self, tables)

    @on_its_gpu
    def place(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Where the rows of ids (n,) lie, as :class:`Scorer` takes it: entries, rows there, addresses and sizes."""
        return self.found(ids)[1:5]

    def _through_the_matrix(self, ids: Tensor, matrix: Tensor) -> Tensor:
        n, (length, dim) = ids.shape[0], matrix.shape
        out = torch.empty((n, dim), dtype=torch.float32, device=ids.device)
        columns = max(16, min(MAX_COLUMNS, triton.next_power_of_2(dim)))
        if n:
            _decode_through[lambda shape: (triton.cdiv(n, shape["IDS"]), triton.cdiv(dim, columns))](
                *self.found(ids),
                self.book,
                matrix,
                self.mean if self.column_scales is None else self.column_scales,
                self.mean,
                out,
                n,
                length,
                dim,
                self.padding_idx,
                WHOLE=self.column_scales is not None,
                COORDINATES=COORDINATES,
                COLUMNS=columns,
                enable_fp_fusion=False,
            )
        return out
