"""What a compact table holds at one moment. A change makes another snapshot, so readers need no lock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from mgqe import ops
from mgqe.codec.equations import nearest_codes
from mgqe.codec.layout import CompactConfig, check_codes, check_map, map_tensors
from mgqe.codec.packing import pack, unpack
from mgqe.codec.stats import CodebookStats, code_histogram, tier_stats
from mgqe.codec.tier_map import TierMap, build_tier_map, peel_order
from mgqe.codec.tiers import Tiers
from mgqe.files.reader import MAX_ROWS, require_finite
from mgqe.ops.packed_format import MAX_TIERS
from mgqe.table.growth import Extent

CHUNK_ROWS = 1 << 16  # ids worked on at once in a sweep over a table


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The base, as a file holds it, and the extents behind it. Nothing in it changes, spare room aside.

    A *part* is what the kernels call a tier: the m tiers of the base come first, then the extents in order of ids.
    A *tier* is one of the m that the table was made with; it has the rows of its base part, then those of its extents.

    Attributes:
        base: the plain numbers of the base.
        codes: a tier of the base: its packed rows.
        centroids, scales: a codebook: as stored.
        tier_map: where each id of the base lives; None for ids in frequency order.
        extents: the rows appended since.
        fallback: float32 (d,), what unknown ids look up as; None to refuse them.
        config: the plain numbers of the whole, as a file of it would say them.
        lookup: the whole, laid out for the kernels.
    """

    base: CompactConfig
    codes: tuple[Tensor, ...]
    centroids: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    tier_map: TierMap | None
    extents: tuple[Extent, ...] = ()
    fallback: Tensor | None = None
    config: CompactConfig = field(init=False)
    lookup: ops.PreparedLookup = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", self._whole_config())
        base, owners, tier_map = self.base, self.owners, self.tier_map
        parts = ops.TableParts(
            codes=self.parts,
            centroids=self.centroids,
            scales=self.scales,
            map_bits=tier_map.bits if tier_map else (),
            map_ranks=tier_map.ranks if tier_map else (),
            order=tier_map.order if tier_map else (),
            sizes=[rows.shape[0] for rows in self.parts],
            bits=[base.bits[g] for g in owners],
            num_subspaces=[base.num_subspaces[g] for g in owners],
            codebook_of=[base.codebook_of[g] for g in owners],
            embedding_dim=base.embedding_dim,
            padding_idx=-1 if base.padding_idx is None else base.padding_idx,
        )
        object.__setattr__(self, "lookup", ops.PreparedLookup(parts, self.fallback))

    def _whole_config(self) -> CompactConfig:
        if not self.extents:
            return self.base
        sizes, last, ordered = list(self.base.sizes), 0, self.base.order is None
        for g, n in enumerate(self.base.sizes):
            last = g if n else last
        for extent in self.extents:
            sizes[extent.tier] += extent.rows.shape[0]
            ordered, last = ordered and extent.tier >= last, extent.tier
        n = sum(sizes)
        if n > MAX_ROWS:
            raise ValueError(f"a table has at most {MAX_ROWS} rows, this one would have {n}")
        order = None if ordered else peel_order(sizes)
        return replace(self.base, num_embeddings=n, sizes=tuple(sizes), order=order)

    # ---- parts -------------------------------------------------------------------------------------------

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Packed rows of every part."""
        return (*self.codes, *(extent.rows for extent in self.extents))

    @property
    def owners(self) -> tuple[int, ...]:
        """The tier of every part."""
        return (*range(len(self.codes)), *(extent.tier for extent in self.extents))

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.codes[0].device

    def pieces(self, tier: int) -> list[Tensor]:
        """A tier's packed rows in order of ids: of the base, then of each of its extents."""
        return [rows for owner, rows in zip(self.owners, self.parts, strict=True) if owner == tier]

    def chunks(self, tier: int) -> Iterator[Tensor]:
        """The same, at most ``CHUNK_ROWS`` rows at a time."""
        for piece in self.pieces(tier):
            yield from torch.split(piece, CHUNK_ROWS) if piece.shape[0] else ()

    def locate_part(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids int64 (...), known to be in range -> part and row there, both int64 (...)."""
        n = self.base.num_embeddings
        old = ids < n
        part, row = torch.zeros_like(ids), ids
        if n:
            known = torch.where(old, ids, 0)
            base = self.tier_map or Tiers.from_sizes(self.base.sizes)
            tier, row = base.locate(known)
            part = tier.to(torch.int64)
        if not self.extents:
            return part, row
        lengths = [extent.rows.shape[0] for extent in self.extents]
        starts = torch.tensor([*accumulate(lengths, initial=n)][:-1], dtype=torch.int64, device=ids.device)
        extent = (torch.bucketize(ids, starts, right=True) - 1).clamp(min=0)
        new_part, new_row = extent + len(self.codes), ids - starts[extent]
        return torch.where(old, part, new_part), torch.where(old, row, new_row)

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids int64 (...), known to be in range -> tier, uint8 (...), and rank in the tier, int64 (...)."""
        part, row = self.locate_part(ids)
        seen, before = [0] * len(self.codes), []
        for owner, rows in zip(self.owners, self.parts, strict=True):
            before.append(seen[owner])
            seen[owner] += rows.shape[0]
        tier = torch.tensor(self.owners, dtype=torch.uint8, device=ids.device)[part]
        return tier, row + torch.tensor(before, dtype=torch.int64, device=ids.device)[part]

    def tiers(self) -> Tiers:
        """Every id's tier."""
        if self.tier_map is None and not self.extents:
            return Tiers.from_sizes(self.base.sizes)
        n = self.config.num_embeddings
        tier_of = torch.empty(n, dtype=torch.uint8, device="cpu")
        for start in range(0, n, CHUNK_ROWS):
            ids = torch.arange(start, min(start + CHUNK_ROWS, n), device=self.device)
            tier_of[start : start + CHUNK_ROWS] = self.locate(ids)[0].cpu()
        return Tiers(self.config.sizes, tier_of)

    # ---- changes: each gives another snapshot ------------------------------------------------------------

    def values(self, codebook: int) -> Tensor:
        """A codebook's centroids as they decode, float32."""
        values = self.centroids[codebook].to(torch.float32)
        if self.base.centroid_dtype == "int8":
            values = values * self.scales[codebook][:, None, None]
        return values

    def encode(self, vectors: Tensor, tier: int) -> Tensor:
        """Nearest centroids of a tier: float32 (n, d) -> int32 (n, D_g)."""
        base = self.base
        return nearest_codes(
            vectors, self.values(base.codebook_of[tier]), base.num_subspaces[tier], base.num_centroids[tier]
        )

    def packed(self, vectors: Tensor, tier: int) -> Tensor:
        """The same as packed rows, uint8 (n, row_bytes)."""
        return pack(self.encode(vectors, tier), self.base.bits[tier])

    def appended(self, rows: Tensor, tier: int) -> Snapshot:
        """With packed rows (n, row_bytes), n >= 1, as the last ids. Copies nothing but them, now and then the extent.

        A table of 256 parts is merged first, which copies it whole.
        """
        if self.extents and self.extents[-1].tier == tier:
            return replace(self, extents=(*self.extents[:-1], self.extents[-1].extended(rows)))
        if len(self.codes) == MAX_TIERS:
            raise ValueError(f"a table of {MAX_TIERS} tiers has no room for appended ids: train it with fewer tiers")
        if len(self.codes) + len(self.extents) == MAX_TIERS:
            return self.merged().appended(rows, tier)
        return replace(self, extents=(*self.extents, Extent(tier, rows)))

    def updated(self, ids: Tensor, rows: Tensor) -> Snapshot:
        """With other packed rows for distinct ids (n,) that are in range; copies the parts that hold any of them.

        ``rows``: uint8 (n, w), w the largest row_bytes of all tiers; narrower rows use the first bytes.
        """
        part, row = self.locate_part(ids)
        parts = list(self.parts)
        for p in torch.unique(part).tolist():
            mine = part == p
            parts[p] = parts[p].clone()
            parts[p][row[mine]] = rows[mine, : parts[p].shape[1]]
        m = len(self.codes)
        extents = tuple(
            old if rows is old.rows else Extent(old.tier, rows)
            for old, rows in zip(self.extents, parts[m:], strict=True)
        )
        return replace(self, codes=tuple(parts[:m]), extents=extents)

    def merged_map(self) -> TierMap | None:
        """The tier map of the whole, as a file of it would hold."""
        if not self.extents:
            return self.tier_map
        if self.config.order is None:
            return None
        tiers = self.tiers()
        # The sizes of a map made by another writer may put tiers into another order; this one is ours.
        return build_tier_map(tiers).to(self.device)

    def merged(self) -> Snapshot:
        """The same table without extents: codes of a tier in one tensor."""
        if not self.extents:
            return self
        codes = tuple(torch.cat(self.pieces(g)) for g in range(len(self.codes)))
        return replace(self, base=self.config, codes=codes, tier_map=self.merged_map(), extents=())

    # ---- parts by name -----------------------------------------------------------------------------------

    def tensor_pieces(self) -> dict[str, list[Tensor]]:
        """The tensors of a file of it, each as the pieces that make it when joined along the first axis."""
        tensors = {f"codes.{g}": self.pieces(g) for g in range(len(self.codes))}
        tensors.update({f"centroids.{c}": [t] for c, t in enumerate(self.centroids)})
        if self.base.centroid_dtype == "int8":
            tensors.update({f"scales.{c}": [t] for c, t in enumerate(self.scales)})
        tensors.update({name: [t] for name, t in map_tensors(self.merged_map()).items()})
        if self.fallback is not None:
            tensors["fallback"] = [self.fallback]
        return tensors

    def nbytes_by_part(self) -> dict[str, int]:
        """Bytes held."""
        held = {
            "codes": sum(t.nbytes for t in self.codes) + sum(extent.nbytes for extent in self.extents),
            "centroids": sum(t.nbytes for t in self.centroids),
            "scales": sum(t.nbytes for t in self.scales),
            "tier_map": self.tier_map.nbytes if self.tier_map else 0,
        }
        return held if self.fallback is None else {**held, "fallback": self.fallback.nbytes}

    # ---- looking at all of it ----------------------------------------------------------------------------

    def codebook_stats(self) -> list[CodebookStats]:
        """A tier: how its codes use its centroids."""
        stats = []
        cfg = self.config
        for g, (n, subspaces, k) in enumerate(zip(cfg.sizes, cfg.num_subspaces, cfg.num_centroids, strict=True)):
            histogram = torch.zeros((subspaces, k), dtype=torch.float64, device=self.device)
            for rows in self.chunks(g):
                histogram += code_histogram(unpack(rows, subspaces, cfg.bits[g]), k)
            if self.centroids[cfg.codebook_of[g]].shape[0] > 1 or subspaces == 1:
                stats.append(tier_stats(g, n, histogram))
            else:
                together = tier_stats(g, n, histogram.sum(dim=0, keepdim=True))
                stats.append(replace(together, num_subspaces=subspaces, reachable=min(k, n * subspaces)))
        return stats

    def validate(self) -> None:
        """Raise ValueError if a value of the base cannot be right; extents hold what :meth:`packed` made."""
        cfg = self.base
        self.validate_codebooks()
        for g, packed in enumerate(self.codes):
            check_codes(f"codes.{g}", packed, cfg.num_subspaces[g], cfg.num_centroids[g])
        if self.tier_map is not None:
            check_map(self.tier_map, cfg.sizes)
        if self.fallback is not None:
            require_finite("fallback", self.fallback)

    def validate_codebooks(self) -> None:
        """Raise ValueError if a centroid or scale cannot be right."""
        for c, book in enumerate(self.centroids):
            if book.is_floating_point():
                require_finite(f"centroids.{c}", book)
            else:
                require_finite(f"scales.{c}", self.scales[c])
                if bool((self.scales[c] <= 0).any()):
                    raise ValueError(f"tensor 'scales.{c}' holds a scale that is not positive")
