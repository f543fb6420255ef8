"""Plan: what a budget makes of a table; an even shape by its counts, or, as a RowsPlan, a mixed table by its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mgqe.codec.capacity import Capacity
from mgqe.codec.planning.shapes import MAX_BITS, SPEED
from mgqe.codec.planning.speed import in_words
from mgqe.codec.tiers import Tiers
from mgqe.ops.layout.packed_format import LEVEL_BITS


@dataclass(frozen=True)
class Plan:
    """What a table should become, and what that is expected to cost: an even shape, from counts alone.

    Attributes:
        budget: in bytes.
        tiers: the ids' partition, as MGQEmbedding takes it.
        capacity: what each tier has: subspaces, centroids and the bits of its codes.
        centroid_dtype: "float32", "float16" or "int8".
        nbytes: of the frozen table's file, exactly; at most ``budget``.
        full_nbytes: of the table as it is.
        loss: what was minimised: the mean of ``errors``, each tier weighted by the sum of its ids'
            (count + 1)^counts_power.
        errors: of each tier, the expected share of its rows' squares that is lost, if rows are Gaussian.
        lookup_share: what a look-up is expected to take as a share of nn.Embedding's time, with ids as frequent as the
            counts say: an estimate for one core of a server with AVX-512 (docs/method.md).
        padding_idx: the id that looks up as zeros, as it was given.
    """

    budget: int
    tiers: Tiers
    capacity: Capacity
    centroid_dtype: str
    nbytes: int
    full_nbytes: int
    loss: float
    errors: tuple[float, ...]
    lookup_share: float
    padding_idx: int | None = None

    @property
    def num_embeddings(self) -> int:
        """N."""
        return self.tiers.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """d."""
        return self.capacity.embedding_dim

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of MGQEmbedding and MGQEmbeddingBag, ``padding_idx`` apart."""
        return {"tiers": self.tiers, **self.settings()}

    def settings(self) -> dict[str, Any]:
        """The same without the tiers: plain numbers and names."""
        subspaces, centroids = self.capacity.num_subspaces, self.capacity.num_centroids
        same = len(set(subspaces)) == 1
        return {
            "num_subspaces": subspaces[0] if same else subspaces,
            "num_centroids": centroids[0] if len(centroids) == 1 else centroids,
            "capacity": "centroids" if same else "both",
            "share_codebook": self.capacity.share_codebook,
            "centroid_dtype": self.centroid_dtype,
        }

    def python(self) -> str:
        """The line that makes such a layer; where there are tiers, from the ``counts`` that the plan was made of."""
        parts = [str(self.num_embeddings), str(self.embedding_dim), *self._padding()]
        settings = self.settings()
        if self.tiers.num_tiers == 1:
            name = "DPQEmbedding"
            settings = {key: settings[key] for key in ("num_subspaces", "num_centroids", "centroid_dtype")}
        else:
            name = "MGQEmbedding"
            ends = self.tiers.starts[1:-1]
            shown = f"({ends[0]},)" if len(ends) == 1 else str(ends)
            parts.append(f"tiers=mgqe.Tiers.from_counts(counts, boundaries={shown})")
        defaults = {"capacity": "centroids", "share_codebook": True, "centroid_dtype": "float32"}
        parts += [f"{key}={value!r}" for key, value in settings.items() if defaults.get(key) != value]
        return f"mgqe.{name}({', '.join(parts)})".replace("'", '"')

    def _padding(self) -> list[str]:
        return [] if self.padding_idx is None else [f"padding_idx={self.padding_idx}"]

    def __str__(self) -> str:
        kind = "one codebook" if self.capacity.share_codebook else "separate codebooks"
        kind = f", {kind}" if self.tiers.num_tiers > 1 else ""
        kind = f"{kind}, {self.centroid_dtype} centroids{self._more()}"
        return f"{self.capacity.describe()}{kind}, {in_words(self.lookup_share)}"

    def _more(self) -> str:
        return ""


@dataclass(frozen=True)
class RowsPlan(Plan):
    """What a layer with this budget makes of trained rows: a mixed table.

    ``capacity`` has the widths of the subspaces and the bits of every code of every tier. ``loss`` and ``errors`` are
    shares of squares about the mean of the rows, in the metric, an id weighing (count + 1) to a power.

    Attributes:
        metric: what errors are measured by: "queries", or "identity" for all directions alike.
        compared: the sizes of the tiers that were compared, and the expected loss of each.
        head_and_tail: the expected shares of the squares, ids counting alike, that are lost of the 10% of ids that are
            most frequent, and of the others; None without counts.
        counts, queries, prefer, prefer_tail: as they were given.
    """

    metric: str = "identity"
    compared: tuple[tuple[tuple[int, ...], float], ...] = ()
    counts: Tensor | None = field(default=None, repr=False, compare=False)
    queries: Any = field(default=None, repr=False, compare=False)
    prefer: str = SPEED
    head_and_tail: tuple[float, float] | None = None
    prefer_tail: bool = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``MGQEmbedding.from_pretrained(weight, ...)``, ``padding_idx`` apart."""
        counts = {} if self.counts is None else {"counts": self.counts}
        return {**counts, **({} if self.queries is None else {"queries": self.queries}), **self.settings()}

    def settings(self) -> dict[str, Any]:
        """The budget in bytes, and what was preferred if it is not the default."""
        prefer = {} if self.prefer == SPEED else {"prefer": self.prefer}
        return {"budget": self.budget, **prefer, **({"prefer_tail": True} if self.prefer_tail else {})}

    def python(self) -> str:
        """The line that makes the same table of the same ``weight``, with the ``counts`` and ``queries`` as given."""
        names = [f"{name}={name}" for name in ("counts", "queries") if getattr(self, name) is not None]
        prefer = [] if self.prefer == SPEED else [f'prefer="{self.prefer}"']
        prefer += ["prefer_tail=True"] if self.prefer_tail else []
        parts = ["weight", *self._padding(), *names, f"budget={self.budget:_}", *prefer]
        return f"mgqe.MGQEmbedding.from_pretrained({', '.join(parts)})"

    def _more(self) -> str:
        coordinates = f"{self.capacity.num_coordinates} of {self.embedding_dim} coordinates"
        return f", {coordinates}, metric: {self.metric}{self.limit}"

    @property
    def limit(self) -> str:
        """For texts: that all codes have as many bits as they can, so that a plan may leave bytes of its budget."""
        most = LEVEL_BITS if self.capacity.has_levels else MAX_BITS
        if min(min(tier.code_bits) for tier in self.capacity.tiers) < most:
            return ""
        return f", all codes with the most bits that {'levels' if self.capacity.has_levels else 'codes'} have, {most}"
