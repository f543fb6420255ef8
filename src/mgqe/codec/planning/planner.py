"""plan: the configuration of a table that is expected to lose least within a budget of bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.checks.ids import check_sizes
from mgqe.checks.scalars import as_float, as_int
from mgqe.codec.capacity import Capacity
from mgqe.codec.planning.budget import budget_bytes
from mgqe.codec.planning.loss import measured
from mgqe.codec.planning.search import HEADER_SPREAD, Candidate, Space, Vocabulary
from mgqe.codec.tiers import Tiers, check_counts

COUNTS_POWER = 0.5  # how much more an id's error counts if it is frequent: (count + 1) to this power
MAX_TIERS = 3
MAX_CENTROIDS = 256
MEASURED = 12  # candidates that are tried out on a trained table


@dataclass(frozen=True)
class Plan:
    """What a table should become, and what that is expected to cost.

    Attributes:
        num_embeddings, embedding_dim: N and d.
        budget: in bytes.
        tiers: the ids' partition, as MGQEmbedding takes it.
        num_subspaces, num_centroids: D and K of each tier.
        share_codebook: whether the tiers choose from one codebook.
        centroid_dtype: "float32", "float16" or "int8".
        nbytes: of the frozen table's file, exactly; at most ``budget``.
        full_nbytes: of the table as it is.
        loss: what was minimised: the mean of ``errors``, each tier weighted by the sum of its ids'
            (count + 1)^counts_power.
        errors: of each tier, the share of its rows' squares that is lost.
        measured: whether these were measured on the table; otherwise they are those of Gaussian rows.
        padding_idx: the id that looks up as zeros, as it was given.
    """

    num_embeddings: int
    embedding_dim: int
    budget: int
    tiers: Tiers
    num_subspaces: tuple[int, ...]
    num_centroids: tuple[int, ...]
    share_codebook: bool
    centroid_dtype: str
    nbytes: int
    full_nbytes: int
    loss: float
    errors: tuple[float, ...]
    measured: bool
    padding_idx: int | None = None

    @property
    def capacity(self) -> str:
        """What differs between tiers, as MGQEmbedding calls it."""
        return "centroids" if len(set(self.num_subspaces)) == 1 else "both"

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of MGQEmbedding and MGQEmbeddingBag."""
        return {"tiers": self.tiers, **self.settings()}

    def settings(self) -> dict[str, Any]:
        """The same without the tiers: plain numbers and names."""
        same = len(set(self.num_subspaces)) == 1
        return {
            "num_subspaces": self.num_subspaces[0] if same else self.num_subspaces,
            "num_centroids": self.num_centroids[0] if len(self.num_centroids) == 1 else self.num_centroids,
            "capacity": self.capacity,
            "share_codebook": self.share_codebook,
            "centroid_dtype": self.centroid_dtype,
        }

    def python(self) -> str:
        """The line that makes such a layer; where there are tiers, from the ``counts`` that the plan was made of."""
        parts = [str(self.num_embeddings), str(self.embedding_dim)]
        settings = self.settings()
        if self.tiers.num_tiers == 1:
            name = "DPQEmbedding"
            settings = {key: settings[key] for key in ("num_subspaces", "num_centroids", "centroid_dtype")}
        else:
            name = "MGQEmbedding"
            ends = self.tiers.starts[1:-1]
            shown = f"({ends[0]},)" if len(ends) == 1 else str(ends)
            parts.append(f"tiers=mgqe.Tiers.from_counts(counts, boundaries={shown})")
        if self.padding_idx is not None:
            parts.insert(2, f"padding_idx={self.padding_idx}")
        defaults = {"capacity": "centroids", "share_codebook": True, "centroid_dtype": "float32"}
        parts += [f"{key}={value!r}" for key, value in settings.items() if defaults.get(key) != value]
        return f"mgqe.{name}({', '.join(parts)})".replace("'", '"')

    def __str__(self) -> str:
        kind = "separate codebooks" if not self.share_codebook else "one codebook"
        capacity = Capacity.of(self.embedding_dim, self.tiers.sizes, self.num_subspaces, self.num_centroids, False)
        kind = f", {kind}" if self.tiers.num_tiers > 1 else ""
        return f"{capacity.describe()}{kind}, {self.centroid_dtype} centroids"


def plan(
    num_embeddings: int,
    embedding_dim: int,
    budget: int | float | str,
    *,
    counts: Tensor | Sequence[float] | None = None,
    weight: Tensor | None = None,
    padding_idx: int | None = None,
    max_tiers: int = MAX_TIERS,
    max_centroids: int = MAX_CENTROIDS,
    counts_power: float = COUNTS_POWER,
) -> Plan:
    """The configuration of a table that is expected to lose least within a budget of bytes.

    Tiers, subspaces, centroids, their type, and whether tiers share a codebook are chosen together. What is minimised
    is the mean of the shares of the tiers' squares that are lost, an id weighing (count + 1)^counts_power.

    Args:
        num_embeddings, embedding_dim: N and d.
        budget: "5%" or 0.05 of the full table's bytes, or a whole number of bytes; the frozen table's file takes no
            more.
        counts: (N,) how often each id occurs in training. Without them there is one tier.
        weight: (N, d) trained rows. With them the best candidates are tried out on (a sample of) the rows; without,
            rows count as Gaussian.
        padding_idx: an id that looks up as zeros.
        max_tiers: 1 to 3.
        max_centroids: the largest K; more than 256 take more than a byte a code and long in training.
        counts_power: how much more the error of a frequent id counts; 0: all ids alike; 1: by the interaction.

    Raises:
        ValueError: a budget that nothing fits, or that the full table fits; sizes, counts or rows that do not go
            together; rows that are NaN. TypeError: arguments of another type.
    """
    problem = Problem.of(
        num_embeddings, embedding_dim, counts, weight, padding_idx, max_tiers, max_centroids, counts_power
    )
    return problem.plan(budget_bytes(budget, problem.full_nbytes))


class Problem:
    """A table to plan for; the candidates are made once for any number of budgets."""

    def __init__(self, space: Space, full_nbytes: int, weight: Tensor | None) -> None:
        self.space, self.full_nbytes, self.weight = space, full_nbytes, weight

    @classmethod
    def of(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        counts: Tensor | Sequence[float] | None = None,
        weight: Tensor | None = None,
        padding_idx: int | None = None,
        max_tiers: int = MAX_TIERS,
        max_centroids: int = MAX_CENTROIDS,
        counts_power: float = COUNTS_POWER,
        full_nbytes: int | None = None,
    ) -> Problem:
        """From the arguments of :func:`plan`, checked. full_nbytes: of the table as it is, where its dtype is known."""
        num_embeddings, embedding_dim, padding_idx = check_sizes(num_embeddings, embedding_dim, padding_idx)
        max_tiers, max_centroids = as_int("max_tiers", max_tiers), as_int("max_centroids", max_centroids)
        counts_power = as_float("counts_power", counts_power)
        check_limits(num_embeddings, max_tiers, max_centroids, counts_power)
        rows = None if weight is None else _check_weight(weight, num_embeddings, embedding_dim)
        values = np.ones(num_embeddings)
        order = np.arange(num_embeddings)
        if counts is not None:
            with torch.device("cpu"):  # whatever the default device
                known = check_counts(counts, num_embeddings)
            order = torch.sort(known, descending=True, stable=True).indices.numpy()
            values = (known.double().numpy() + 1.0) ** counts_power
        if padding_idx is not None and num_embeddings > 1:
            values[padding_idx] = 0.0
        if rows is not None and not bool(rows.any()):
            raise ValueError("the rows of weight are all zero: give a trained table, or leave weight= out")
        vocabulary = Vocabulary(
            order, (values / values.sum())[order], bool((order[1:] > order[:-1]).all()) or len(order) == 1
        )
        space = Space(vocabulary, embedding_dim, padding_idx, 1 if counts is None else max_tiers, max_centroids)
        nbytes = num_embeddings * embedding_dim * (4 if weight is None else weight.element_size())
        return cls(space, nbytes if full_nbytes is None else full_nbytes, rows)

    def plan(self, budget: int) -> Plan:
        """The best within so many bytes."""
        if self.weight is None:
            best = next(self.within(budget), None)
            if best is not None:
                return self._made(best[0], best[1], budget)
        else:
            tried = _varied(self.within(budget), MEASURED)
            if tried:
                losses = [measured(self.space, c, self.weight) for c, _ in tried]
                (candidate, nbytes), (loss, errors) = min(zip(tried, losses, strict=True), key=lambda pair: pair[1][0])
                return self._made(candidate, nbytes, budget, loss, errors)
        least = self.least()
        raise ValueError(
            f"a budget of {budget:,} bytes is too small for {self.space.vocabulary.size:,} ids x "
            f"{self.space.embedding_dim}: the least is {least:,} bytes ({100 * least / self.full_nbytes:.2f}% of "
            f"{self.full_nbytes:,}), header included"
        )

    def within(self, budget: int) -> Any:
        """Candidates that fit, with their bytes, by rising loss."""
        for candidate in self.space.candidates:
            if (
                self.space.about(candidate) < budget + HEADER_SPREAD
                and (nbytes := self.space.nbytes(candidate)) <= budget
            ):
                yield candidate, nbytes

    def least(self) -> int:
        """Bytes of the smallest candidate."""
        smallest = min(map(self.space.about, self.space.candidates))
        near = (c for c in self.space.candidates if self.space.about(c) <= smallest + HEADER_SPREAD)
        return min(map(self.space.nbytes, near))

    def ladder(self) -> list[tuple[int, float]]:
        """(bytes, loss) of all that is best within some budget, by rising bytes and falling loss."""
        steps: list[tuple[int, float]] = []
        for candidate in self.space.candidates:  # by rising loss
            if (nbytes := self.space.nbytes(candidate)) < (steps[-1][0] if steps else math.inf):
                steps.append((nbytes, candidate.loss))
        return steps[::-1]

    def _made(
        self,
        candidate: Candidate,
        nbytes: int,
        budget: int,
        loss: float | None = None,
        errors: tuple[float, ...] | None = None,
    ) -> Plan:
        return Plan(
            self.space.vocabulary.size,
            self.space.embedding_dim,
            budget,
            self.space.tiers(candidate.sizes),
            candidate.num_subspaces,
            candidate.num_centroids,
            candidate.share_codebook,
            candidate.centroid_dtype,
            nbytes,
            self.full_nbytes,
            candidate.loss if loss is None else loss,
            candidate.errors if errors is None else errors,
            loss is not None,
            self.space.padding_idx,
        )


def _varied(within: Any, number: int) -> list[tuple[Candidate, int]]:
    """The first so many that differ in more than where the tiers end."""
    seen, chosen = set(), []
    for candidate, nbytes in within:
        key = (candidate.num_subspaces, candidate.num_centroids, candidate.share_codebook, candidate.centroid_dtype)
        if key not in seen:
            seen.add(key)
            chosen.append((candidate, nbytes))
        if len(chosen) == number:
            break
    return chosen


def check_limits(num_embeddings: int, max_tiers: int, max_centroids: int, counts_power: float) -> None:
    if num_embeddings < 2:
        raise ValueError(f"num_embeddings must be at least 2 to be compressed, got {num_embeddings}")
    if max_tiers not in (1, 2, 3):
        raise ValueError(f"max_tiers must be 1, 2 or 3, got {max_tiers!r}")
    if not 2 <= max_centroids <= 65_536:
        raise ValueError(f"max_centroids must be a whole number from 2 to 65,536, got {max_centroids!r}")
    if not 0 <= counts_power <= 2:
        raise ValueError(f"counts_power must be from 0 (all ids alike) to 2, got {counts_power!r}")


def _check_weight(weight: Tensor, num_embeddings: int, embedding_dim: int) -> Tensor:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"weight must be a floating-point tensor of rows, got {kind}")
    if tuple(weight.shape) != (num_embeddings, embedding_dim):
        raise ValueError(f"weight must have shape ({num_embeddings}, {embedding_dim}), got {tuple(weight.shape)}")
    rows = weight.detach().cpu().float()
    if not bool((fine := torch.isfinite(rows).all(1)).all()):
        bad = int((~fine).nonzero()[0])
        raise ValueError(
            f"{int((~fine).sum())} rows of weight hold NaN or infinity, the first is row {bad}: training diverged, "
            "or the file is damaged"
        )
    return rows
