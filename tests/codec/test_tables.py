"""One budget for several tables: shares by what errors cost, candidates, and a judge."""

import numpy as np
import pytest
import torch

from mgqe.codec.metric import Metric
from mgqe.codec.planning.tables import (
    ONE,
    Candidate,
    TableProblem,
    best_plans,
    candidates,
    fit_tables,
    proportional,
    share_bytes,
)

CANDIDATE = Candidate(0.5, ONE, "gradients")


def problem(n=2000, d=16, seed=0, scale=1.0, lookups=100.0, counts=True):
    made = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=made) * torch.linspace(1.0, 0.1, d)
    metrics = {"gradients": Metric(scale * torch.eye(d), "gradients", lookups)} if lookups else {}
    return TableProblem(rows, torch.arange(n, 0, -1) if counts else None, metrics)


def test_the_table_whose_errors_cost_more_gets_more_bytes():
    cheap, dear = problem(seed=0, scale=1.0), problem(seed=1, scale=100.0)
    shares = share_bytes([cheap, dear], CANDIDATE, 12_000)
    assert sum(shares) <= 12_000
    assert shares[1] > 1.2 * shares[0]


def test_tables_alike_share_alike_and_one_table_gets_all():
    shares = share_bytes([problem(seed=0), problem(seed=1)], CANDIDATE, 12_000)
    assert abs(shares[0] - shares[1]) < 0.1 * shares[0]
    assert share_bytes([problem()], CANDIDATE, 5_000) == [5_000]


def test_without_comparable_metrics_the_scale_of_rows_does_not_matter():
    small, large = problem(seed=0, lookups=0.0), problem(seed=1, lookups=0.0)
    large = TableProblem(1000.0 * large.rows, large.counts)
    shares = share_bytes([small, large], Candidate(0.5, ONE, "identity"), 12_000)
    assert abs(shares[0] - shares[1]) < 0.1 * shares[0]


def test_bytes_are_never_above_the_budget_and_the_rest_goes_on_to_the_next_table():
    problems = [problem(n=3000, seed=0), problem(n=500, seed=1)]
    for budget in (8_000, 12_345, 40_000):
        fitted = fit_tables(problems, CANDIDATE, proportional(problems, budget))
        assert sum(plan.plan.nbytes for plan in fitted) <= budget
        assert [plan.plan.tiers.num_embeddings for plan in fitted] == [3000, 500]


def test_a_budget_below_the_least_names_it():
    problems = [problem(seed=0), problem(seed=1)]
    least = sum(each.least for each in problems)
    with pytest.raises(ValueError, match=f"{least:,} bytes"):
        share_bytes(problems, CANDIDATE, least - 1)


def test_candidates_are_every_source_with_every_shape_and_the_default_comes_first():
    listed = candidates([problem()])
    assert listed[0] == Candidate(0.5, (0.1, 0.9), "gradients")
    assert len(listed) == len(set(listed)) == 12
    assert {candidate.source for candidate in listed} == {"gradients", "identity"}
    assert candidates([problem(lookups=0.0, counts=False)]) == [Candidate(0.0, ONE, "identity")]


def test_the_judge_decides_and_hears_every_candidate():
    heard = []

    def judge(fitted):
        return float(fitted[0].plan.tiers.num_tiers)

    best = best_plans([problem()], 6_000, judge, lambda candidate, figure: heard.append((candidate, figure)))
    assert len(heard) == 12
    assert best.candidate.fractions == (0.1, 0.3, 0.6)
    assert best.figure == best.fitted[0].plan.tiers.num_tiers == 3
    default = best_plans([problem()], 6_000)
    assert default.candidate == candidates([problem()])[0]
    assert default.figure is None


def test_decoded_rows_are_near_and_padding_does_not_weigh():
    table = problem(n=1000, counts=False)
    padded = TableProblem(torch.cat([1e4 * torch.ones(1, 16), table.rows]), None, table.metrics, 0)
    (fitted,) = best_plans([padded], 12_000).fitted
    lost = (fitted.decoded(padded.rows)[1:] - table.rows).square().sum() / table.rows.square().sum()
    assert lost < 0.05
    assert np.abs(fitted.plan.axes.mean).max() < 1.0
