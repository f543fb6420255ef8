"""One budget for several tables: shares by what errors cost, candidates, and a judge."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgqe.codec.metric import Metric
from mgqe.codec.planning.fits import best_plans, fit_tables, unjudged_plans
from mgqe.codec.planning.mixed import spectrum_of
from mgqe.codec.planning.problem import ONE, Candidate, TableProblem, candidates
from mgqe.codec.planning.shapes import centroid_room
from mgqe.codec.planning.tables import proportional, share_bytes

CANDIDATE = Candidate(0.5, ONE, "gradients")


def problem(n=2000, d=16, seed=0, scale=1.0, lookups=100.0, counts=True):
    made = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=made) * torch.linspace(1.0, 0.1, d)
    metrics = {"gradients": Metric(scale * torch.eye(d), "gradients", lookups)} if lookups else {}
    return TableProblem(rows, torch.arange(n, 0, -1) if counts else None, metrics)


def test_a_metric_of_rows_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"shape \(16, 16\), as wide as the rows, got \(8, 8\)"):
        TableProblem(problem().rows, None, {"gradients": Metric(torch.eye(8), "gradients", 1.0)})


def test_the_table_whose_errors_cost_more_gets_more_bytes():
    cheap, dear = problem(seed=0, scale=1.0), problem(seed=1, scale=100.0)
    shares = share_bytes([cheap, dear], CANDIDATE, 12_000)
    assert sum(shares) <= 12_000
    assert shares[1] > 1.2 * shares[0]


def test_tables_alike_share_alike_and_one_table_gets_all():
    shares = share_bytes([problem(seed=0), problem(seed=1)], CANDIDATE, 12_000)
    assert abs(shares[0] - shares[1]) < 0.1 * shares[0]
    assert share_bytes([problem()], CANDIDATE, 5_000) == [5_000]


def test_plans_of_one_problem_do_not_depend_on_each_other():
    """A ladder's plans have one spectrum, which no plan changes."""
    table, candidate = problem(), Candidate(0.5, (0.1, 0.9), "gradients")
    together = table.mixed(candidate)
    for nbytes in (4_000, 12_000, 6_000):
        plan, alone = together.plan(nbytes), table.mixed(candidate).plan(nbytes)
        assert (plan.capacity, plan.errors, plan.cost) == (alone.capacity, alone.errors, alone.cost)


def test_a_ladder_works_out_its_spectrum_once(monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return spectrum_of(*arguments)

    monkeypatch.setattr("mgqe.codec.planning.mixed.spectrum_of", counted)
    share_bytes([problem(seed=0), problem(seed=1)], CANDIDATE, 12_000)
    assert len(calls) == 2


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
    assert len(listed) == len(set(listed)) == 14
    assert {candidate.source for candidate in listed} == {"gradients", "identity"}
    assert candidates([problem(lookups=0.0, counts=False)]) == [Candidate(0.0, ONE, "identity")]


def test_the_judge_decides_and_hears_every_candidate():
    heard = []

    def judge(fitted):
        return float(fitted[0].plan.tiers.num_tiers)

    best = best_plans([problem()], 6_000, judge, lambda candidate, figure: heard.append((candidate, figure)))
    assert len(heard) == 14
    assert best.candidate.fractions == (0.02, 0.08, 0.3, 0.6)
    assert best.figure == best.fitted[0].plan.tiers.num_tiers == 4
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


# ---- tables that may stay as they are ----------------------------------------------------------------------


def staying(n, d=16, seed=0, scale=1.0, lookups=100.0):
    made = problem(n, d, seed, scale, lookups)
    return TableProblem(made.rows, made.counts, made.metrics, may_stay=True)


def test_a_table_that_no_codes_are_smaller_than_stays_and_the_other_gets_the_rest():
    """7 x 16 floats are 448 bytes, and the header of a file alone takes more."""
    for lookups in (100.0, 0.0):
        for scale in (1e-9, 1e9):
            small, large = staying(7, scale=scale, lookups=lookups), staying(5000, seed=1, lookups=lookups)
            assert small.least > 448 == small.least_share
            for order in ([small, large], [large, small]):
                shares = dict(zip(order, share_bytes(order, CANDIDATE, 32_000), strict=True))
                assert shares == {small: 448, large: 32_000 - 448}
                assert small.stays(448)
                assert not large.stays(32_000)


def test_a_table_stays_where_its_bytes_are_worth_it():
    """500 x 16 floats are 32,000 of 45,000 bytes; a table of 5,000 x 16 gets no less than a quarter of its 40,909."""
    large = staying(5000)
    dear, cheap = staying(500, seed=1, scale=1e12), staying(500, seed=1, scale=1e-12)
    assert share_bytes([large, dear], CANDIDATE, 45_000) == [13_000, 32_000]
    assert share_bytes([large, cheap], CANDIDATE, 45_000)[1] < 32_000
    required = TableProblem(dear.rows, dear.counts, dear.metrics)
    assert share_bytes([large, required], CANDIDATE, 45_000)[1] < 32_000


def test_most_of_all_bytes_leave_the_smaller_table():
    """Of 320,000 and 64,000 bytes, 345,600: codes of 8 bits take a quarter, so that there is room for one table."""
    large, small = staying(5000), staying(1000, seed=1)
    shares = share_bytes([large, small], CANDIDATE, 345_600)
    assert shares[1] == 64_000
    assert 80_000 < shares[0] <= 345_600 - 64_000
    assert not large.stays(shares[0])


def test_a_table_of_one_row_stays():
    one = TableProblem(torch.zeros(1, 1024, dtype=torch.float64), None, may_stay=True)
    assert one.least < one.rows.nbytes == one.least_share == 8192
    assert share_bytes([one, staying(5000, lookups=0.0)], CANDIDATE, 40_000) == [8192, 40_000 - 8192]


def test_a_table_of_zeros_gets_the_least():
    """Zeros cost nothing at any size, so that all other bytes go to the other table."""
    for may_stay in (True, False):
        zeros = TableProblem(torch.zeros(3000, 16), None, problem().metrics, may_stay=may_stay)
        for budget in (20_000, 50_000):
            assert share_bytes([zeros, staying(5000, seed=1)], CANDIDATE, budget) == [zeros.least, budget - zeros.least]


def test_a_table_that_only_stays_may_hold_anything():
    masks = torch.tensor([[0.0], [-torch.inf], [torch.nan]])
    assert TableProblem(masks, None, may_stay=True).least_share == 12
    with pytest.raises(ValueError, match="2 rows of weight hold NaN"):
        TableProblem(masks, None)


@given(
    st.lists(st.tuples(st.integers(1, 600), st.sampled_from([1, 4, 24]), st.booleans()), min_size=2, max_size=3),
    st.sampled_from([0, 1, 300, 5_000]),
)
@settings(max_examples=20, deadline=None)
def test_shares_are_within_the_budget_and_none_is_below_its_least(tables, more):
    problems = [
        TableProblem(torch.randn(n, d, generator=torch.Generator().manual_seed(n)), torch.arange(n), may_stay=stays)
        for n, d, stays in tables
    ]
    budget = sum(each.least_share for each in problems) + more
    shares = share_bytes(problems, Candidate(0.5, (0.1, 0.9), "identity"), budget)
    assert sum(shares) <= budget
    assert all(each.least_share <= share for each, share in zip(problems, shares, strict=True))
    budget = sum(each.least for each in problems) + more
    even = proportional(problems, budget)
    assert sum(even) <= budget
    assert all(each.least <= share for each, share in zip(problems, even, strict=True))


@pytest.mark.parametrize("share", [0.06, 0.08, 0.09])
def test_many_tiers_have_no_more_centroids_than_a_layer_has_room_for(share):
    # Without the limit these have 6,304 to 6,496 numbers of centroids, and room is for 6,144.
    rows = torch.randn(60_000, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) ** -0.25
    table = TableProblem(rows, torch.arange(60_000, 0, -1))
    _, plan = next(unjudged_plans(table, Candidate(0.25, (0.02, 0.08, 0.3, 0.6), "identity"), int(share * rows.nbytes)))
    assert plan.tiers.num_tiers == 4
    assert sum(size for (size,) in plan.capacity.codebook_shapes) <= centroid_room(8)
