"""A budget of bytes for a model: what each table gets of it, and becomes with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from mgqe.codec.planning import Plan, Problem, budget_bytes
from mgqe.codec.planning.split import split_budget
from mgqe.codec.tiers import Tiers
from mgqe.convert.decide import obstacle, zero_padding
from mgqe.convert.find import FoundTable
from mgqe.nn.config import CompressConfig
from mgqe.nn.quantization import Counts

NO_GAIN = "left: codes and centroids would take no fewer bytes"
ROOM = "left: the budget has room for it as it is"


def allocate(
    tables: Sequence[FoundTable],
    config: CompressConfig,
    counts: Mapping[str, Counts | Tiers],
    naming: Callable[[FoundTable], AbstractContextManager[None]],
) -> dict[str, Plan | str]:
    """What a budget makes of the tables that have one, by path: a plan, or why it leaves them.

    Raises:
        ValueError: a budget that is too small, or no smaller than the tables; Tiers in place of counts; NaN in rows.
    """
    found: dict[str, Plan | str] = {}
    common: list[tuple[FoundTable, Problem | None]] = []
    for table in tables:
        own = config.for_table(table.paths)
        if own is None or own.budget is None or obstacle(table) is not None:
            continue
        with naming(table):
            problem = _problem(table, own, counts.get(table.path))
            if config.shares_budget(table.paths):
                common.append((table, problem))
            elif problem is None or problem.least() >= problem.full_nbytes:
                found[table.path] = NO_GAIN
            else:
                found[table.path] = problem.plan(budget_bytes(own.budget, problem.full_nbytes))
    if common:
        found.update(_share(common, config, naming))
    return found


def _share(
    common: Sequence[tuple[FoundTable, Problem | None]],
    config: CompressConfig,
    naming: Callable[[FoundTable], AbstractContextManager[None]],
) -> dict[str, Plan | str]:
    """One budget for several tables: how much each gets, and what it becomes."""
    found: dict[str, Plan | str] = {}
    sizes = [_nbytes(table) for table, _ in common]
    budget = budget_bytes(config.budget, sum(sizes))
    ladders = []
    for (_, problem), size in zip(common, sizes, strict=True):
        steps = [] if problem is None else [step for step in problem.ladder() if step[0] < size]
        ladders.append([*steps, (size, 0.0)])
    shares = split_budget(ladders, budget)
    if shares is None:
        least = sum(ladder[0][0] for ladder in ladders)
        raise ValueError(
            f"budget={config.budget!r} is {budget:,} bytes, too few for {len(common)} tables of {sum(sizes):,}: the "
            f"least is {least:,} bytes ({100 * least / sum(sizes):.2f}%)"
        )
    for (table, problem), size, share, ladder in zip(common, sizes, shares, ladders, strict=True):
        if problem is None or share == size:
            found[table.path] = NO_GAIN if len(ladder) == 1 else ROOM
            continue
        with naming(table):
            found[table.path] = problem.plan(share)
    return found


def _problem(table: FoundTable, own: CompressConfig, counts: Counts | Tiers | None) -> Problem | None:
    """None for a table of too few rows."""
    if isinstance(counts, Tiers):
        raise ValueError("a budget chooses the tiers: give counts (mgqe.count_ids), not Tiers")
    module = table.module
    weight = module._parameters["weight"]
    assert weight is not None  # an obstacle otherwise
    rows, dim = weight.shape
    if rows < 2:
        return None
    padding = module.padding_idx if zero_padding(module) else None
    trained = weight if own.init == "from_weight" and bool(weight.any()) else None
    return Problem.of(rows, dim, counts, trained, padding, full_nbytes=weight.nbytes)  # type: ignore[arg-type]


def _nbytes(table: FoundTable) -> int:
    weight = table.module._parameters["weight"]
    assert weight is not None
    return weight.nbytes
