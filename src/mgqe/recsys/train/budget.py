"""A run's budget, spent on trained tables: planned together, and judged on the validation part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from torch import Tensor, nn

from mgqe.codec.metric import Metric
from mgqe.codec.planning.budget import budget_bytes
from mgqe.codec.planning.fits import BestPlans, best_plans, number_of_fits
from mgqe.codec.planning.head_tail import head_and_tail
from mgqe.codec.planning.mixed import FittedPlan, least_nbytes
from mgqe.codec.planning.problem import TableProblem
from mgqe.codec.planning.shapes import SPEED
from mgqe.convert.budget import decoded, rows_in_place
from mgqe.convert.calibration import calibrate
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.recsys.tasks.base import Task, Validation
from mgqe.recsys.tasks.metrics import standard_error
from mgqe.recsys.tasks.sequential import SequentialTask

BATCHES = 60  # that the metrics come from
FULL_HEADER = 512  # bytes of a full table's file beside its rows, at most
NAMED = 3  # tables that an error names
# Of the validation part: judges plans whose codes a softmax trains, and decides between others that the figure which
# judges them cannot tell apart. Those that it cannot tell apart itself are decided by the other.
LOG_RANK, SAMPLED = "full_log_rank", "hr@10"
OnPlan = Callable[[int, int], None]  # is told how many plans have been judged, of how many


class ImpossibleBudgetError(ValueError):
    """A budget that the smallest tables do not fit."""


def planned_layers(model: nn.Module, task: Task) -> dict[str, QuantizedEmbedding]:
    """Path -> layer, of the tables that are planned on their rows."""
    modules = {path: model.get_submodule(path) for path in task.tables}
    return {
        path: module
        for path, module in modules.items()
        if isinstance(module, QuantizedEmbedding) and module.planner is not None
    }


def budget_for(full: Any, layers: Collection[str], task: Task, budget: int | float | str) -> int:
    """The bytes for the tables at the paths ``layers``: those of all tables of the full model, less what stays full."""
    sizes = {path: 4 * full.get_submodule(path).weight.numel() for path in task.tables}
    outside = sum(size + FULL_HEADER for path, size in sizes.items() if path not in layers)
    return int(budget_bytes(budget, sum(sizes.values())) - outside)


def check_budget(full: Any, model: nn.Module, task: Task, budget: int | float | str) -> None:
    """Raise ImpossibleBudgetError, a ValueError, for a budget that the smallest tables do not fit."""
    layers = planned_layers(model, task)
    sizes = [(layer.num_embeddings, layer.embedding_dim, layer.zero_row) for layer in layers.values()]
    least, total = sum(least_nbytes(*size) for size in sizes), budget_for(full, layers, task, budget)
    if total < least:
        raise ImpossibleBudgetError(
            f"budget={budget}: {total:,} bytes are left for {in_words(list(layers))}, of which the least is {least:,}: "
            "give a larger budget"
        )


def in_words(paths: Sequence[str]) -> str:
    """The first tables' paths, and how many there are more."""
    others = len(paths) - NAMED
    return ", ".join(paths[:NAMED]) + (f" and {others} more tables" if others > 0 else "")


@dataclass(frozen=True)
class Spent:
    """How a budget was spent.

    validation: with the tables as they were planned. candidate: the choice, in words.
    lookup_shares: path -> what a look-up is expected to take as a share of nn.Embedding's time.
    head_and_tail: path -> the expected shares of the squares that are lost of frequent ids and of the others.
    """

    validation: Validation
    candidate: str
    lookup_shares: Mapping[str, float] = field(default_factory=dict)
    head_and_tail: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def judged_by(task: Task, trained_by: str | None) -> str:
    """The validation figure that chooses plans.

    Where a softmax then trains the codes of a sequential model, it brings the first ranks back, whatever the plan was,
    but not what that took from rare items, of which the mean logarithm of ranks tells more.

    trained_by: the loss that the codes are trained by afterwards; None if they are not.
    """
    return LOG_RANK if isinstance(task, SequentialTask) and trained_by in ("softmax", "ce") else task.judges_by


def spend_budget(
    full: Any,
    model: nn.Module,
    task: Task,
    budget: int,
    batch_size: int,
    judges_by: str,
    on_plan: OnPlan = lambda judged, plans: None,
) -> Spent:
    """Plan the layers of `model` that have a budget, on the rows of the trained model `full`, and fill them.

    Rows whose length is of no matter for the order of a user's items are tried with their own and with equal ones.

    budget: bytes of the files of all these layers. judges_by: the validation figure that chooses plans.
    """
    layers = planned_layers(model, task)
    free = [path for path in getattr(full, "scale_free", ()) if path in layers]
    judged = count(1)

    def plans_for(metrics: Mapping[str, Metric]) -> BestPlans:
        problems = _problems(full, layers, task, metrics)
        plans = number_of_fits(problems) * (2 if free else 1)
        return _plans(full, layers, problems, task, budget, judges_by, lambda: on_plan(next(judged), plans))

    metrics, rows = _calibrated(full, task, batch_size), {}
    best = plans_for(metrics)
    words = best.candidate.describe()
    if free:
        weights = [full.get_submodule(path).weight for path in free]
        equal = [metrics[path].equal_costs(weight.detach()) for path, weight in zip(free, weights, strict=True)]
        with rows_in_place(weights, equal):
            other = plans_for(_calibrated(full, task, batch_size))
        if best_of([best.figure, other.figure], judges_by) == 1:
            best, rows = other, dict(zip(free, equal, strict=True))
            words = f"{other.candidate.describe()}, {', '.join(free)} rows of equal length"
    shares, lost = {}, {}
    for (path, layer), plan in zip(layers.items(), best.fitted, strict=True):
        if path in rows:
            layer.raw_weight.data.copy_(rows[path])
        layer.adopt_plan(plan)
        counts = task.tables[path].counts
        shares[path] = plan.plan.lookup_share(counts)
        lost[path] = head_and_tail(plan.plan, rows.get(path, full.get_submodule(path).weight), counts, layer.zero_row)
    return Spent(best.figure, words, shares, lost)


def best_of(found: Sequence[Validation], judges_by: str) -> int:
    """The place of the best plan.

    Of those that are not behind the best in the figure that selects epochs, by the paired standard error, and that the
    figure which judges cannot tell from the best of them, the one whose ranks have the least mean logarithm, which has
    less noise but looks away from the first ranks. Where that judges, the one with the best ranks among sampled items,
    which are those in the middle, if there are any.
    """
    places = list(range(len(found)))
    if all(len(each.values) == 1 for each in found):  # an AUC is no mean of the examples' values
        places = _near(places, [each.values for each in found], [float(each.values[0].mean()) for each in found])
    judged = [tuple(values for name, values in each.judged.items() if name == judges_by) for each in found]
    places = _near(places, judged, [each.figures[judges_by] for each in found])
    second = SAMPLED if judges_by == LOG_RANK and SAMPLED in found[0].figures else LOG_RANK
    return max(places, key=lambda place: found[place].figures.get(second, 0.0))


def _near(places: Sequence[int], values: Sequence[tuple[Tensor, ...]], figures: Sequence[float]) -> list[int]:
    """Those of the places whose figure is no further below the largest than the standard error of the difference."""
    best = max(places, key=figures.__getitem__)
    return [at for at in places if figures[best] - figures[at] <= standard_error(values[best], values[at])]


def set_metrics(full: Any, model: nn.Module, task: Task, batch_size: int) -> None:
    """Let every layer of `model` that has bytes of its own plan by what errors cost in the trained model `full`."""
    metrics = _calibrated(full, task, batch_size)
    for path, layer in planned_layers(model, task).items():
        layer.set_metric(metrics[path])


def _problems(
    full: Any, layers: Mapping[str, QuantizedEmbedding], task: Task, metrics: Mapping[str, Metric]
) -> list[TableProblem]:
    """What is planned: the rows of `full`, each table with its counts and what its errors cost."""
    return [
        TableProblem(
            full.get_submodule(path).weight.detach(),
            None if layer.one_tier else task.tables[path].counts,
            {metric.source: metric} if (metric := metrics[path]).source != "identity" else {},
            layer.zero_row,
            prefer=SPEED if layer.planner is None else layer.planner.prefer,
            prefer_tail=layer.planner is not None and layer.planner.prefer_tail,
        )
        for path, layer in layers.items()
    ]


def _plans(
    full: Any,
    layers: Mapping[str, QuantizedEmbedding],
    problems: Sequence[TableProblem],
    task: Task,
    budget: int,
    judges_by: str,
    on_plan: Callable[[], None],
) -> BestPlans:
    """The best plans for the rows of `full`, judged by the validation part."""
    weights = [full.get_submodule(path).weight for path in layers]

    def judge(fitted: Sequence[FittedPlan]) -> Validation:
        with rows_in_place(weights, decoded(problems, fitted)):
            full.eval()
            return task.validation(full)

    return best_plans(
        problems, budget, judge, lambda candidate, figure: on_plan(), choose=lambda found: best_of(found, judges_by)
    )


def _calibrated(full: Any, task: Task, batch_size: int) -> Mapping[str, Metric]:
    batches = islice(task.batches(batch_size, "calibration", 1), BATCHES)
    return calibrate(full, batches, task.loss, progress=False).metrics
