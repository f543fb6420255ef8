"""A budget of bytes for a model: how many bytes each table gets, and what the table becomes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mgqe.checks.names import errors_about
from mgqe.codec.planning import Plan, Problem, budget_bytes
from mgqe.codec.planning.split import split_budget
from mgqe.codec.tiers import Tiers
from mgqe.convert.decide import obstacle, zero_padding
from mgqe.convert.find import ModelTable
from mgqe.nn.config import CompressConfig
from mgqe.nn.quantization import Counts

NO_GAIN = "left: codes and centroids would take no fewer bytes"
ROOM = "left: the budget has room for it as it is"


def allocate(
    tables: Sequence[ModelTable], config: CompressConfig, counts: Mapping[str, Counts | Tiers]
) -> dict[str, Plan | str]:
    """What a budget makes of the tables that have one, by path: a plan, or why the budget leaves the table.

    Raises:
        ValueError: a budget that is too small, or not smaller than the tables; Tiers in place of counts; NaN in rows.
    """
    plans: dict[str, Plan | str] = {}
    sharing: list[tuple[ModelTable, Problem | None]] = []
    for table in tables:
        config_of_table = config.for_table(table.paths)
        if config_of_table is None or config_of_table.budget is None or obstacle(table) is not None:
            continue
        with errors_about(table.path):
            problem = _problem(table, config_of_table, counts.get(table.path))
            if config.shares_budget(table.paths):
                sharing.append((table, problem))
            elif problem is None or problem.least() >= problem.full_nbytes:
                plans[table.path] = NO_GAIN
            else:
                plans[table.path] = problem.plan(budget_bytes(config_of_table.budget, problem.full_nbytes))
    if sharing:
        plans.update(_divide(sharing, config))
    return plans


def _divide(tables: Sequence[tuple[ModelTable, Problem | None]], config: CompressConfig) -> dict[str, Plan | str]:
    """One budget for several tables: what each table becomes with its share."""
    plans: dict[str, Plan | str] = {}
    sizes = [_nbytes(table) for table, _ in tables]
    budget = budget_bytes(config.budget, sum(sizes))
    ladders = []
    for (_, problem), size in zip(tables, sizes, strict=True):
        steps = [] if problem is None else [step for step in problem.ladder() if step[0] < size]
        ladders.append([*steps, (size, 0.0)])
    shares = split_budget(ladders, budget)
    if shares is None:
        least = sum(ladder[0][0] for ladder in ladders)
        raise ValueError(
            f"budget={config.budget!r} is {budget:,} bytes, too few for {len(tables)} tables of {sum(sizes):,}: the "
            f"least is {least:,} bytes ({100 * least / sum(sizes):.2f}%)"
        )
    for (table, problem), size, share, ladder in zip(tables, sizes, shares, ladders, strict=True):
        if problem is None or share == size:
            plans[table.path] = NO_GAIN if len(ladder) == 1 else ROOM
            continue
        with errors_about(table.path):
            plans[table.path] = problem.plan(share)
    return plans


def _problem(table: ModelTable, config: CompressConfig, counts: Counts | Tiers | None) -> Problem | None:
    """What to plan for; None for a table of fewer than two rows."""
    if isinstance(counts, Tiers):
        raise ValueError("a budget chooses the tiers: give counts (mgqe.count_ids), not Tiers")
    module = table.module
    weight = module._parameters["weight"]
    assert weight is not None  # an obstacle otherwise
    rows, dim = weight.shape
    if rows < 2:
        return None
    padding = module.padding_idx if zero_padding(module) else None
    trained = weight if config.init == "from_weight" and bool(weight.any()) else None
    return Problem.of(rows, dim, counts, trained, padding, full_nbytes=weight.nbytes)  # type: ignore[arg-type]


def _nbytes(table: ModelTable) -> int:
    weight = table.module._parameters["weight"]
    assert weight is not None
    return weight.nbytes
