"""CompactTable: the frozen product-quantised table, packed codes plus centroids and nothing else.

Size in bytes: sum_g n_g * ceil(D_g * bits_g / 8) for the codes; 4, 2 or 1 times K * d for the centroids of
each codebook (int8 adds a float32 scale a subspace); and the tier map, nothing for ids in frequency order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mgqe import ops
from mgqe.frozen import Config, FrozenTable, Reader, require_finite
from mgqe.ids import as_int64, check_ids
from mgqe.layout import (
    CENTROID_DTYPES,
    CompactConfig,
    check_codebook,
    check_map,
    map_tensors,
    read_map,
    store_centroids,
)
from mgqe.packing import bits_for, pack, row_bytes, spare_bits_are_zero, unpack
from mgqe.stats import CodebookStats, code_histogram, tier_stats
from mgqe.tiers import TierMap, Tiers, build_tier_map

if TYPE_CHECKING:
    from typing_extensions import Self

CHUNK_ROWS = 1 << 16  # rows unpacked at once when a sweep over all codes is needed


class CompactTable(FrozenTable):
    """A frozen table of packed codes and centroids, made by ``embedding.freeze()`` or :meth:`from_codes`.

    ``lookup`` of an id finds its tier and its rank there, reads the rank's packed row of D_g codes, and joins
    the D_g centroids they name. Tensors are held as given (a loaded file stays mapped): do not change them.
    """

    kind = "compact"

    def __init__(
        self,
        config: CompactConfig,
        codes: Sequence[Tensor],
        centroids: Sequence[Tensor],
        scales: Sequence[Tensor],
        tier_map: TierMap | None,
    ) -> None:
        """Parts that fit together; :meth:`from_codes` and :meth:`from_tensors` check that they do."""
        self.config = config
        self.num_embeddings = config.num_embeddings
        self.embedding_dim = config.embedding_dim
        self.padding_idx = config.padding_idx
        self._codes = list(codes)
        self._centroids = list(centroids)
        self._scales = list(scales)
        self._map = tier_map
        self._lookup = ops.PreparedLookup(
            ops.TableParts(
                codes=self._codes,
                centroids=self._centroids,
                scales=self._scales,
                map_bits=tier_map.bits if tier_map else (),
                map_ranks=tier_map.ranks if tier_map else (),
                order=tier_map.order if tier_map else (),
                sizes=config.sizes,
                bits=config.bits,
                num_subspaces=config.num_subspaces,
                codebook_of=config.codebook_of,
                embedding_dim=config.embedding_dim,
                padding_idx=-1 if config.padding_idx is None else config.padding_idx,
            )
        )

    @classmethod
    def from_codes(
        cls,
        tiers: Tiers,
        codes: Sequence[Tensor],
        codebooks: Sequence[Tensor],
        codebook_of: Sequence[int],
        num_centroids: Sequence[int],
        padding_idx: int | None = None,
        centroid_dtype: str = "float32",
    ) -> CompactTable:
        """A table from unpacked codes.

        Args:
            tiers: which id is in which tier; a tier map is made unless they are in frequency order.
            codes: a tier: integers (n_g, D_g) in [0, num_centroids[g]), rows in ascending id order.
            codebooks: float (Dc, Kc, sc) each. A tier with D_g subspaces of s = d / D_g dimensions reads
                r = s / sc pieces for each, Dc = D_g * r; or Dc = 1: its subspaces share one set of centroids.
            codebook_of: each tier's codebook.
            num_centroids: each tier's K_g, at most Kc of its codebook.
            padding_idx: the id that looks up as zeros.
            centroid_dtype: how centroids are kept: "float32"; "float16"; or "int8", symmetric with one
                float32 scale a piece, max |centroid| / 127, rounded half to even.

        Raises:
            ValueError: parts that do not fit together, codes out of range, centroids that are not finite, or
                too large for float16.
            TypeError: codes that are not integers.
        """
        m = tiers.num_tiers
        for name, given in (("codes", codes), ("codebook_of", codebook_of), ("num_centroids", num_centroids)):
            if len(given) != m:
                raise ValueError(f"{name} must have one entry a tier, {m}, got {len(given)}")
        if centroid_dtype not in CENTROID_DTYPES:
            raise ValueError(f"centroid_dtype must be one of {sorted(CENTROID_DTYPES)}, got {centroid_dtype!r}")
        if not codebooks or any(book.ndim != 3 for book in codebooks):
            raise ValueError("codebooks must be tensors of shape (subspaces or 1, centroids, dimensions)")
        if not all(0 <= c < len(codebooks) for c in codebook_of):
            raise ValueError(f"codebook_of must name codebooks 0 .. {len(codebooks) - 1}, got {codebook_of}")
        packed = []
        for g, tier_codes in enumerate(codes):
            if tier_codes.ndim != 2 or tier_codes.shape[0] != tiers.sizes[g] or tier_codes.shape[1] < 1:
                raise ValueError(
                    f"codes of tier {g} must have shape ({tiers.sizes[g]}, num_subspaces), "
                    f"got {tuple(tier_codes.shape)}"
                )
            if tier_codes.numel() and int(tier_codes.max()) >= num_centroids[g]:
                raise ValueError(f"tier {g} has num_centroids={num_centroids[g]}, but a code {int(tier_codes.max())}")
            packed.append(pack(tier_codes.detach().cpu(), bits_for(num_centroids[g])))
        stored = [store_centroids(book, centroid_dtype) for book in codebooks]
        tier_map = None if tiers.tier_of is None else build_tier_map(tiers)
        first, subspaces = codebooks[codebook_of[0]], codes[0].shape[1]
        shared = first.shape[0] == 1
        config = CompactConfig(
            num_embeddings=tiers.num_embeddings,
            embedding_dim=int(first.shape[2] * (subspaces if shared else first.shape[0])),
            sizes=tiers.sizes,
            num_subspaces=tuple(c.shape[1] for c in codes),
            num_centroids=tuple(int(k) for k in num_centroids),
            codebook_of=tuple(int(c) for c in codebook_of),
            centroid_dtype=centroid_dtype,
            padding_idx=padding_idx,
            order=tier_map.order if tier_map else None,
        )
        tensors = {f"codes.{g}": c for g, c in enumerate(packed)}
        for c, (centroids, scales) in enumerate(stored):
            tensors[f"centroids.{c}"] = centroids
            if centroid_dtype == "int8":
                tensors[f"scales.{c}"] = scales
        tensors.update(map_tensors(tier_map))
        return cls.from_tensors(tensors, config.to_json())

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: Config) -> Self:
        """From the parts that :meth:`to_tensors` gives; docs/format.md names and describes each one."""
        reader = Reader(tensors, config)
        cfg = CompactConfig.read(reader)
        dtype = CENTROID_DTYPES[cfg.centroid_dtype]
        centroids, scales = [], []
        for c in range(max(cfg.codebook_of) + 1):
            book = reader.tensor(f"centroids.{c}", dtype, (None, None, None))
            centroids.append(book)
            scales.append(
                reader.tensor(f"scales.{c}", torch.float32, (book.shape[0],))
                if dtype == torch.int8
                else torch.empty(0, device=book.device)
            )
        codes = []
        for g, (n, subspaces, k) in enumerate(zip(cfg.sizes, cfg.num_subspaces, cfg.num_centroids, strict=True)):
            check_codebook(g, cfg.embedding_dim, subspaces, k, tuple(centroids[cfg.codebook_of[g]].shape))
            codes.append(reader.tensor(f"codes.{g}", torch.uint8, (n, row_bytes(subspaces, bits_for(k)))))
        tier_map = None if cfg.order is None else read_map(reader, cfg.sizes, cfg.order)
        reader.finish()
        return cls(cfg, codes, centroids, scales, tier_map)

    def to_tensors(self) -> tuple[dict[str, Tensor], Config]:
        """``codes.g``, ``centroids.c``, ``scales.c`` (int8), ``tier_map.bits.l`` and ``tier_map.ranks.l``."""
        tensors = {f"codes.{g}": t for g, t in enumerate(self._codes)}
        tensors.update({f"centroids.{c}": t for c, t in enumerate(self._centroids)})
        if self.config.centroid_dtype == "int8":
            tensors.update({f"scales.{c}": t for c, t in enumerate(self._scales)})
        tensors.update(map_tensors(self._map))
        return tensors, self.config.to_json()

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> float32 (..., d); zeros for ``padding_idx``.

        Raises TypeError for ids that are not integers, IndexError for ids outside [0, num_embeddings).
        """
        return self._lookup(as_int64(ids))

    def codes(self, ids: Tensor) -> Tensor:
        """Codes of ids: integers (...) -> int32 (..., max D_g), -1 beyond the D_g of a coarser tier."""
        rows = check_ids(ids, self.num_embeddings)
        tier, rank = self.locate(rows)
        out = torch.full((*rows.shape, max(self.config.num_subspaces)), -1, dtype=torch.int32, device=rows.device)
        for g, (subspaces, bits) in enumerate(zip(self.config.num_subspaces, self.config.bits, strict=True)):
            mine = tier == g
            out[..., :subspaces][mine] = unpack(self._codes[g][rank[mine]], subspaces, bits)
        return out

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Each id's tier, uint8 (...), and its row among that tier's codes, int64 (...)."""
        rows = check_ids(ids, self.num_embeddings)
        return Tiers.from_sizes(self.config.sizes).locate(rows) if self._map is None else self._map.locate(rows)

    @property
    def tiers(self) -> Tiers:
        """The tiers, worked out from the tier map (which is all that is held)."""
        if self._map is None:
            return Tiers.from_sizes(self.config.sizes)
        on_cpu, n = self._map.to("cpu"), self.num_embeddings
        tier_of = torch.empty(n, dtype=torch.uint8, device="cpu")
        for start in range(0, n, CHUNK_ROWS):
            ids = torch.arange(start, min(start + CHUNK_ROWS, n), device="cpu")
            tier_of[ids] = on_cpu.locate(ids)[0]
        return Tiers(self.config.sizes, tier_of)

    @property
    def num_tiers(self) -> int:
        """m."""
        return len(self.config.sizes)

    def nbytes_by_part(self) -> dict[str, int]:
        """Bytes of ``codes``, ``centroids``, ``scales`` and ``tier_map``; they sum to ``nbytes``."""
        return {"codes": 0, "centroids": 0, "scales": 0, "tier_map": 0, **super().nbytes_by_part()}

    def codebook_stats(self) -> list[CodebookStats]:
        """A tier: centroids in use against those it can reach, and perplexity; one sweep over all codes.

        Where all subspaces share one codebook their codes are counted together.
        """
        stats = []
        cfg = self.config
        for g, (n, subspaces, k) in enumerate(zip(cfg.sizes, cfg.num_subspaces, cfg.num_centroids, strict=True)):
            histogram = torch.zeros((subspaces, k), dtype=torch.float64, device=self.device)
            for start in range(0, n, CHUNK_ROWS):
                rows = self._codes[g][start : start + CHUNK_ROWS]
                histogram += code_histogram(unpack(rows, subspaces, cfg.bits[g]), k)
            if self._centroids[cfg.codebook_of[g]].shape[0] > 1 or subspaces == 1:
                stats.append(tier_stats(g, n, histogram))
            else:
                together = tier_stats(g, n, histogram.sum(dim=0, keepdim=True))
                stats.append(replace(together, num_subspaces=subspaces, reachable=min(k, n * subspaces)))
        return stats

    def validate(self) -> None:
        """Read what a look-up trusts, and raise ValueError if it cannot be right.

        Reads centroids and the tier map whole; codes only where one can be out of range (K_g is no power
        of two) or a row has spare bits.
        """
        cfg = self.config
        for c, book in enumerate(self._centroids):
            if book.is_floating_point():
                require_finite(f"centroids.{c}", book)
            else:
                require_finite(f"scales.{c}", self._scales[c])
                if bool((self._scales[c] <= 0).any()):
                    raise ValueError(f"tensor 'scales.{c}' holds a scale that is not positive")
        for g, (subspaces, k, bits) in enumerate(zip(cfg.num_subspaces, cfg.num_centroids, cfg.bits, strict=True)):
            if not spare_bits_are_zero(self._codes[g], subspaces, bits):
                raise ValueError(f"tensor 'codes.{g}' has spare bits that are not zero")
            if k < 1 << bits:
                top = ops.max_code(self._codes[g], subspaces, bits)
                if top >= k:
                    raise ValueError(f"tensor 'codes.{g}' holds code {top}, but num_centroids is {k}")
        if self._map is not None:
            check_map(self._map, cfg.sizes)

    def _describe(self) -> str:
        cfg = self.config
        tiers = "; ".join(
            f"{n:,} ids of {d} codes of {b} bits"
            for n, d, b in zip(cfg.sizes, cfg.num_subspaces, cfg.bits, strict=True)
        )
        return f"{tiers}; {cfg.centroid_dtype} centroids"
