"""One budget for the tables of a model: candidates, the bytes of each table, and the best candidate by a judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.codec.metric import Metric
from mgqe.codec.planning.budget import too_small
from mgqe.codec.planning.lengths import MORE_PAY, sizes_by_length
from mgqe.codec.planning.mixed import (
    SAMPLE_ROWS,
    FittedPlan,
    MixedPlan,
    MixedProblem,
    RowReader,
    Sample,
    fit_plan,
    least_nbytes,
)
from mgqe.codec.planning.shapes import SPEED, Choice
from mgqe.codec.planning.split import Step, split_budget

STEPS = 48  # of a table's ladder of bytes
POINTS = 6  # budgets that a table is planned for, between which its ladder is interpolated
SPREAD = 4.0  # a table gets at most so many times its share of the budget, and at least 1 / SPREAD


@dataclass(frozen=True)
class Candidate:
    """What candidates differ in; see :class:`mgqe.codec.planning.shapes.Choice`.

    Attributes:
        counts_power: an id weighs (count + 1) to this power.
        fractions: the share of the ids in each tier.
        source: which metric: "gradients", "queries" or "identity".
        by_length: tiers are as many as fractions, but made by the lengths of rows.
    """

    counts_power: float
    fractions: tuple[float, ...]
    source: str
    by_length: bool = False

    def describe(self) -> str:
        """In a few words, for reports."""
        tiers = "one tier" if len(self.fractions) == 1 else f"tiers {'/'.join(f'{f:g}' for f in self.fractions)}"
        if self.by_length:
            return f"{self.source}, {tiers if len(self.fractions) == 1 else f'{len(self.fractions)} tiers by length'}"
        return f"{self.source}, {tiers}, counts^{self.counts_power:g}"


ONE = (1.0,)
MAX_TIERS = 4  # by length
EQUAL = tuple((1.0 / tiers,) * tiers for tiers in range(1, MAX_TIERS + 1))
SHAPES: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0.5, (0.1, 0.9)),
    (0.5, ONE),
    (0.25, ONE),
    (0.0, ONE),
    (0.75, (0.1, 0.9)),
    (1.0, (0.1, 0.3, 0.6)),
    (1.0, (0.02, 0.08, 0.3, 0.6)),
)


@dataclass(frozen=True, eq=False)
class TableProblem:
    """A trained table that is to be compressed.

    Attributes:
        rows: (N, d). counts: (N,), how often each id occurs, or None.
        metrics: source -> metric, the best first; the identity need not be among them.
        padding_idx: the id that looks up as zeros, or None.
        may_stay: whether the table may be left as it is, where its bytes are worth it within a budget for several.
        read: gives rows of ids, all finite, where ``rows`` is on the meta device and says the shape alone; or None.
        prefer: see :class:`mgqe.codec.planning.shapes.Choice`.
        prefer_tail: every id counts alike, whatever its count and the candidate's power.
        by_length: without counts, tiers are made by how long rows are, less their mean; else there is one tier.

    Raises ValueError for a metric of rows of another width, and for rows other than the padding's that hold NaN or
    infinity, in a table that may be compressed.
    """

    rows: Tensor
    counts: Tensor | None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    padding_idx: int | None = None
    may_stay: bool = False
    read: RowReader | None = None
    prefer: str = SPEED
    prefer_tail: bool = False
    by_length: bool = False

    def __post_init__(self) -> None:
        for metric in self.metrics.values():
            metric.for_rows(self.rows.shape[1])
        if self.read is not None or (self.may_stay and not self.compresses) or len(self.rows) == 0:
            return
        if all(bool(end.isfinite()) for end in self.rows.aminmax()):
            return
        bad = ~self.rows.isfinite().all(1)
        if self.padding_idx is not None:
            bad[self.padding_idx] = False
        if bool(bad.any()):
            raise ValueError(
                f"{int(bad.sum())} rows of weight hold NaN or infinity, the first is row {int(bad.nonzero()[0])}: "
                "training diverged, or the file is damaged"
            )

    def choice(self, candidate: Candidate) -> Choice:
        """A candidate for this table: one tier without counts, the identity without the metric."""
        metric = self.metrics.get(candidate.source) or Metric.identity(self.rows.shape[1])
        fractions = candidate.fractions
        if self.counts is None:
            fractions = ONE if self.squares is None else self._fractions(len(fractions))
        power = 0.0 if self.prefer_tail else candidate.counts_power
        return Choice(power, fractions, metric, prefer=self.prefer, by_length=self.squares is not None)

    def sample(self, candidate: Candidate) -> Sample:
        """Its rows as the candidate weighs and divides them."""
        choice = self.choice(candidate)
        weighted = self.counts, choice.counts_power, choice.fractions, self.padding_idx
        return Sample.of(self.rows, *weighted, read=self.read, order=self.squares)

    @cached_property
    def squares(self) -> Tensor | None:
        """(N,), the square of each row less their mean, where tiers are made by it; that of the padding is 0."""
        if self.counts is not None or not self.by_length or not self.compresses:
            return None
        starts = range(0, len(self.rows), SAMPLE_ROWS)
        mean = self._block(0).double().mean(0)
        squares = torch.cat([_squares(self._block(start), mean) for start in starts])
        if self.padding_idx is not None:
            squares[self.padding_idx] = 0.0
        return squares

    def _block(self, start: int) -> Tensor:
        """SAMPLE_ROWS rows, on the CPU, that of the padding as zeros."""
        ids = torch.arange(start, min(start + SAMPLE_ROWS, len(self.rows)), device="cpu")
        rows = self.rows[start : start + len(ids)].detach().cpu() if self.read is None else self.read(ids).cpu()
        if self.padding_idx is not None and start <= self.padding_idx < start + len(ids):
            return rows.masked_fill((ids == self.padding_idx).unsqueeze(1), 0.0)
        return rows

    def _fractions(self, tiers: int) -> tuple[float, ...]:
        """The shares of at most so many tiers by length."""
        sizes = [each for each in self._sizes if len(each) <= tiers][-1]
        return tuple(size / len(self.rows) for size in sizes)

    @cached_property
    def _sizes(self) -> list[tuple[int, ...]]:
        """Of tiers by length: the sizes of 1 tier, of 2, and so on."""
        assert self.squares is not None
        return sizes_by_length(self.squares.numpy(), MAX_TIERS)

    def unjudged(self, candidate: Candidate) -> list[Candidate]:
        """What the prediction chooses from where nothing judges: the candidate, and other numbers of tiers."""
        if self.squares is None:
            return [candidate, replace(candidate, fractions=ONE)]
        return [replace(candidate, fractions=each) for each in self.numbers_of_tiers]

    def expected_best(self, plans: Sequence[MixedPlan]) -> int:
        """The place of the plan that nothing judges: the one that is expected to lose least.

        Of plans by length the one with fewest tiers that loses about as little, since tiers make look-ups slower.
        """
        least = min(plan.loss for plan in plans)
        slack = MORE_PAY if self.squares is not None and self.prefer == SPEED else 1.0
        near = [place for place, plan in enumerate(plans) if plan.loss <= slack * least]
        return min(near, key=lambda place: (plans[place].tiers.num_tiers if slack > 1 else 0, plans[place].loss))

    @property
    def numbers_of_tiers(self) -> list[tuple[float, ...]]:
        """As many fractions as there may be tiers by length, from one on."""
        return [EQUAL[len(sizes) - 1] for sizes in self._sizes]

    def mixed(self, candidate: Candidate) -> MixedProblem:
        """What all plans of the candidate have in common, whatever the bytes."""
        return MixedProblem.of(self.sample(candidate), self.choice(candidate), self.padding_idx)

    @property
    def least(self) -> int:
        """Bytes of its smallest table."""
        return least_nbytes(self.rows.shape[0], self.rows.shape[1], self.padding_idx)

    @property
    def compresses(self) -> bool:
        """Whether its smallest table takes fewer bytes than its rows; not where there is one row."""
        return len(self.rows) > 1 and self.least < self.rows.nbytes

    @property
    def least_share(self) -> int:
        """The fewest bytes that it can be given."""
        return self.rows.nbytes if self.may_stay and not self.compresses else self.least

    def stays(self, nbytes: int) -> bool:
        """Whether it is left as it is with so many bytes."""
        return self.may_stay and nbytes >= self.rows.nbytes


def _squares(rows: Tensor, mean: Tensor) -> Tensor:
    """(n,) float64, the squares of rows less a mean; with more digits where float32 has too few for them."""
    squares = (rows.float() - mean.float()).square().sum(1).double()
    if bool(squares.isfinite().all()) and bool(squares.any()):
        return squares
    return (rows.double() - mean).square().sum(1)


def candidates(problems: Sequence[TableProblem]) -> list[Candidate]:
    """The candidates for these tables, the default first."""
    sources = list(dict.fromkeys(source for problem in problems for source in problem.metrics))
    by_length = all(problem.counts is None for problem in problems) and any(each.by_length for each in problems)
    shapes: tuple[tuple[float, tuple[float, ...]], ...] = ((0.0, ONE),)
    if any(problem.counts is not None for problem in problems):
        shapes = SHAPES
    elif by_length:
        numbers = {tiers for problem in problems if problem.squares is not None for tiers in problem.numbers_of_tiers}
        shapes = tuple((0.0, tiers) for tiers in sorted(numbers, key=len, reverse=True))
    if all(problem.prefer_tail for problem in problems):
        shapes = tuple(dict.fromkeys((0.0, tiers) for _, tiers in shapes))
    return [Candidate(power, tiers, source, by_length) for source in [*sources, "identity"] for power, tiers in shapes]


def share_bytes(problems: Sequence[TableProblem], candidate: Candidate, budget: int) -> list[int]:
    """How many bytes each table gets, so that all together lose least in their metrics.

    With gradients gathered in the same batches the costs of tables are comparable; otherwise the shares of squares that
    are lost are added up. A table that may stay as it is loses nothing for the bytes of its rows.

    Raises ValueError for a budget that the smallest tables do not fit.
    """
    leasts = [problem.least_share for problem in problems]
    if (least := sum(leasts)) > budget:
        raise ValueError(
            f"a budget of {budget:,} bytes is too small for {len(problems)} tables: the least is {least:,} bytes"
        )
    if len(problems) == 1:
        return [budget]
    comparable = all(problem.choice(candidate).metric.lookups > 0 for problem in problems)
    size = sum(problem.rows.numel() for problem in problems)
    even = [budget * problem.rows.numel() / size for problem in problems]
    above = [max(0.0, share / SPREAD - least) for share, least in zip(even, leasts, strict=True)]
    part = min(1.0, (budget - least) / max(sum(above), 1.0))  # less than 1: ladders start lower, so that all starts fit
    ladders = []
    for problem, share, lowest, more in zip(problems, even, leasts, above, strict=True):
        high = min(float(budget), max(share * SPREAD, 2.0 * lowest))
        ladders.append(_ladder(problem, candidate, lowest + part * more, high, comparable))
    shares = split_budget(ladders, budget)
    assert shares is not None  # the first steps fit
    left, able = budget - sum(shares), [i for i, ladder in enumerate(ladders) if shares[i] < ladder[-1][0]]
    together = sum(shares[i] for i in able)
    for i in able:  # less than a step
        shares[i] += left * shares[i] // together
    return shares


def _ladder(problem: TableProblem, candidate: Candidate, low: float, high: float, comparable: bool) -> list[Step]:
    """(bytes, cost) by rising bytes: planned at some budgets, in between log(cost) is taken as linear.

    The last step of a table that may stay is the table as it is, unless fewer bytes cost nothing either.
    """
    whole = [(problem.rows.nbytes, 0.0)] if problem.may_stay else []
    if whole and not problem.compresses:
        return whole
    high = max(low + 1, min(high, problem.rows.nbytes - 1) if whole else high)
    scale = problem.choice(candidate).metric.lookups / len(problem.rows)
    steps: list[tuple[float, float]] = []
    for nbytes, plan in _plans_at(problem, candidate, np.geomspace(low, high, POINTS).tolist()):
        cost = scale * plan.cost if comparable else plan.loss
        if not steps or cost < steps[-1][1]:
            steps.append((nbytes, cost))
            enough = float(max(plan.nbytes, problem.least))
        elif enough < steps[-1][0]:  # more bytes than the last plan takes are of no use
            steps[-1] = enough, steps[-1][1]
    points = np.geomspace(steps[0][0], steps[-1][0], STEPS).clip(steps[0][0], steps[-1][0])  # equal ends round
    x, logs = _lower_hull([b for b, _ in steps], [float(np.log(max(cost, 1e-300))) for _, cost in steps])
    costs = np.exp(np.interp(points, x, logs))
    planned = {int(b): float(c) for b, c in zip(points, costs, strict=True)}
    return [*planned.items(), *(whole if steps[-1][1] > 0 else [])]


def _plans_at(problem: TableProblem, candidate: Candidate, budgets: Sequence[float]) -> list[tuple[float, MixedPlan]]:
    """(bytes, plan) for rising bytes; with one tier where the candidate's tiers do not fit."""
    plans: dict[float, MixedPlan] = {}
    for each in dict.fromkeys((candidate, replace(candidate, fractions=ONE))):
        if len(plans) < len(budgets):
            mixed = problem.mixed(each)
            for nbytes in budgets:
                plan = None if nbytes in plans else mixed.plan(int(nbytes))
                if plan is not None:
                    plans[nbytes] = plan
    return sorted(plans.items(), key=lambda pair: pair[0])


def _lower_hull(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """The points, x ascending, that no line between two others lies below: a convex curve, on which gains fall."""
    hull: list[tuple[float, float]] = []
    for point in zip(x, y, strict=True):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [px for px, _ in hull], [py for _, py in hull]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / max(b[0] - a[0], 1e-12)


def fit_tables(
    problems: Sequence[TableProblem], candidate: Candidate, shares: Sequence[int], by_prediction: bool = False
) -> list[FittedPlan]:
    """Each table's plan within its bytes, with its centroids. What a table leaves is for the next smaller one.

    Raises ValueError where a table does not fit its bytes.
    """
    fitted: dict[int, FittedPlan] = {}
    spare = 0
    for number in sorted(range(len(problems)), key=lambda i: -problems[i].rows.shape[0]):
        generator = torch.Generator("cpu").manual_seed(0)
        fitted[number] = fit_table(problems[number], candidate, shares[number] + spare, generator, by_prediction)
        spare += shares[number] - fitted[number].plan.nbytes
    return [fitted[number] for number in range(len(problems))]


def fit_table(
    problem: TableProblem, candidate: Candidate, nbytes: int, generator: torch.Generator, by_prediction: bool = False
) -> FittedPlan:
    """A table's plan within its bytes, with its centroids.

    One tier replaces the candidate's where these do not fit, or, ``by_prediction``, where it is expected to lose less.

    Raises ValueError where nothing fits.
    """
    if by_prediction:
        tried = list(unjudged_plans(problem, candidate, nbytes))
        sample, plan = tried[problem.expected_best([plan for _, plan in tried])]
    else:
        sample, plan = next(_plans(problem, [candidate, replace(candidate, fractions=ONE)], nbytes))
    return fit_plan(plan, sample, generator)


def unjudged_plans(problem: TableProblem, candidate: Candidate, nbytes: int) -> Iterator[tuple[Sample, MixedPlan]]:
    """A table's plans within its bytes that the prediction chooses from, each with its sample; those that fit."""
    return _plans(problem, problem.unjudged(candidate), nbytes)


def _plans(problem: TableProblem, tried: Sequence[Candidate], nbytes: int) -> Iterator[tuple[Sample, MixedPlan]]:
    """A table's plans within its bytes, each with its sample, of those that are tried and fit.

    Raises ValueError for fewer bytes than the smallest table takes.
    """
    if nbytes < problem.least:
        n, d = problem.rows.shape
        raise too_small(nbytes, n, d, problem.least, problem.rows.nbytes)
    for each in dict.fromkeys(tried):
        mixed = problem.mixed(each)
        if (plan := mixed.plan(nbytes)) is not None:
            yield mixed.sample, plan


def proportional(problems: Sequence[TableProblem], budget: int) -> list[int]:
    """Bytes in proportion to the tables' sizes, but for each at least its least."""
    left, size = budget, sum(problem.rows.numel() for problem in problems)
    shares = {}
    by_need = sorted(enumerate(problems), key=lambda pair: -pair[1].least / max(1, pair[1].rows.numel()))
    for number, problem in by_need:  # those that their part is too small for come first
        shares[number] = max(problem.least, left * problem.rows.numel() // max(1, size))
        left, size = left - shares[number], size - problem.rows.numel()
    return [shares[number] for number in range(len(problems))]


@dataclass(frozen=True, eq=False)
class BestPlans:
    """The plans of a model's tables that a judge likes best.

    Attributes:
        candidate: what they were made by.
        fitted: one plan per table.
        figure: the judge's, or None.
    """

    candidate: Candidate
    fitted: Sequence[FittedPlan]
    figure: Any


Judge = Callable[[Sequence[FittedPlan]], Any]
OnCandidate = Callable[[Candidate, Any], None]


def number_of_fits(problems: Sequence[TableProblem]) -> int:
    """How many plans :func:`best_plans` shows a judge."""
    return len(candidates(problems)) + (len(problems) > 1)


def largest(figures: Sequence[Any]) -> int:
    """The place of the first largest figure."""
    return max(range(len(figures)), key=figures.__getitem__)


def best_plans(
    problems: Sequence[TableProblem],
    budget: int,
    judge: Judge | None = None,
    on_candidate: OnCandidate = lambda candidate, figure: None,
    shares: Sequence[int] | None = None,
    choose: Callable[[Sequence[Any]], int] = largest,
) -> BestPlans:
    """The candidate that the judge likes best, fitted; without a judge the default, its tiers chosen by prediction.

    Args:
        problems: the tables, all of which are compressed.
        budget: bytes of all files together.
        judge: fitted plans -> a figure, higher is better, or whatever ``choose`` takes.
        on_candidate: is told each candidate and its figure.
        shares: bytes of each table; by default those of :func:`share_bytes` for the default candidate.
        choose: the judge's figures of all candidates -> the place of the best.

    Raises:
        ValueError: a budget that nothing fits.
    """
    tried = candidates(problems) if judge is not None else candidates(problems)[:1]
    by_cost = share_bytes(problems, tried[0], budget) if shares is None else shares
    fits: list[BestPlans] = []

    def consider(candidate: Candidate, by_table: Sequence[int]) -> None:
        fitted = fit_tables(problems, candidate, by_table, by_prediction=judge is None)
        figure = None if judge is None else judge(fitted)
        on_candidate(candidate, figure)
        fits.append(BestPlans(candidate, fitted, figure))

    for candidate in tried:
        consider(candidate, by_cost)
    if judge is None:
        return fits[0]
    if len(problems) > 1:
        consider(fits[choose([each.figure for each in fits])].candidate, proportional(problems, budget))
    return fits[choose([each.figure for each in fits])]
