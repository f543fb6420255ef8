"""Rows from packed codes by ONNX's operators, in the form that runtimes execute fast.

In ONNX Runtime an entry of a Gather takes about 8 ns, whatever its size, a byte gathered from within a row 4 ns, and an
element of GatherElements 1 ns, as elements of arithmetic do or less. So packed rows are gathered whole and transposed:
a byte of all rows is now one row, which is copied as a whole to where it is needed. Each coordinate gets an *index
byte* in this way (see :mod:`mgqe.convert.export.coordinates`), and one GatherElements finds all coordinates, in tables
of a number for each value of an index byte. The graph works these tables out from the codebooks, which are constants,
so that runtimes do it once, on loading.

A byte is transposed in 0.2 to 0.4 ns, but a float32 in 7 ns. So index bytes are transposed back before coordinates are
found. Only where these are whole numbers and multiplied with a matrix are they found as int8, a row for each, and then
transposed: until the product, tiers are put together as bytes too.

Ids whose tiers have codes of other lengths are found apart; one Gather puts their rows, and a row of zeros for the
padding, into the order of the ids.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.codec.layout import COLUMN_SCALES, FALLBACK, MATRIX, MATRIX_SCALES, MEAN, TableLayout
from mgqe.convert.export.coordinates import BYTE, coordinates_of, in_bytes
from mgqe.convert.export.portable_layers import PortableEmbedding
from mgqe.files.reader import Reader
from mgqe.ops.layout.packed_format import WORDS_PER_BLOCK, level_lengths

VALUES = 1 << BYTE  # of an index byte
WORD = 64  # bits of a word of a tier map
FLOAT, UINT8, INT8, INT32, INT64, BOOL, UINT64 = 1, 2, 3, 6, 7, 9, 13  # as ONNX numbers the types of elements


@torch.library.custom_op("mgqe_export::rows", mutates_args=())
def rows_in_onnx(ids: Tensor, tensors: Sequence[Tensor], table: str) -> Tensor:
    """Stands for the rows of ids, int64 (n,) -> float32 (n, d), while a model is traced; :func:`write_rows` writes it.

    Args:
        tensors: the table's, as :func:`prepare` orders them.
        table: what :func:`prepare` says of it.
    """
    raise NotImplementedError("mgqe_export::rows is to be traced and written to ONNX, not to be called")


@rows_in_onnx.register_fake
def _(ids: Tensor, tensors: Sequence[Tensor], table: str) -> Tensor:
    return ids.new_empty((ids.shape[0], json.loads(table)["layout"]["embedding_dim"]), dtype=torch.float32)


def prepare(module: PortableEmbedding, joined: dict[tuple[int, ...], Tensor]) -> None:
    """Have a portable table traced as one operator, for :func:`write_rows`, if its codes have at most 8 bits.

    Args:
        joined: rows that were joined for other modules, by the addresses of their parts, to be used once more.
    """
    layout = module.config
    if not in_bytes(layout):
        return
    matrix = module.get_buffer(MATRIX) if layout.matrix_dtype else None
    described = {
        "layout": layout.to_json(),
        "books": [tuple(module.get_buffer(f"centroids_{c}").shape) for c in range(layout.num_codebooks)],
        "diagonal": matrix is not None and layout.whole and torch.equal(matrix.float(), torch.eye(*matrix.shape)),
    }
    names = []
    for name, tensor in module.named_buffers():
        if name.startswith("tier_map_bits"):
            module.register_buffer(name, tensor.reshape(-1).view(torch.int64))
        if not name.startswith("codes") and name != FALLBACK:
            names.append(name)
    for number, tiers in enumerate(_groups(layout)):
        codes = [module.get_buffer(f"codes_{g}") for g in tiers]
        names.append(f"packed_{number}")
        address = tuple(rows.data_ptr() for rows in codes)
        if address not in joined:
            joined[address] = codes[0] if len(codes) == 1 else torch.cat(codes)
        module.register_buffer(names[-1], joined[address])
    table = json.dumps({**described, "names": names})
    module.rows_as_one = lambda ids: rows_in_onnx(ids, [module.get_buffer(name) for name in names], table)


def _groups(layout: TableLayout) -> list[list[int]]:
    """The tiers that have ids, those together whose codes lie alike in a row: their rows are joined."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for g, tier in enumerate(layout.tiers):
        if tier.ids:
            groups.setdefault(tier.code_bits or (tier.bits,) * tier.num_subspaces, []).append(g)
    return list(groups.values())


def write_rows(ids: Any, tensors: Sequence[Any], table: str) -> Any:
    """The ONNX nodes of :func:`rows_in_onnx`."""
    described = json.loads(table)
    named = dict(zip(described["names"], tensors, strict=True))
    layout = TableLayout.read(Reader({}, described["layout"]))
    return _Graph(named, layout, [tuple(shape) for shape in described["books"]], described["diagonal"]).rows(ids)


class _Graph:
    """Writes the nodes of one look-up.

    Attributes:
        op: ONNX's operators, which add a node to the graph and return its output.
        tensors: the table's, as values of the graph.
        tiers: those that have ids. A tier's place in this list is the number of its table.
    """

    def __init__(
        self, tensors: dict[str, Any], layout: TableLayout, books: list[tuple[int, ...]], diagonal: bool
    ) -> None:
        self.op: Any = importlib.import_module("onnxscript").opset18
        self.tensors, self.layout, self.diagonal = tensors, layout, diagonal
        self.groups = _groups(layout)
        self.tiers = sorted(g for group in self.groups for g in group)
        self.coordinates = {g: coordinates_of(layout, g, books[layout.codebook_of[g]]) for g in self.tiers}

    def transposed(self, matrix: Any) -> Any:
        return self.op.Transpose(matrix, perm=[1, 0])

    def constant(self, values: Any, dtype: Any = np.int64) -> Any:
        return self.op.Constant(value=importlib.import_module("onnx_ir").tensor(np.asarray(values, dtype)))

    def rows(self, ids: Any) -> Any:
        """Float32 (n, d)."""
        op, zero, padding = self.op, self.constant(0), self.layout.padding_idx
        number, rank = self.locate(ids)
        count = op.Reshape(op.Shape(ids), self.constant([]))
        place = op.Range(zero, count, self.constant(1))  # of each id's row in all that are found
        if len(self.groups) == 1:
            # In frequency order ranks and tiers follow one another as ids do.
            found = [self.decoded(0, ids if self.layout.order is None else self.position(0, number, rank), number)]
        else:
            found, places = [], []
            for i, group in enumerate(self.groups):
                mine = self.is_any(number, [self.tiers.index(g) for g in group])
                position, of_mine, at = (op.Compress(v, mine) for v in (self.position(i, number, rank), number, place))
                found.append(self.decoded(i, position, of_mine))
                places.append(at)
            place = op.ScatterElements(ids, op.Concat(*places, axis=0), place)
        if padding is not None:
            found.append(self.constant(np.zeros((1, self.width)), self.kind))
            place = op.Where(op.Equal(ids, self.constant(padding)), count, place)
        rows = op.Gather(op.Concat(*found, axis=0), place) if len(found) > 1 else found[0]
        return op.MatMul(op.Cast(rows, to=FLOAT), self.matrix()) if self.has_product else rows

    # ---- where ids are: the number of the tier's table, int32 (n,), None if there is one; the rank, int64 (n,) ------

    def locate(self, ids: Any) -> tuple[Any, Any]:
        op, layout = self.op, self.layout
        if len(self.tiers) == 1 and layout.order is None:
            return None, ids
        if layout.order is not None:
            return self.locate_in_map(ids, layout.order)
        starts = [*accumulate((layout.sizes[g] for g in self.tiers), initial=0)]
        number, rank = self.constant(0, np.int32), ids
        for i, start in enumerate(starts[1:-1], 1):
            beyond = op.GreaterOrEqual(ids, self.constant(start))
            number = op.Where(beyond, self.constant(i, np.int32), number)
            rank = op.Where(beyond, op.Sub(ids, self.constant(start)), rank)
        return number, rank

    def locate_in_map(self, ids: Any, order: tuple[int, ...]) -> tuple[Any, Any]:
        op, zero = self.op, self.constant(0)
        numbers = [self.constant(self.tiers.index(g) if g in self.tiers else 0, np.int32) for g in order]
        number, rank, position, undecided = numbers[-1], ids, ids, None
        for level, length in enumerate(level_lengths(self.layout.sizes, order)):
            if not length:  # the tier of every id is known
                break
            # Position 0 stands in for ids whose tier is known: every level that has ids has it.
            position = position if undecided is None else op.Where(undecided, position, zero)
            bit, ones = self.rank_in_map(position, level)
            chosen = bit if undecided is None else op.And(undecided, bit)
            number, rank = op.Where(chosen, numbers[level], number), op.Where(chosen, ones, rank)
            others = op.Not(bit)
            undecided = others if undecided is None else op.And(undecided, others)
            position = op.Sub(position, ones)
        rank = rank if undecided is None else op.Where(undecided, position, rank)
        return (None if len(self.tiers) == 1 else number), rank

    def rank_in_map(self, position: Any, level: int) -> tuple[Any, Any]:
        """Whether the bit at each position is set, and how many bits before it are: bool (n,) and int64 (n,)."""
        op, u64 = self.op, np.uint64
        words = self.tensors[f"tier_map_bits_{level}"]

        def shifted(value: Any, by: int) -> Any:
            return op.BitShift(value, self.constant(by, u64), direction="RIGHT")

        unsigned = op.Cast(position, to=UINT64)
        block = op.Cast(shifted(unsigned, 8), to=INT64)
        word = op.Cast(op.Gather(words, op.Cast(shifted(unsigned, 6), to=INT64)), to=UINT64)
        inside = op.BitwiseAnd(unsigned, self.constant(WORD - 1, u64))
        bit = op.BitwiseAnd(op.BitShift(word, inside, direction="RIGHT"), self.constant(1, u64))
        in_block = op.BitwiseAnd(position, self.constant(WORD * WORDS_PER_BLOCK - 1))
        of_block = op.Gather(op.Reshape(words, self.constant([-1, WORDS_PER_BLOCK])), block)
        below = op.BitwiseAnd(op.Cast(of_block, to=UINT64), op.Gather(self.masks_below(), in_block))
        # The number of ones of each word: in pairs of bits, in fours, in bytes; then all bytes together.
        pairs, fours, bytes_ = (self.constant(mask * (2**64 - 1) // 255, u64) for mask in (0x55, 0x33, 0x0F))
        x = op.Sub(below, op.BitwiseAnd(shifted(below, 1), pairs))
        x = op.Add(op.BitwiseAnd(x, fours), op.BitwiseAnd(shifted(x, 2), fours))
        x = op.BitwiseAnd(op.Add(x, shifted(x, 4)), bytes_)
        ones = op.Cast(shifted(op.Mul(x, self.constant((2**64 - 1) // 255, u64)), WORD - BYTE), to=INT64)
        before = op.Cast(op.Gather(self.tensors[f"tier_map_ranks_{level}"], block), to=INT64)
        return op.Cast(bit, to=BOOL), op.Add(before, op.ReduceSum(ones, self.constant([1]), keepdims=0))

    def masks_below(self) -> Any:
        """Of each position in a block, the bits below it: uint64 (256, 4)."""
        op, u64 = self.op, np.uint64
        position = op.Unsqueeze(op.Range(*map(self.constant, (0, WORD * WORDS_PER_BLOCK, 1))), self.constant([1]))
        first = self.constant([WORD * word for word in range(WORDS_PER_BLOCK)])
        inside = op.BitwiseAnd(op.Cast(position, to=UINT64), self.constant(WORD - 1, u64))
        some = op.Sub(op.BitShift(self.constant(1, u64), inside, direction="LEFT"), self.constant(1, u64))
        whole = op.GreaterOrEqual(position, op.Add(first, self.constant(WORD)))
        rest = op.Where(op.Less(position, first), self.constant(0), op.Cast(some, to=INT64))
        return op.Cast(op.Where(whole, self.constant(-1), rest), to=UINT64)

    # ---- coordinates of the ids of a group -------------------------------------------------------------------------

    def decoded(self, group: int, position: Any, number: Any) -> Any:
        """Of ids by their places in the joined rows of a group, (n,) -> (n, L), and a one for the mean."""
        op, tiers = self.op, self.groups[group]
        books = sorted({self.layout.codebook_of[g] for g in tiers})
        tables = [self.table(next(g for g in tiers if self.layout.codebook_of[g] == book)) for book in books]
        in_rows, picked = self.index_bytes(group, position)
        if len(tables) == 1:
            index, table = op.Gather(in_rows, picked), tables[0]
            index = op.Cast(index if self.whole else self.transposed(index), to=INT32)
        else:
            first = [0] * len(self.tiers)
            for g in tiers:
                first[self.tiers.index(g)] = VALUES * books.index(self.layout.codebook_of[g])
            of_table, table = op.Gather(self.constant(first, np.int32), number), op.Concat(*tables, axis=0)
            if self.whole:  # there are fewer bytes than coordinates to add to
                index = op.Gather(op.Add(op.Cast(in_rows, to=INT32), of_table), picked)
            else:
                index = op.Cast(self.transposed(op.Gather(in_rows, picked)), to=INT32)
                index = op.Add(index, op.Unsqueeze(of_table, self.constant([1])))
        if self.whole:
            return self.transposed(op.GatherElements(self.transposed(table), index, axis=1))
        return op.GatherElements(table, index, axis=0)

    def is_any(self, number: Any, of: list[int]) -> Any:
        masks = [self.op.Equal(number, self.constant(i, np.int32)) for i in of]
        mask = masks[0]
        for other in masks[1:]:
            mask = self.op.Or(mask, other)
        return mask

    def position(self, group: int, number: Any, rank: Any) -> Any:
        """Where the rows of ids are in the joined rows of a group, if they are in it."""
        tiers = self.groups[group]
        if len(tiers) == 1:
            return rank
        start = [0] * len(self.tiers)
        for g, before in zip(tiers, accumulate((self.layout.sizes[g] for g in tiers), initial=0)):
            start[self.tiers.index(g)] = before
        return self.op.Add(rank, self.op.Gather(self.constant(start), number))

    def index_bytes(self, group: int, position: Any) -> tuple[Any, Any]:
        """Rows of bytes, uint8 (bytes, n), and which of them each coordinate has: (L,), and one more for the mean."""
        op, where = self.op, self.coordinates[self.groups[group][0]]
        in_rows = self.transposed(op.Gather(self.tensors[f"packed_{group}"], position))
        if where.joined:
            first, shift, rest = (np.array(column) for column in zip(*where.joined, strict=True))
            upper, lower = ((VALUES - 1) << shift) & (VALUES - 1), (1 << rest) - 1
            parts = [
                op.BitwiseAnd(op.Gather(in_rows, self.constant(at, np.int32)), self.constant(mask[:, None], np.uint8))
                for at, mask in ((first, upper), (first + 1, lower))
            ]
            in_rows = op.Concat(in_rows, op.Add(*parts), axis=0)
        return in_rows, self.constant([*where.byte, *([0] * self.has_product)], np.int32)

    # ---- tables, and the matrix: of constants alone ----------------------------------------------------------------

    @property
    def has_product(self) -> bool:
        """Whether coordinates, and a one, are multiplied with a matrix, and the mean below it."""
        return self.layout.matrix_dtype is not None and not self.diagonal

    @property
    def whole(self) -> bool:
        """Whether coordinates are whole numbers until they are multiplied."""
        return self.has_product and self.layout.whole

    @property
    def kind(self) -> Any:
        """The dtype of coordinates until then."""
        return np.int8 if self.whole else np.float32

    @property
    def width(self) -> int:
        """Of rows before the product."""
        return self.layout.num_coordinates + self.has_product

    def table(self, tier: int) -> Any:
        """Of each index byte, the number of each coordinate: (256, L); and ones, which the mean is times."""
        op, where, book = self.op, self.coordinates[tier], self.layout.codebook_of[tier]
        byte = op.Unsqueeze(op.Cast(op.Range(*map(self.constant, (0, VALUES, 1))), to=UINT8), self.constant([1]))
        shift = np.array(where.shift)
        right = op.BitShift(byte, self.constant(shift, np.uint8), direction="RIGHT")
        left = op.BitShift(byte, self.constant(-shift % BYTE, np.uint8), direction="LEFT")
        mask = self.constant([(1 << bits) - 1 for bits in where.bits], np.uint8)
        entry = op.Cast(op.BitwiseAnd(op.BitwiseOr(right, left), mask), to=INT32)
        if any(1 << bits > largest + 1 for bits, largest in zip(where.bits, where.largest, strict=True)):
            # Only a damaged file has larger codes. The kernels read them in the same way.
            entry = op.Min(entry, self.constant(where.largest, np.int32))
        if set(where.stride) != {1}:
            entry = op.Mul(entry, self.constant(where.stride, np.int32))
        entry = op.Add(entry, self.constant(where.first, np.int32))
        flat = op.Reshape(self.tensors[f"centroids_{book}"], self.constant([-1]))
        numbers = op.Cast(op.Gather(flat, entry), to=INT8 if self.whole else FLOAT)
        if f"scales_{book}" in self.tensors:
            numbers = op.Mul(numbers, op.Gather(self.tensors[f"scales_{book}"], self.constant(where.scale, np.int32)))
        if self.diagonal:
            return op.Add(self.tensors[MEAN], op.Mul(numbers, self.tensors[COLUMN_SCALES]))
        if self.has_product:
            return op.Concat(numbers, self.constant(np.ones((VALUES, 1)), self.kind), axis=1)
        return numbers

    def matrix(self) -> Any:
        """What coordinates and a one are multiplied with: float32 (L + 1, d)."""
        op = self.op
        matrix = op.Cast(self.tensors[MATRIX], to=FLOAT)
        if MATRIX_SCALES in self.tensors:
            matrix = op.Mul(matrix, op.Unsqueeze(self.tensors[MATRIX_SCALES], self.constant([1])))
        if COLUMN_SCALES in self.tensors:
            matrix = op.Mul(matrix, self.tensors[COLUMN_SCALES])
        return op.Concat(matrix, op.Unsqueeze(self.tensors[MEAN], self.constant([0])), axis=0)
