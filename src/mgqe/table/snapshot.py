"""What a compact table holds at one moment. A change makes another snapshot, so readers need no lock; see README.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain

import torch
from torch import Tensor

from mgqe import ops
from mgqe.codec.equations import nearest_codes
from mgqe.codec.layout import (
    CENTROID_DTYPES,
    CENTROIDS,
    CODES,
    COLUMN_SCALES,
    FALLBACK,
    MATRIX,
    MATRIX_SCALES,
    MEAN,
    SCALES,
    TableLayout,
)
from mgqe.codec.mixed import nearest_mixed_codes
from mgqe.codec.packing import pack, unpack
from mgqe.codec.stats import CodebookStats, code_histogram, tier_stats
from mgqe.codec.tensors import check_codebook, check_codes, check_map, map_tensors, read_map, transform_tensors
from mgqe.codec.tier_map import TierMap, build_tier_map, peel_order
from mgqe.codec.tiers import Tiers
from mgqe.codec.transform import Transform
from mgqe.files.reader import MAX_ROWS, Config, Reader, require_finite
from mgqe.ops.layout.packed_format import MAX_TIERS
from mgqe.ops.reference import in_entries
from mgqe.table.growth import Extent

CHUNK_ROWS = 1 << 16  # ids worked on at once in a sweep over a table


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The base, as a file holds it, and the extents behind it. Nothing in it changes, spare room aside.

    Packed rows are in *arrays*: those of each tier of the base, mostly one, then one for each extent in order of ids.
    The kernels take an array for a tier. A *tier* is one of the m that the table was made with; it has the rows of its
    base arrays, then those of its extents.

    Attributes:
        base: the layout of the base.
        codes: the packed rows of each tier of the base, tier after tier.
        splits: how many of these each tier has, where there is a tier map; empty where each has one.
        centroids, scales: of each codebook, as stored; scales are empty unless centroids are int8.
        tier_map: where each id of the base is; None for ids in frequency order.
        extents: the rows appended since.
        fallback: float32 (d,), what unknown ids look up as; None to refuse them.
        transform: what turns coordinates into rows, in a mixed table that has it.
        layout: of the base and the extents together, as a file of it would have it.
        lookup: the base and the extents, laid out for the kernels.
    """

    base: TableLayout
    codes: tuple[Tensor, ...]
    centroids: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    tier_map: TierMap | None
    extents: tuple[Extent, ...] = ()
    fallback: Tensor | None = None
    transform: Transform | None = None
    splits: tuple[int, ...] = ()
    layout: TableLayout = field(init=False)
    lookup: ops.PreparedLookup = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", self._grown_layout())
        shapes = [self.base.tiers[g] for g in self.tier_of_array]
        tier_map = self.tier_map
        buffers = ops.TableBuffers(
            codes=self.arrays,
            centroids=self.centroids,
            scales=self.scales,
            map_bits=tier_map.bits if tier_map else (),
            map_ranks=tier_map.ranks if tier_map else (),
            order=tier_map.order if tier_map else (),
            sizes=[rows.shape[0] for rows in self.arrays],
            bits=[shape.bits for shape in shapes],
            num_subspaces=[shape.num_subspaces for shape in shapes],
            codebook_of=[shape.codebook for shape in shapes],
            embedding_dim=self.base.embedding_dim,
            padding_idx=-1 if self.base.padding_idx is None else self.base.padding_idx,
            widths=self.base.widths,
            code_bits=[bits for shape in shapes for bits in shape.code_bits],
            mean=None if self.transform is None else self.transform.mean,
            matrix=None if self.transform is None else self.transform.matrix,
            matrix_scales=None if self.transform is None else self.transform.scales,
            column_scales=None if self.transform is None else self.transform.column_scales,
            splits=self.splits,
        )
        object.__setattr__(self, "lookup", ops.PreparedLookup(buffers, self.fallback))

    def _grown_layout(self) -> TableLayout:
        if not self.extents:
            return self.base
        sizes, ordered = list(self.base.sizes), self.base.order is None
        last = max((g for g, n in enumerate(sizes) if n), default=0)
        for extent in self.extents:
            sizes[extent.tier] += extent.rows.shape[0]
            ordered, last = ordered and extent.tier >= last, extent.tier
        if sum(sizes) > MAX_ROWS:
            raise ValueError(f"a table has at most {MAX_ROWS} rows, this one would have {sum(sizes)}")
        return self.base.resized(sizes, None if ordered else peel_order(sizes))

    # ---- arrays ------------------------------------------------------------------------------------------

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """The packed rows of every array."""
        return (*self.codes, *(extent.rows for extent in self.extents))

    @property
    def tier_of_array(self) -> tuple[int, ...]:
        """The tier of every array."""
        of_base = (g for g, number in enumerate(self.splits or [1] * len(self.codes)) for _ in range(number))
        return (*of_base, *(extent.tier for extent in self.extents))

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.codes[0].device

    def arrays_of(self, tier: int) -> list[Tensor]:
        """A tier's packed rows in order of ids: those of the base, then those of each of its extents."""
        return [rows for g, rows in zip(self.tier_of_array, self.arrays, strict=True) if g == tier]

    def chunks(self, tier: int) -> Iterator[Tensor]:
        """A tier's packed rows in order of ids, at most ``CHUNK_ROWS`` at a time."""
        for rows in self.arrays_of(tier):
            yield from torch.split(rows, CHUNK_ROWS) if rows.shape[0] else ()

    def locate_in_arrays(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids int64 (...), known to be in range -> the array and the row in it, both int64 (...)."""
        n = self.base.num_embeddings
        in_base = ids < n
        array, row = torch.zeros_like(ids), ids
        if n:
            known = torch.where(in_base, ids, 0)
            base = self.tier_map or Tiers.from_sizes(self.base.sizes)
            tier, row = base.locate(known)
            array = tier.to(torch.int64)
            if self.splits:
                array, row = in_entries(array, row, [rows.shape[0] for rows in self.codes], self.splits)
        if not self.extents:
            return array, row
        lengths = [extent.rows.shape[0] for extent in self.extents]
        starts = torch.tensor([*accumulate(lengths, initial=n)][:-1], dtype=torch.int64, device=ids.device)
        extent = (torch.bucketize(ids, starts, right=True) - 1).clamp(min=0)
        return (torch.where(in_base, array, extent + len(self.codes)), torch.where(in_base, row, ids - starts[extent]))

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids int64 (...), known to be in range -> tier, uint8 (...), and rank in the tier, int64 (...)."""
        array, row = self.locate_in_arrays(ids)
        totals, ranks_before = [0] * self.base.num_tiers, []
        for g, rows in zip(self.tier_of_array, self.arrays, strict=True):
            ranks_before.append(totals[g])
            totals[g] += rows.shape[0]
        tier = torch.tensor(self.tier_of_array, dtype=torch.uint8, device=ids.device)[array]
        return tier, row + torch.tensor(ranks_before, dtype=torch.int64, device=ids.device)[array]

    def tiers(self) -> Tiers:
        """Every id's tier."""
        if self.tier_map is None and not self.extents:
            return Tiers.from_sizes(self.base.sizes)
        n = self.layout.num_embeddings
        tier_of = torch.empty(n, dtype=torch.uint8, device="cpu")
        for start in range(0, n, CHUNK_ROWS):
            ids = torch.arange(start, min(start + CHUNK_ROWS, n), device=self.device)
            tier_of[start : start + CHUNK_ROWS] = self.locate(ids)[0].cpu()
        return Tiers(self.layout.sizes, tier_of)

    # ---- changes: each gives another snapshot ------------------------------------------------------------

    def encode(self, vectors: Tensor, tier: int) -> Tensor:
        """Nearest centroids of a tier: float32 (n, d) -> int32 (n, D_g)."""
        shape = self.base.tiers[tier]
        if self.base.widths:
            coordinates = vectors if self.transform is None else self.transform.encode(vectors)
            return nearest_mixed_codes(coordinates, self.lookup.table.values(shape.codebook), self.base.pieces(tier))
        return nearest_codes(
            vectors, self.lookup.table.values(shape.codebook), shape.num_subspaces, shape.num_centroids
        )

    def packed(self, vectors: Tensor, tier: int) -> Tensor:
        """:meth:`encode` as packed rows, uint8 (n, row_bytes)."""
        return pack(self.encode(vectors, tier), self.base.tiers[tier].packing)

    def appended(self, rows: Tensor, tier: int) -> Snapshot:
        """With packed rows (n, row_bytes), n >= 1, as the last ids. Copies only these rows, now and then the extent.

        A table of 256 arrays is merged first, which copies all of it.
        """
        last = self.extents[-1] if self.extents else None
        # A long extent without room behind it may be mapped from a file, where it stays.
        if last and last.tier == tier and (last.buffer or last.rows.shape[0] <= CHUNK_ROWS):
            return replace(self, extents=(*self.extents[:-1], last.extended(rows)))
        if self.base.num_tiers == MAX_TIERS:
            raise ValueError(f"a table of {MAX_TIERS} tiers has no room for appended ids: train it with fewer tiers")
        if len(self.codes) + len(self.extents) == MAX_TIERS:
            return self.merged().appended(rows, tier)
        return replace(self, extents=(*self.extents, Extent(tier, rows)))

    def updated(self, ids: Tensor, rows: Tensor) -> Snapshot:
        """With other packed rows for distinct ids (n,) that are in range; copies the arrays that have any of them.

        ``rows``: uint8 (n, w), w the largest row_bytes of all tiers; narrower rows use the first bytes.
        """
        array, row = self.locate_in_arrays(ids)
        arrays = list(self.arrays)
        for a in torch.unique(array).tolist():
            mine = array == a
            arrays[a] = arrays[a].clone()
            arrays[a][row[mine]] = rows[mine, : arrays[a].shape[1]]
        m = len(self.codes)
        extents = tuple(
            extent if rows is extent.rows else Extent(extent.tier, rows)
            for extent, rows in zip(self.extents, arrays[m:], strict=True)
        )
        return replace(self, codes=tuple(arrays[:m]), extents=extents)

    def merged_map(self) -> TierMap | None:
        """The tier map of the base and the extents together, as a file would have it."""
        if not self.extents:
            return self.tier_map
        if self.layout.order is None:
            return None
        # Another writer's map may have its tiers in another order than the one by size, which is the order used here.
        return build_tier_map(self.tiers()).to(self.device)

    def merged(self) -> Snapshot:
        """The same table without extents and splits: the codes of a tier in one tensor."""
        if not self.extents and not self.splits:
            return self
        codes = tuple(torch.cat(self.arrays_of(g)) for g in range(self.base.num_tiers))
        return replace(self, base=self.layout, codes=codes, splits=(), tier_map=self.merged_map(), extents=())

    # ---- tensors by name ---------------------------------------------------------------------------------

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], config: Config, rows_of_tier: Sequence[Sequence[Tensor]] = ()
    ) -> Snapshot:
        """The inverse of :meth:`tensor_chunks`; see :meth:`CompactTable.from_tensors`.

        rows_of_tier: of each tier, the packed rows in one tensor or several, where ``tensors`` has no codes.
        """
        reader = Reader(tensors, config)
        layout = TableLayout.read(reader)
        dtype, codebooks = CENTROID_DTYPES[layout.centroid_dtype], range(layout.num_codebooks)
        shape = (None,) if layout.widths else (None, None, None)
        centroids = {name: reader.tensor(name, dtype, shape) for name in map(CENTROIDS.format, codebooks)}
        book_shapes = [tuple(book.shape) for book in centroids.values()]
        if layout.widths and book_shapes != layout.flat_shapes:
            raise ValueError(f"codebooks must have shapes {layout.flat_shapes}, got {book_shapes}")
        for g, tier in enumerate(layout.tiers if not layout.widths else ()):
            check_codebook(g, layout.embedding_dim, tier, book_shapes[tier.codebook])
        shapes = layout.tensors(book_shapes)
        given = {*centroids, *(layout.code_tensors() if rows_of_tier else ())}
        others = {name: reader.tensor(name, *shapes[name]) for name in shapes if name not in given}
        fallback = None
        if reader.holds(FALLBACK):
            fallback = reader.tensor(FALLBACK, torch.float32, (layout.embedding_dim,))
        reader.finish()
        codes = tuple(chain.from_iterable(rows_of_tier)) or tuple(others[name] for name in layout.code_tensors())
        no_scales = torch.empty(0, dtype=torch.float32, device=codes[0].device)
        scales = tuple(others.get(SCALES.format(c), no_scales) for c in codebooks)
        tier_map = None if layout.order is None else read_map(others, layout.order)
        if tier_map is not None:
            check_map(tier_map, layout.sizes)
        transform = None
        if layout.matrix_dtype is not None:
            of_matrix = others.get(MATRIX_SCALES), others.get(COLUMN_SCALES)
            transform = Transform(others[MEAN], others[MATRIX], *of_matrix)
        splits = tuple(map(len, rows_of_tier)) if tier_map is not None else ()
        return cls(layout, codes, tuple(centroids.values()), scales, tier_map, (), fallback, transform, splits)

    def tensor_chunks(self) -> dict[str, list[Tensor]]:
        """The tensors of a file of it, each as the chunks that make it when joined along the first axis."""
        tensors = {CODES.format(g): self.arrays_of(g) for g in range(self.base.num_tiers)}
        tensors.update({CENTROIDS.format(c): [book] for c, book in enumerate(self.centroids)})
        if self.base.centroid_dtype == "int8" and not self.base.whole:
            tensors.update({SCALES.format(c): [scales] for c, scales in enumerate(self.scales)})
        tensors.update({name: [tensor] for name, tensor in map_tensors(self.merged_map()).items()})
        tensors.update({name: [tensor] for name, tensor in self.transform_tensors().items()})
        if self.fallback is not None:
            tensors[FALLBACK] = [self.fallback]
        return tensors

    def transform_tensors(self) -> dict[str, Tensor]:
        """The named tensors of the mean and the matrix; none in a table without them."""
        return {} if self.transform is None else transform_tensors(self.transform)

    def nbytes_by_part(self) -> dict[str, int]:
        """Bytes in memory, spare room included."""
        nbytes = {
            "codes": sum(t.nbytes for t in self.codes) + sum(extent.nbytes for extent in self.extents),
            "centroids": sum(t.nbytes for t in self.centroids),
            "scales": sum(t.nbytes for t in self.scales),
            "tier_map": self.tier_map.nbytes if self.tier_map else 0,
        }
        nbytes |= {name: tensor.nbytes for name, tensor in self.transform_tensors().items()}
        return nbytes if self.fallback is None else {**nbytes, FALLBACK: self.fallback.nbytes}

    # ---- sweeps over all codes ---------------------------------------------------------------------------

    def codebook_stats(self) -> list[CodebookStats]:
        """How the codes of each tier use its centroids."""
        stats = []
        for g, tier in enumerate(self.layout.tiers):
            histogram = self.code_histogram(g)
            if self.base.widths or self.centroids[tier.codebook].shape[0] > 1 or tier.num_subspaces == 1:
                stats.append(tier_stats(g, tier.ids, histogram, tier.code_bits))
            else:
                of_all_subspaces = tier_stats(g, tier.ids, histogram.sum(dim=0, keepdim=True))
                reachable = min(tier.num_centroids, tier.ids * tier.num_subspaces)
                stats.append(replace(of_all_subspaces, num_subspaces=tier.num_subspaces, reachable=reachable))
        return stats

    def code_histogram(self, tier: int) -> Tensor:
        """How many ids of a tier have each code of each subspace: float64 (D, K)."""
        shape = self.layout.tiers[tier]
        histogram = torch.zeros((shape.num_subspaces, shape.num_centroids), dtype=torch.float64, device=self.device)
        for rows in self.chunks(tier):
            histogram += code_histogram(unpack(rows, shape.num_subspaces, shape.packing), shape.num_centroids)
        return histogram

    def validate(self) -> None:
        """Raise ValueError if a value of the base cannot be right; extents have what :meth:`packed` made."""
        self.validate_codebooks()
        for g, packed in zip(self.tier_of_array, self.codes):  # without extents
            check_codes(CODES.format(g), packed, self.base.tiers[g])
        if self.tier_map is not None:
            check_map(self.tier_map, self.base.sizes)
        if self.fallback is not None:
            require_finite(FALLBACK, self.fallback)

    def validate_codebooks(self) -> None:
        """Raise ValueError if a centroid, a scale, the mean or the matrix cannot be right."""
        for name, tensor in self.transform_tensors().items():
            require_finite(name, tensor)
        if self.transform is not None:
            for name, scales in ((MATRIX_SCALES, self.transform.scales), (COLUMN_SCALES, self.transform.column_scales)):
                if scales is not None:
                    _require_positive(name, scales)
        for c, (book, scales) in enumerate(zip(self.centroids, self.scales, strict=True)):
            if book.is_floating_point():
                require_finite(CENTROIDS.format(c), book)
            elif not self.base.whole:
                require_finite(SCALES.format(c), scales)
                _require_positive(SCALES.format(c), scales)


def _require_positive(name: str, scales: Tensor) -> None:
    if bool((scales <= 0).any()):
        raise ValueError(f"tensor {name!r} holds a scale that is not positive")
