"""One budget for the tables of a model: the bytes of each table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mgqe.codec.planning.mixed import MixedPlan
from mgqe.codec.planning.problem import ONE, Candidate, TableProblem
from mgqe.codec.planning.split import Step, split_budget

STEPS = 48  # of a table's ladder of bytes
POINTS = 6  # budgets that a table is planned for, between which its ladder is interpolated
SPREAD = 4.0  # a table gets at most so many times its share of the budget, and at least 1 / SPREAD


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


def proportional(problems: Sequence[TableProblem], budget: int) -> list[int]:
    """Bytes in proportion to the tables' sizes, but for each at least its least."""
    left, size = budget, sum(problem.rows.numel() for problem in problems)
    shares = {}
    by_need = sorted(enumerate(problems), key=lambda pair: -pair[1].least / max(1, pair[1].rows.numel()))
    for number, problem in by_need:  # those that their part is too small for come first
        shares[number] = max(problem.least, left * problem.rows.numel() // max(1, size))
        left, size = left - shares[number], size - problem.rows.numel()
    return [shares[number] for number in range(len(problems))]
