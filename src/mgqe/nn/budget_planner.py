"""BudgetPlanner: what a layer with a budget knows until its rows are trained, and the plan that it makes then."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mgqe.codec.axes import flatness
from mgqe.codec.capacity import Capacity, default_num_subspaces
from mgqe.codec.kmeans import draw_places
from mgqe.codec.metric import Metric
from mgqe.codec.planning.budget import too_small
from mgqe.codec.planning.fits import fit_table
from mgqe.codec.planning.mixed import FittedPlan, RowReader, least_nbytes
from mgqe.codec.planning.problem import TableProblem, candidates
from mgqe.codec.planning.shapes import SPEED
from mgqe.codec.tiers import check_counts
from mgqe.nn.codebook_layer import CodebookLayer, revive_every
from mgqe.nn.quantizers.mixed import MixedQuantizer
from mgqe.nn.row_layer import RowLayer

UNLEARNT = 0.92  # flatness: that of random rows is .97 or more, that of trained ones was below .86 wherever it was seen
LOOKED_AT = 4_096  # rows
ROWS_PER_DIMENSION = 16  # at least: with fewer, random rows are not flat either
LEAST_DIM = 8  # with fewer dimensions trained rows may well vary alike in all of them


@dataclass(frozen=True, eq=False)
class BudgetPlanner:
    """A budget that is spent when the warm-up ends, on the rows as they are then.

    Attributes:
        nbytes: what the frozen table's file may take.
        counts: float64 (N,), how often each id occurs in training; None where it is not known.
        padding_idx: the id that looks up as zeros, or None.
        is_default: nobody gave the budget; it is what the even default shape takes.
        prefer: "speed" or "size"; prefer_tail: whether all ids count alike; see :class:`mgqe.Quantization`.
        by_length: without counts, whether tiers are made by the lengths of rows; else there is one tier.
    """

    nbytes: int
    counts: Tensor | None
    padding_idx: int | None
    is_default: bool = False
    prefer: str = SPEED
    prefer_tail: bool = False
    by_length: bool = False

    @classmethod
    def of(
        cls,
        nbytes: int,
        counts: Tensor | Sequence[float] | None,
        sizes: tuple[int, int],
        padding_idx: int | None,
        is_default: bool = False,
        prefer: str = SPEED,
        prefer_tail: bool = False,
        by_length: bool = False,
    ) -> BudgetPlanner:
        """For a table of ``sizes`` (N, d).

        Raises ValueError or TypeError for counts that do not fit, and for a budget that no table fits.
        """
        num_embeddings, embedding_dim = sizes
        if nbytes < (least := least_nbytes(num_embeddings, embedding_dim, padding_idx)):
            raise too_small(nbytes, num_embeddings, embedding_dim, least, 4 * num_embeddings * embedding_dim)
        known = None if counts is None else check_counts(counts, num_embeddings).double()
        return cls(nbytes, known, padding_idx, is_default, prefer, prefer_tail, by_length)

    @staticmethod
    def before(num_embeddings: int, embedding_dim: int) -> Capacity:
        """What stands for the capacity until there is a plan: one tier, with the subspaces of the even default."""
        return Capacity.of(embedding_dim, [num_embeddings], [default_num_subspaces(embedding_dim)], [2])

    def problem(self, sizes: tuple[int, int], read: RowReader, metric: Metric) -> TableProblem:
        """The table as it is now; arguments as for :meth:`fit`."""
        rows = torch.empty(sizes, device="meta")
        metrics = {metric.source: metric}
        how: dict[str, Any] = {"prefer": self.prefer, "prefer_tail": self.prefer_tail, "by_length": self.by_length}
        return TableProblem(rows, self.counts, metrics, self.padding_idx, read=read, **how)

    def warn_of_unlearnt(self, what: str, sizes: tuple[int, int], read: RowReader, passes: int) -> None:
        """Warn if rows that have trained for so many passes vary in all directions alike, as random ones do.

        Other arguments as for :meth:`fit`; ``what`` names the table. In their first pass rows are as they were given.
        """
        if passes > 1 and self._is_unlearnt(sizes, read):
            warnings.warn(
                f"{what} spends its budget after {passes} training passes, when its rows can hardly be told from rows "
                "drawn at random: bits go by what rows are now, and what has yet to be learnt has none until the next "
                "plan. Warm up for at least half of the training (warmup_steps=), or start from smaller rows "
                "(layer.raw_weight.data.normal_(std=0.1))",
                stacklevel=2,
            )

    def _is_unlearnt(self, sizes: tuple[int, int], read: RowReader) -> bool:
        n, d = sizes
        if n < ROWS_PER_DIMENSION * d or d < LEAST_DIM:
            return False
        limit = max(LOOKED_AT, ROWS_PER_DIMENSION * d)
        every, generator = torch.arange(n) if n <= limit else None, torch.Generator("cpu").manual_seed(0)
        ids = draw_places(n, limit, generator) if every is None else every
        weights = torch.ones(len(ids)) if self.counts is None else (self.counts[ids] + 1.0).sqrt()
        if self.padding_idx is not None:
            weights = weights.masked_fill(ids == self.padding_idx, 0.0)
        rows = read(ids).detach().cpu().double()
        rows = rows.masked_fill((weights == 0).unsqueeze(1), 0.0)
        return flatness(rows.numpy(), weights.double().numpy()) > UNLEARNT

    def fit(self, sizes: tuple[int, int], read: RowReader, metric: Metric, generator: torch.Generator) -> FittedPlan:
        """The plan that is expected to lose least, with its centroids; nothing judges candidates.

        Args:
            sizes: N and d.
            read: gives rows of ids, all finite.
            metric: what an error costs.
            generator: of the first centroids.

        Raises ValueError for a budget that no table of these rows fits.
        """
        problem = self.problem(sizes, read, metric)
        return fit_table(problem, candidates([problem])[0], self.nbytes, generator, by_prediction=True)


def warn_without_gradients(what: str, metric: Metric, passes: int) -> None:
    """Warn if a layer has trained for so many passes, and ``metric``, which it gathered, has no gradient in it.

    In their first pass rows are as they were given, and nothing can have been gathered.
    """
    if passes > 1 and metric.source == "identity":
        warnings.warn(
            f"{what} spends its budget after {passes} training passes in which it saw no gradient of its rows that is "
            "finite and not zero: errors count alike in all directions, whatever they cost the model. Check that the "
            "loss depends on these rows and that its gradients are finite",
            stacklevel=2,
        )


def read_plan(layer: nn.Module, _: Any) -> None:
    """After a checkpoint was loaded into a layer with a budget: the plan that came with it."""
    if isinstance(layer, CodebookLayer) and isinstance(layer.quantizer, MixedQuantizer):
        before = BudgetPlanner.before(layer.tiers.num_embeddings, layer.capacity.embedding_dim)
        layer.capacity = layer.quantizer.read_layout(layer.tiers.sizes, before)
        layer.schedule.revive_every = revive_every(layer.capacity)
        if isinstance(layer, RowLayer):
            layer.store.read_plan(layer.quantizer, layer.tiers)
