"""Plans of tables within their bytes, fitted, and the best candidate by a judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mgqe.codec.planning.budget import too_small
from mgqe.codec.planning.mixed import FittedPlan, MixedPlan, Sample, fit_plan
from mgqe.codec.planning.problem import ONE, Candidate, TableProblem, candidates
from mgqe.codec.planning.tables import proportional, share_bytes


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
