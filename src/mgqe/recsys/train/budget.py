"""A run's budget, spent on trained tables: planned together, and judged on the validation part."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

from torch import nn

from mgqe.codec.planning.budget import budget_bytes
from mgqe.codec.planning.mixed import FittedPlan, least_nbytes
from mgqe.codec.planning.tables import OnCandidate, Recipe, TableProblem, best_plans
from mgqe.convert.budget import decoded_rows
from mgqe.convert.calibration import calibrate
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.recsys.tasks.base import Task

BATCHES = 60  # that the metrics come from
FULL_HEADER = 512  # bytes of a full table's file beside its rows, at most


def planned_layers(model: nn.Module, task: Task) -> dict[str, QuantizedEmbedding]:
    """Path -> layer, of the tables that have a budget."""
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
    """Raise ValueError for a budget that the smallest tables do not fit."""
    layers = planned_layers(model, task)
    sizes = [(layer.num_embeddings, layer.embedding_dim, layer.zero_row) for layer in layers.values()]
    least, total = sum(least_nbytes(*size) for size in sizes), budget_for(full, layers, task, budget)
    if total < least:
        raise ValueError(
            f"budget={budget}: {total:,} bytes are left for {', '.join(layers)}, of which the least is {least:,}: give "
            "a larger budget"
        )


def spend_budget(
    full: Any,
    model: nn.Module,
    task: Task,
    budget: int | float | str,
    batch_size: int,
    on_candidate: OnCandidate = lambda recipe, figure: None,
) -> Recipe:
    """Plan the layers of `model` that have a budget, on the rows of the trained model `full`, and fill them.

    budget: of the bytes of all tables of `full`, those that stay full included.
    """
    layers = planned_layers(model, task)
    batches = islice(task.batches(batch_size, "calibration", 1), BATCHES)
    calibration = calibrate(full, batches, task.loss, progress=False)
    problems = [
        TableProblem(
            layer.raw_weight.detach(),
            None if layer.one_tier else task.tables[path].counts,
            {metric.source: metric} if (metric := calibration.metrics[path]).source != "identity" else {},
            layer.zero_row,
        )
        for path, layer in layers.items()
    ]
    total = budget_for(full, layers, task, budget)

    def judge(fitted: Sequence[FittedPlan]) -> float:
        with decoded_rows([full.get_submodule(path).weight for path in layers], fitted):
            full.eval()
            return task.validation(full).figures[task.selects_by]

    recipe, fitted = best_plans(problems, total, judge, on_candidate)
    for layer, plan in zip(layers.values(), fitted, strict=True):
        layer.adopt_plan(plan)
    return recipe
