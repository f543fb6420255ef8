"""plan: what is expected to lose least of a table within a budget of bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.checks.ids import check_dense, check_sizes, no_values
from mgqe.checks.scalars import as_float, as_int
from mgqe.codec.capacity import Capacity
from mgqe.codec.metric import Metric
from mgqe.codec.planning.budget import budget_bytes, too_small
from mgqe.codec.planning.fits import unjudged_plans
from mgqe.codec.planning.head_tail import head_and_tail
from mgqe.codec.planning.plans import Plan, RowsPlan
from mgqe.codec.planning.problem import TableProblem, candidates
from mgqe.codec.planning.search import HEADER_SPREAD, Candidate, Space, Vocabulary
from mgqe.codec.planning.shapes import SPEED, check_prefer_tail, check_preference
from mgqe.codec.planning.speed import Frequencies, lookup_share
from mgqe.codec.tiers import check_counts

COUNTS_POWER = 0.5  # how much more an id's error counts if it is frequent: (count + 1) to this power
MAX_TIERS = 3
MAX_CENTROIDS = 256


def plan(
    num_embeddings: int,
    embedding_dim: int,
    budget: int | float | str,
    *,
    counts: Tensor | Sequence[float] | None = None,
    weight: Tensor | None = None,
    queries: Any = None,
    prefer: str = SPEED,
    prefer_tail: bool = False,
    padding_idx: int | None = None,
    max_tiers: int = MAX_TIERS,
    max_centroids: int = MAX_CENTROIDS,
    counts_power: float = COUNTS_POWER,
) -> Plan:
    """What is expected to lose least of a table within a budget of bytes.

    With ``weight`` this is the plan that a layer with this budget makes of these rows, without its centroids, as a
    :class:`RowsPlan`: which coordinates are kept, how they are joined to subspaces, and how many bits each tier spends
    on each of them.

    Without it there is no spectrum to plan by. Rows count as Gaussian, alike in all directions, and the plan is an even
    shape: tiers, subspaces, centroids, their type, and whether tiers share a codebook, with as many bits for every
    subspace of a tier. What is minimised is the mean of the shares of the tiers' squares that are lost, an id weighing
    (count + 1)^counts_power.

    Args:
        num_embeddings, embedding_dim: N and d.
        budget: "5%" or 0.05 of the full table's bytes, or a whole number of bytes; the frozen table's file takes no
            more.
        counts: (N,) how often each id occurs in training. Without them there is one tier, or, with ``weight``, tiers
            by the lengths of rows where these pay.
        weight: (N, d) trained rows.
        queries: with ``weight``, floats (n, d), a sample of what the rows are multiplied with, by which errors are
            measured; without, errors in all directions count alike.
        prefer: with ``weight``: "speed", of the shapes that are expected to lose about as little the one that looks up
            fastest, or "size", the one that is expected to lose least; see :class:`mgqe.Quantization`.
        prefer_tail: with ``weight`` and counts: every id's error counts alike, so that rare ids keep more and frequent
            ones less; see :class:`mgqe.Quantization`.
        padding_idx: an id that looks up as zeros.
        max_tiers: without ``weight``: 1 to 3.
        max_centroids: without ``weight``: the largest K; more than 256 take more than a byte a code and long in
            training.
        counts_power: without ``weight``: how much more the error of a frequent id counts; 0: all ids alike; 1: by the
            interaction.

    Raises:
        ValueError: a budget that nothing fits, or that the full table fits; sizes, counts, rows or queries that do not
            go together; rows that are NaN or all zero; queries, "size" or ``prefer_tail`` without rows; another
            ``prefer``; ``prefer_tail`` without counts.
        TypeError: arguments of another type.
    """
    limits: dict[str, Any] = {"max_tiers": max_tiers, "max_centroids": max_centroids, "counts_power": counts_power}
    check_preference(prefer)
    if weight is None:
        if queries is not None:
            raise ValueError(
                "queries say how errors in trained rows are measured, and there are no rows: give weight (N, d) too, "
                "or leave queries out"
            )
        if prefer != SPEED:
            raise ValueError(
                f"prefer={prefer!r} chooses among the shapes of trained rows, and there are no rows: give weight "
                "(N, d) too, or leave prefer out"
            )
        if prefer_tail:
            raise ValueError(
                "prefer_tail says how errors in trained rows count, and there are no rows: give weight (N, d) too, or "
                "counts_power=0 instead"
            )
        problem = Problem.of(num_embeddings, embedding_dim, counts, padding_idx, **limits)
        return problem.plan(budget_bytes(budget, problem.full_nbytes))
    defaults = {"max_tiers": MAX_TIERS, "max_centroids": MAX_CENTROIDS, "counts_power": COUNTS_POWER}
    if chosen := [name for name, value in limits.items() if value != defaults[name]]:
        raise ValueError(f"{', '.join(chosen)} can be given only without weight: leave out one or the other")
    with torch.device("cpu"):  # whatever the default device
        sizes = check_sizes(num_embeddings, embedding_dim, padding_idx)
        return _plan_rows(sizes, budget, counts, weight, queries, prefer, prefer_tail)


def _plan_rows(
    sizes: tuple[int, int, int | None],
    budget: int | float | str,
    counts: Tensor | Sequence[float] | None,
    weight: Tensor,
    queries: Any,
    prefer: str,
    prefer_tail: bool,
) -> RowsPlan:
    check_prefer_tail(prefer_tail, counts)
    num_embeddings, embedding_dim, padding_idx = sizes
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"weight must be a floating-point tensor of rows, got {kind}")
    if tuple(weight.shape) != (num_embeddings, embedding_dim):
        raise ValueError(f"weight must have shape ({num_embeddings}, {embedding_dim}), got {tuple(weight.shape)}")
    check_dense(weight, "weight")
    if weight.is_meta:
        raise no_values("the rows of weight")
    if not bool(weight.any()):
        raise ValueError("the rows of weight are all zero: give a trained table, or leave weight out")
    metric = Metric.identity(embedding_dim) if queries is None else Metric.of_queries(queries).for_rows(embedding_dim)
    nbytes = budget_bytes(budget, weight.nbytes)
    known = None if counts is None else check_counts(counts, num_embeddings)
    how: dict[str, Any] = {"prefer": prefer, "prefer_tail": prefer_tail, "by_length": True}
    problem = TableProblem(weight.detach(), known, {metric.source: metric}, padding_idx, **how)
    plans = [plan for _, plan in unjudged_plans(problem, candidates([problem])[0], nbytes)]
    best = plans[problem.expected_best(plans)]
    return RowsPlan(
        nbytes,
        best.tiers,
        best.capacity,
        best.choice.centroid_dtype,
        best.nbytes,
        weight.nbytes,
        best.loss,
        best.errors,
        best.lookup_share(known),
        padding_idx,
        metric.source,
        tuple((plan.tiers.sizes, plan.loss) for plan in plans),
        known,
        queries,
        prefer,
        None if known is None else head_and_tail(best, weight, known, padding_idx),
        prefer_tail,
    )


class Problem:
    """A table to plan for by its counts; the candidates are made once for any number of budgets."""

    def __init__(self, space: Space, full_nbytes: int, counts: Tensor | None = None) -> None:
        self.space, self.full_nbytes, self.counts = space, full_nbytes, counts

    @classmethod
    def of(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        counts: Tensor | Sequence[float] | None = None,
        padding_idx: int | None = None,
        max_tiers: int = MAX_TIERS,
        max_centroids: int = MAX_CENTROIDS,
        counts_power: float = COUNTS_POWER,
        full_nbytes: int | None = None,
    ) -> Problem:
        """From the arguments of :func:`plan`, checked. full_nbytes: of the table as it is, if not of float32."""
        num_embeddings, embedding_dim, padding_idx = check_sizes(num_embeddings, embedding_dim, padding_idx)
        max_tiers, max_centroids = as_int("max_tiers", max_tiers), as_int("max_centroids", max_centroids)
        counts_power = as_float("counts_power", counts_power)
        check_limits(num_embeddings, max_tiers, max_centroids, counts_power)
        values = np.ones(num_embeddings)
        order = np.arange(num_embeddings)
        known = None
        if counts is not None:
            with torch.device("cpu"):  # whatever the default device
                known = check_counts(counts, num_embeddings)
            order = torch.sort(known, descending=True, stable=True).indices.numpy()
            values = (known.double().numpy() + 1.0) ** counts_power
        if padding_idx is not None and num_embeddings > 1:
            values[padding_idx] = 0.0
        vocabulary = Vocabulary(
            order, (values / values.sum())[order], bool((order[1:] > order[:-1]).all()) or len(order) == 1
        )
        space = Space(vocabulary, embedding_dim, padding_idx, 1 if counts is None else max_tiers, max_centroids)
        return cls(space, 4 * num_embeddings * embedding_dim if full_nbytes is None else full_nbytes, known)

    def plan(self, budget: int) -> Plan:
        """The best within so many bytes."""
        candidate, nbytes = next(self.within(budget), (None, 0))
        if candidate is None:
            sizes = self.space.vocabulary.size, self.space.embedding_dim
            raise too_small(budget, *sizes, self.least(), self.full_nbytes)
        return Plan(
            budget,
            self.space.tiers(candidate.sizes),
            candidate.capacity(self.space.embedding_dim),
            candidate.centroid_dtype,
            nbytes,
            self.full_nbytes,
            candidate.loss,
            candidate.errors,
            self.lookup_share(candidate.capacity(self.space.embedding_dim)),
            self.space.padding_idx,
        )

    def lookup_share(self, capacity: Capacity) -> float:
        """The share of nn.Embedding's time that look-ups are expected to take with this even shape."""
        return lookup_share(capacity, Frequencies.of(self.space.vocabulary.size, self.counts), turned=False)

    def within(self, budget: int) -> Iterator[tuple[Candidate, int]]:
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


def check_limits(num_embeddings: int, max_tiers: int, max_centroids: int, counts_power: float) -> None:
    if num_embeddings < 2:
        raise ValueError(f"num_embeddings must be at least 2 to be compressed, got {num_embeddings}")
    if max_tiers not in (1, 2, 3):
        raise ValueError(f"max_tiers must be 1, 2 or 3, got {max_tiers!r}")
    if not 2 <= max_centroids <= 65_536:
        raise ValueError(f"max_centroids must be a whole number from 2 to 65,536, got {max_centroids!r}")
    if not 0 <= counts_power <= 2:
        raise ValueError(f"counts_power must be from 0 (all ids alike) to 2, got {counts_power!r}")
