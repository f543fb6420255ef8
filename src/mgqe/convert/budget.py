"""A budget of bytes for a model: how many bytes each table gets, and what the table becomes with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mgqe.checks.names import did_you_mean, errors_about
from mgqe.codec.metric import Metric
from mgqe.codec.planning import Plan, Problem, budget_bytes
from mgqe.codec.planning.budget import too_small_for_all
from mgqe.codec.planning.fits import best_plans
from mgqe.codec.planning.mixed import FittedPlan
from mgqe.codec.planning.problem import Candidate, TableProblem, candidates
from mgqe.codec.planning.split import split_budget
from mgqe.codec.planning.tables import share_bytes
from mgqe.codec.tiers import Tiers, check_counts
from mgqe.convert.calibration import Calibration, undisturbed
from mgqe.convert.decide import Spending, obstacle, zero_padding
from mgqe.convert.find import ModelTable
from mgqe.nn.config import CompressConfig
from mgqe.nn.quantization import Counts, default_budget

JudgeFn = Callable[[Any], float]  # a model -> how good it is, higher is better
NO_GAIN = "left: codes and centroids would take no fewer bytes"
ROOM = "left: the budget has room for it as it is"


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of how much errors in a model's rows cost.

    Attributes:
        calibration: gradients, and batches to judge candidates by; or None.
        queries: path -> what the table's rows are multiplied with, floats (n, d).
        judge: judges candidates instead of the calibration's batches; or None.
    """

    calibration: Calibration | None = None
    queries: Mapping[str, Any] = field(default_factory=dict)
    judge: JudgeFn | None = None

    def check(self, tables: Sequence[ModelTable]) -> None:
        """Raise ValueError for queries of a path that is no table, and for a metric of rows of another width."""
        known = [path for table in tables for path in table.paths]
        for path in self.queries:
            if path not in known:
                raise ValueError(f"queries for {path!r}{did_you_mean(path, known)}, where the model has no table")
        for table in tables:
            with errors_about(table.path):
                for metric in self.metrics(table).values():
                    metric.for_rows(int(table.module.embedding_dim))  # type: ignore[arg-type]

    def check_use(
        self, tables: Sequence[ModelTable], config: CompressConfig, counts: Mapping[str, Counts | Tiers]
    ) -> None:
        """Raise ValueError for queries of one of the tables, or a calibration or judge of all, that plan nothing."""
        configs = ((table, config.for_table(table.paths)) for table in tables)
        reasons = [(table, _unplanned(each, counts.get(table.path))) for table, each in configs if each is not None]
        for table, reason in reasons:
            if reason and any(path in self.queries for path in table.paths):
                raise ValueError(f"queries for {table.path!r} would not be used: {reason}")
        given = [name for name in ("calibration", "judge") if getattr(self, name) is not None]
        if given and reasons and all(reason for _, reason in reasons):
            table, reason = reasons[0]
            raise ValueError(f"{given[0]}= would not be used, since no table is planned by it. {table.path}: {reason}")

    @property
    def judges(self) -> bool:
        """Whether there is something to judge candidates by."""
        return self.judge is not None or self.calibration is not None

    def figure(self, model: nn.Module) -> float:
        """How good the model is with the rows that it has: higher is better."""
        if self.judge is None:
            assert self.calibration is not None
            return -self.calibration.loss(model)
        with undisturbed(model), torch.no_grad():
            figure = self.judge(model)
        try:
            return float(figure)
        except (TypeError, ValueError) as error:
            raise TypeError(f"judge must return a number, higher is better, got {type(figure).__name__}") from error

    def refuse_nan(self, candidate: Candidate, figure: float | None) -> None:
        """Raise ValueError where the judge's figure of a candidate is no number."""
        if self.judge is not None and figure is not None and math.isnan(figure):
            raise ValueError(
                f"judge returned NaN for the candidate {candidate.describe()!r}: return a number for every candidate, "
                "such as -inf for one that must not be taken"
            )

    def metrics(self, table: ModelTable) -> dict[str, Metric]:
        """The metrics of a table by their source, the best first."""
        metrics = {}
        for path in table.paths:
            if path in self.queries:
                metrics["queries"] = Metric.of_queries(self.queries[path])
        if self.calibration is not None:
            measured = [self.calibration.metrics[path] for path in table.paths if path in self.calibration.metrics]
            metrics.update({metric.source: metric for metric in measured if metric.source != "identity"})
        return metrics


def allocate(
    model: nn.Module,
    tables: Sequence[ModelTable],
    config: CompressConfig,
    counts: Mapping[str, Counts | Tiers],
    evidence: Evidence,
) -> dict[str, Spending | Plan | str]:
    """What a budget makes of the tables that have one, by path; without any, each table's default is its budget.

    Trained tables are planned here, together, and fitted; tables that are to be trained get bytes, which their layers
    spend when the warm-up ends; tables of SX get an even shape. A text says why the budget leaves a table.

    Raises:
        ValueError: a budget that is too small, or not smaller than the tables; Tiers in place of counts; NaN in rows.
    """
    results: dict[str, Spending | Plan | str] = {}
    sharing: list[ModelTable] = []
    for table in tables:
        config_of_table = config.for_table(table.paths)
        if config_of_table is None or obstacle(table) is not None:
            continue
        if config_of_table.budget is None:
            results.update(_by_default(model, table, config_of_table, counts, evidence))
            continue
        if isinstance(counts.get(table.path), Tiers):
            with errors_about(table.path):
                raise ValueError("a budget chooses the tiers: give counts (mgqe.count_ids), not Tiers")
        if config.shares_budget(table.paths):
            sharing.append(table)
        else:
            results.update(_divide(model, [table], config_of_table, counts, evidence))
    if sharing:
        results.update(_divide(model, sharing, config, counts, evidence))
    return results


def _unplanned(config: CompressConfig, counts: Counts | Tiers | None) -> str | None:
    """Why a table is not planned on its rows as they are, with the remedy; None for one that is, if it is replaced."""
    if config.init != "from_weight":
        return (
            'rows that train are planned by the gradients of their warm-up. For a trained model give init="from_weight"'
        )
    if not config.plans_on_rows:
        return 'quantizer="sx" is not planned on its rows. Give quantizer="vq"'
    if config.budget is None and not config.leaves_capacity_open:
        return f"its capacity is given. Leave {', '.join(config.capacity_settings)} out, or give budget= instead"
    if config.budget is None and isinstance(counts, Tiers):
        return "its tiers are given. Give counts (mgqe.count_ids) instead of Tiers"
    return None


def _by_default(
    model: nn.Module, table: ModelTable, config: CompressConfig, counts: Mapping[str, Any], evidence: Evidence
) -> dict[str, Spending | Plan | str]:
    """What a table becomes whose layer plans with the bytes of its default shape; nothing where the layer does not."""
    weight = _weight(table)
    with errors_about(table.path):
        sizes = (weight.shape[0], weight.shape[1], table.module.padding_idx)
        nbytes = default_budget(config, counts.get(table.path), sizes, weight.nbytes)  # type: ignore[arg-type]
    if nbytes is None:
        return {}
    if config.init == "warmup":
        return {table.path: Spending(nbytes)}
    problem = _trained_problem(table, counts.get(table.path), evidence, config)
    return dict(_fit(model, [table], [problem], nbytes, [nbytes], evidence))


def _divide(
    model: nn.Module,
    tables: Sequence[ModelTable],
    config: CompressConfig,
    counts: Mapping[str, Any],
    evidence: Evidence,
) -> dict[str, Spending | Plan | str]:
    """One budget for several tables: what each becomes with its share."""
    if config.plans_on_rows and config.init == "from_weight":
        return _divide_trained(model, tables, config, counts, evidence)
    sizes = [_weight(table).nbytes for table in tables]
    problems = [_problem(table, counts.get(table.path)) for table in tables]
    ladders = [
        [*([] if problem is None else [step for step in problem.ladder() if step[0] < size]), (size, 0.0)]
        for problem, size in zip(problems, sizes, strict=True)
    ]
    if len(tables) == 1 and len(ladders[0]) == 1:
        return {tables[0].path: NO_GAIN}
    budget = budget_bytes(config.budget, sum(sizes))
    shares = split_budget(ladders, budget)
    if shares is None:
        raise too_small_for_all(config.budget, budget, sizes, sum(ladder[0][0] for ladder in ladders))
    results: dict[str, Spending | Plan | str] = {}
    for table, problem, size, share, ladder in zip(tables, problems, sizes, shares, ladders, strict=True):
        if problem is None or share == size:
            results[table.path] = NO_GAIN if len(ladder) == 1 else ROOM
        elif config.plans_on_rows:
            results[table.path] = Spending(share)
        else:
            with errors_about(table.path):
                results[table.path] = problem.plan(share)
    return results


def _divide_trained(
    model: nn.Module,
    tables: Sequence[ModelTable],
    config: CompressConfig,
    counts: Mapping[str, Any],
    evidence: Evidence,
) -> dict[str, Spending | Plan | str]:
    """The same for trained tables, which are planned together and fitted."""
    problems = [_trained_problem(table, counts.get(table.path), evidence, config) for table in tables]
    if len(tables) == 1 and not problems[0].compresses:
        return {tables[0].path: NO_GAIN}
    sizes = [problem.rows.nbytes for problem in problems]
    budget = budget_bytes(config.budget, sum(sizes))
    if (least := sum(problem.least_share for problem in problems)) > budget:
        raise too_small_for_all(config.budget, budget, sizes, least)
    shares = share_bytes(problems, candidates(problems)[0], budget)
    results: dict[str, Spending | Plan | str] = {}
    chosen = []
    for number, (table, problem) in enumerate(zip(tables, problems, strict=True)):
        if problem.stays(shares[number]):
            results[table.path] = ROOM if problem.compresses else NO_GAIN
            budget -= sizes[number]
        else:
            chosen.append(number)
    if chosen:
        tables, problems = [tables[number] for number in chosen], [problems[number] for number in chosen]
        results.update(_fit(model, tables, problems, budget, [shares[number] for number in chosen], evidence))
    return results


def _fit(
    model: nn.Module,
    tables: Sequence[ModelTable],
    problems: Sequence[TableProblem],
    budget: int,
    shares: Sequence[int],
    evidence: Evidence,
) -> dict[str, Spending]:
    """Trained tables with their centroids, by the candidate that does best, where there is something to judge by."""

    def judge(fitted: Sequence[FittedPlan]) -> float:
        with rows_in_place([_weight(table) for table in tables], decoded(problems, fitted)):
            return evidence.figure(model)

    best = best_plans(problems, budget, judge if evidence.judges else None, evidence.refuse_nan, shares)
    return {table.path: Spending(plan.plan.nbytes, plan) for table, plan in zip(tables, best.fitted, strict=True)}


@contextmanager
def rows_in_place(weights: Sequence[Tensor], rows: Iterable[Tensor]) -> Iterator[None]:
    """Within: the weights of trained tables hold these rows. Afterwards: as before."""
    before = [weight.detach().clone() for weight in weights]
    try:
        for weight, of_table in zip(weights, rows, strict=True):
            weight.data.copy_(of_table)
        yield
    finally:
        for weight, of_table in zip(weights, before, strict=True):
            weight.data.copy_(of_table)


def decoded(problems: Sequence[TableProblem], fitted: Sequence[FittedPlan]) -> Iterator[Tensor]:
    """What look-ups of each table's plan would return, one table at a time."""
    return (plan.decoded(problem.rows) for problem, plan in zip(problems, fitted, strict=True))


def _trained_problem(
    table: ModelTable, counts: Counts | None, evidence: Evidence, config: CompressConfig
) -> TableProblem:
    weight = _weight(table)
    padding = table.module.padding_idx if zero_padding(table.module) else None
    with errors_about(table.path):
        known = None if counts is None else check_counts(counts, weight.shape[0])
        own = config.for_table(table.paths) or config  # a rule may prefer something else
        how: dict[str, Any] = {"prefer": own.prefer, "prefer_tail": own.prefer_tail, "by_length": True}
        return TableProblem(weight.detach(), known, evidence.metrics(table), padding, True, **how)  # type: ignore[arg-type]


def _problem(table: ModelTable, counts: Counts | None) -> Problem | None:
    """What shares of bytes are worked out by; None for a table of fewer than two rows."""
    weight = _weight(table)
    rows, dim = weight.shape
    if rows < 2:
        return None
    padding = table.module.padding_idx if zero_padding(table.module) else None
    with errors_about(table.path):
        return Problem.of(rows, dim, counts, padding, full_nbytes=weight.nbytes)  # type: ignore[arg-type]


def _weight(table: ModelTable) -> Tensor:
    weight = table.module._parameters["weight"]
    assert weight is not None  # an obstacle otherwise
    return weight
