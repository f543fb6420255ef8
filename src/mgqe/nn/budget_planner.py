"""BudgetPlanner: what a layer with a budget knows until its rows are trained, and the plan that it makes then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mgqe.codec.capacity import Capacity
from mgqe.codec.metric import Metric
from mgqe.codec.planning.mixed import Choice, FittedPlan, Sample, centroid_room, fit_plan, least_nbytes, plan_mixed
from mgqe.codec.tiers import check_counts

COUNTS_POWER = 0.5
FRACTIONS = (0.1, 0.9)


@dataclass(frozen=True, eq=False)
class BudgetPlanner:
    """A budget that is spent when the warm-up ends, on the rows as they are then.

    Attributes:
        nbytes: what the frozen table's file may take.
        counts: float64 (N,), how often each id occurs in training; None where it is not known.
        padding_idx: the id that looks up as zeros, or None.
    """

    nbytes: int
    counts: Tensor | None
    padding_idx: int | None

    @classmethod
    def of(
        cls, nbytes: int, counts: Tensor | Sequence[float] | None, sizes: tuple[int, int], padding_idx: int | None
    ) -> BudgetPlanner:
        """For a table of ``sizes`` (N, d).

        Raises ValueError or TypeError for counts that do not fit, and for a budget that no table fits.
        """
        num_embeddings, embedding_dim = sizes
        if nbytes < (least := least_nbytes(num_embeddings, embedding_dim, padding_idx)):
            full = 4 * num_embeddings * embedding_dim
            raise ValueError(
                f"a budget of {nbytes:,} bytes is too small for {num_embeddings:,} ids x {embedding_dim}: the least is "
                f"{least:,} bytes ({100 * least / full:.2f}% of float32), header included"
            )
        known = None if counts is None else check_counts(counts, num_embeddings).double()
        return cls(nbytes, known, padding_idx)

    def room(self, embedding_dim: int) -> int:
        """Numbers of centroids that any plan may have."""
        return centroid_room(embedding_dim)

    @staticmethod
    def before(num_embeddings: int, embedding_dim: int) -> Capacity:
        """What stands for the capacity until there is a plan: one tier."""
        return Capacity.of(embedding_dim, [num_embeddings], [embedding_dim], [2])

    def choice(self, metric: Metric) -> Choice:
        """What is chosen where nothing judges candidates."""
        return Choice(COUNTS_POWER, (1.0,) if self.counts is None else FRACTIONS, metric)

    def fit(self, rows: Tensor, choice: Choice, generator: torch.Generator) -> FittedPlan:
        """The plan of a choice for rows (N, d), with its centroids.

        Raises ValueError for a budget that no table of these rows fits.
        """
        sample = Sample.of(rows, self.counts, choice.counts_power, choice.fractions, self.padding_idx)
        plan = plan_mixed(sample, choice, self.nbytes, self.padding_idx)
        if plan is None:
            raise ValueError(
                f"a budget of {self.nbytes:,} bytes is too small for {rows.shape[0]:,} ids x {rows.shape[1]} in "
                f"{len(choice.fractions)} tiers: give more, or fewer tiers"
            )
        return fit_plan(plan, sample, generator)
