"""How a frozen table is laid out: its plain numbers, and the name, type and shape of every tensor that goes with them.

Whatever writes, reads, counts or freezes a table takes them from here. docs/format.md describes the same things for
readers in other languages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from mgqe.codec.capacity import BY_COLUMNS, Capacity, OfTiers, TierShape, codebook_lengths, tier_shapes
from mgqe.codec.tier_map import MAX_MAPPED_IDS, map_order
from mgqe.codec.tiers import Tiers
from mgqe.files.container import Shapes, encode_header
from mgqe.files.reader import MAX_DIM, MAX_ROWS, Config, Reader
from mgqe.ops.layout.packed_format import BLOCK_BITS, MAX_BITS, MAX_CENTROIDS, MAX_TIERS, WORDS_PER_BLOCK, level_lengths

KIND = "compact"  # the name under which files record such a table
CENTROID_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
MATRIX_DTYPES = {**CENTROID_DTYPES, BY_COLUMNS: torch.int8}
MAX_WHOLE_COORDINATES = 1024  # that float32 adds up exactly: 1024 * 127 * 127 is less than 2^24

# Names of the tensors, by the number of the tier, codebook or level of the tier map; docs/format.md describes each.
CODES, CENTROIDS, SCALES = "codes.{}", "centroids.{}", "scales.{}"
MAP_BITS, MAP_RANKS = "tier_map.bits.{}", "tier_map.ranks.{}"
# Of mixed tables whose coordinates are turned.
MEAN, MATRIX, MATRIX_SCALES, COLUMN_SCALES = "mean", "matrix", "matrix_scales", "column_scales"
FALLBACK = "fallback"  # the vector of unknown ids, which few tables have


@dataclass(frozen=True)
class TableLayout(OfTiers):
    """The plain numbers of a :class:`CompactTable`.

    Attributes:
        embedding_dim: d.
        tiers: the shape of each tier.
        centroid_dtype: "float32", "float16" or "int8".
        padding_idx: the id that looks up as zeros, or None.
        order: the tiers in the order in which the tier map splits them off; None for ids in frequency order.
        widths: of a mixed table: the coordinates of each subspace; empty in other tables.
        matrix_dtype: of a mixed table whose rows are mean + coordinates @ matrix: the matrix's "float32", "float16" or
            "int8"; else None. Or "int8_columns": rows are mean + column_scales * (coordinates @ matrix), and
            coordinates are whole numbers from -127 to 127, which int8 centroids without scales hold.
    """

    embedding_dim: int
    tiers: tuple[TierShape, ...]
    centroid_dtype: str
    padding_idx: int | None = None
    order: tuple[int, ...] | None = None
    widths: tuple[int, ...] = ()
    matrix_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.centroid_dtype not in CENTROID_DTYPES:
            raise ValueError(f"centroid_dtype must be one of {sorted(CENTROID_DTYPES)}, got {self.centroid_dtype!r}")
        if self.matrix_dtype is not None and self.matrix_dtype not in MATRIX_DTYPES:
            raise ValueError(f"matrix_dtype must be one of {sorted(MATRIX_DTYPES)}, got {self.matrix_dtype!r}")
        if self.whole and (self.centroid_dtype != "int8" or self.num_coordinates > MAX_WHOLE_COORDINATES):
            raise ValueError(
                f"matrix_dtype={BY_COLUMNS!r} is for int8 centroids of at most {MAX_WHOLE_COORDINATES} coordinates, "
                f"got {self.centroid_dtype} and {self.num_coordinates}"
            )

    @classmethod
    def of(cls, tiers: Tiers, capacity: Capacity, centroid_dtype: str, padding_idx: int | None) -> TableLayout:
        """The layout that a layer of these tiers and this capacity freezes to."""
        return cls(
            capacity.embedding_dim,
            capacity.tiers,
            centroid_dtype,
            padding_idx,
            map_order(tiers),
            capacity.widths,
            capacity.matrix_dtype,
        )

    @property
    def num_embeddings(self) -> int:
        """N, the ids of all tiers."""
        return sum(self.sizes)

    @property
    def num_codebooks(self) -> int:
        """How many codebooks the tiers read."""
        return 1 + max(self.codebook_of)

    @property
    def whole(self) -> bool:
        """Whether coordinates are whole numbers: int8 centroids without scales, under a matrix with column scales."""
        return self.matrix_dtype == BY_COLUMNS

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of a code in each tier; of the widest one in a mixed table."""
        return tuple(tier.bits for tier in self.tiers)

    @property
    def flat_shapes(self) -> list[tuple[int, ...]]:
        """Of a mixed table: the shape of each codebook."""
        return [(length,) for length in codebook_lengths(self.widths, self.tiers)]

    def resized(self, sizes: Sequence[int], order: tuple[int, ...] | None) -> TableLayout:
        """The same layout for tiers of other sizes, split off in this order."""
        tiers = tuple(replace(tier, ids=n) for tier, n in zip(self.tiers, sizes, strict=True))
        return replace(self, tiers=tiers, order=order)

    # ---- tensors -----------------------------------------------------------------------------------------

    def code_tensors(self, sizes: Sequence[int] | None = None) -> Shapes:
        """Name -> (type, shape) of the tensors of codes; ``sizes`` are the rows of each tier, by default all."""
        rows = self.sizes if sizes is None else sizes
        return {CODES.format(g): (torch.uint8, (rows[g], tier.row_bytes)) for g, tier in enumerate(self.tiers)}

    def tensors(self, codebook_shapes: Sequence[tuple[int, ...]]) -> Shapes:
        """Name -> (type, shape) of every tensor of such a table, whose codebooks have these shapes (Dc, Kc, sc).

        In a mixed table codebooks are flat, ``flat_shapes``.
        """
        shapes = dict(self.code_tensors())
        for c, shape in enumerate(codebook_shapes):
            shapes[CENTROIDS.format(c)] = (CENTROID_DTYPES[self.centroid_dtype], shape)
            if self.centroid_dtype == "int8" and not self.whole:
                shapes[SCALES.format(c)] = (torch.float32, (len(self.widths),) if self.widths else shape[:1])
        for level, n in enumerate(level_lengths(self.sizes, self.order or ())):
            blocks = -(-n // BLOCK_BITS)
            shapes[MAP_BITS.format(level)] = (torch.int64, (blocks * WORDS_PER_BLOCK,))
            shapes[MAP_RANKS.format(level)] = (torch.int32, (blocks,))
        if self.matrix_dtype is not None:
            shapes[MEAN] = (torch.float32, (self.embedding_dim,))
            shapes[MATRIX] = (MATRIX_DTYPES[self.matrix_dtype], (self.num_coordinates, self.embedding_dim))
            if self.whole:
                shapes[COLUMN_SCALES] = (torch.float32, (self.embedding_dim,))
            elif self.matrix_dtype == "int8":
                shapes[MATRIX_SCALES] = (torch.float32, (self.num_coordinates,))
        return shapes

    # ---- configuration -----------------------------------------------------------------------------------

    @classmethod
    def read(cls, reader: Reader) -> TableLayout:
        """From a table's configuration; raises ValueError naming the entry that is wrong."""
        n = reader.integer("num_embeddings", 0, MAX_ROWS)
        d = reader.integer("embedding_dim", 1, MAX_DIM)
        sizes = reader.integers("sizes", 0, n)
        m = len(sizes)
        if not 1 <= m <= MAX_TIERS or sum(sizes) != n:
            raise ValueError(
                f"config entry 'sizes' must be 1 to {MAX_TIERS} tier sizes summing to num_embeddings={n}, "
                f"got {m} summing to {sum(sizes)}"
            )
        widths, code_bits, matrix_dtype = _read_mixed(reader, m, d)
        if not widths:
            num_subspaces = reader.integers("num_subspaces", 1, d, length=m)
            num_centroids = reader.integers("num_centroids", 1, MAX_CENTROIDS, length=m)
        codebook_of = reader.integers("codebook_of", 0, m - 1, length=m)
        if set(codebook_of) != set(range(max(codebook_of) + 1)):
            raise ValueError(f"config entry 'codebook_of' leaves out a codebook: {list(codebook_of)}")
        dtype = reader.choice("centroid_dtype", CENTROID_DTYPES.keys())
        padding_idx = reader.optional_integer("padding_idx", 0, n - 1)
        order = reader.value("order")
        if order is not None and (not isinstance(order, list) or not _is_permutation(order, m)):
            raise ValueError(f"config entry 'order' must be null or the tiers 0 .. {m - 1} in some order")
        if order is not None and n > MAX_MAPPED_IDS:
            raise ValueError(f"a tier map holds at most {MAX_MAPPED_IDS} ids, got num_embeddings={n}")
        if widths:
            tiers = tuple(map(TierShape.mixed, sizes, code_bits, codebook_of))
        else:
            tiers = tier_shapes(sizes, num_subspaces, num_centroids, codebook_of)
        return cls(d, tiers, dtype, padding_idx, None if order is None else tuple(order), widths, matrix_dtype)

    def to_json(self) -> Config:
        """Entries that JSON can write; :meth:`read` is the inverse."""
        even = {"num_subspaces": list(self.num_subspaces), "num_centroids": list(self.num_centroids)}
        mixed = {
            "widths": list(self.widths),
            "code_bits": [bits for tier in self.tiers for bits in tier.code_bits],
            "matrix_dtype": self.matrix_dtype,
        }
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "sizes": list(self.sizes),
            **(mixed if self.widths else even),
            "codebook_of": list(self.codebook_of),
            "centroid_dtype": self.centroid_dtype,
            "padding_idx": self.padding_idx,
            "order": None if self.order is None else list(self.order),
        }


def _read_mixed(reader: Reader, m: int, d: int) -> tuple[tuple[int, ...], list[tuple[int, ...]], str | None]:
    """Widths, each tier's bits, and the matrix's type; nothing of a table that is not mixed."""
    if not reader.has("widths"):
        return (), [], None
    widths = reader.integers("widths", 1, d)
    subspaces, coordinates = len(widths), sum(widths)
    flat = reader.integers("code_bits", 0, MAX_BITS, length=m * subspaces)
    dtype = reader.optional_choice("matrix_dtype", MATRIX_DTYPES.keys())
    if not widths or coordinates > d or (dtype is None and coordinates < d):
        raise ValueError(
            f"config entry 'widths' must sum to embedding_dim={d}, or to 1 .. {d} with a matrix, got {coordinates}"
        )
    return widths, [flat[g * subspaces : (g + 1) * subspaces] for g in range(m)], dtype


def _is_permutation(order: Sequence[object], m: int) -> bool:
    return (
        len(order) == m
        and all(isinstance(g, int) and not isinstance(g, bool) for g in order)
        and set(order) == set(range(m))
    )


def frozen_nbytes(tiers: Tiers, capacity: Capacity, padding_idx: int | None, centroid_dtype: str) -> int:
    """Bytes of the file that ``mgqe.save`` writes of a layer of these tiers and this capacity once frozen, exactly."""
    layout = TableLayout.of(tiers, capacity, centroid_dtype, padding_idx)
    return _file_nbytes(layout, tuple(capacity.codebook_shapes))


@lru_cache(maxsize=4096)  # plans ask for the same shapes again and again
def _file_nbytes(layout: TableLayout, codebook_shapes: tuple[tuple[int, ...], ...]) -> int:
    return encode_header(layout.tensors(codebook_shapes), KIND, layout.to_json())[1]
