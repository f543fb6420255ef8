"""plan_mixed and fit_plan: bytes that the file takes, never above the budget; a prediction that holds; odd tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mgqe
from mgqe.codec.capacity import BY_COLUMNS
from mgqe.codec.metric import Metric
from mgqe.codec.planning.mixed import MixedPlan, Sample, fit_plan, least_nbytes, plan_mixed
from mgqe.codec.planning.shapes import Choice

TIERS = ((1.0,), (0.1, 0.9), (0.1, 0.3, 0.6))


def gaussian(n, d, seed=0):
    deviations = torch.arange(1, d + 1) ** -0.5
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * deviations


def counts_of(n):
    return (1000 / torch.arange(1, n + 1)).long()


def planned(rows, counts, fractions, budget, padding_idx=None, shared=False, power=0.5):
    choice = Choice(power, fractions, Metric.identity(rows.shape[1]), shared)
    sample = Sample.of(rows, counts, power, fractions, padding_idx)
    return plan_mixed(sample, choice, budget, padding_idx), sample


def decoded(plan, sample, rows):
    return fit_plan(plan, sample, torch.Generator().manual_seed(0)).decoded(rows)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 600),
    st.integers(1, 12),
    st.integers(0, 20_000),
    st.sampled_from(TIERS),
    st.booleans(),
    st.sampled_from([None, 0]),
)
def test_never_above_the_budget_and_never_much_worse_with_twice_as_much(n, d, extra, fractions, shared, padding_idx):
    rows, counts = gaussian(n, d), counts_of(n)
    budget = least_nbytes(n, d, padding_idx) + extra
    plan, _ = planned(rows, counts, fractions, budget, padding_idx, shared)
    if plan is None:
        assert len(fractions) > 1  # codebooks of further tiers need bytes of their own
        return
    assert plan.nbytes <= budget
    larger, _ = planned(rows, counts, fractions, 2 * budget, padding_idx, shared)
    assert larger.loss <= 1.001 * plan.loss


@pytest.mark.parametrize("n", [1, 2, 30, 700])
@pytest.mark.parametrize("d", [1, 8, 33])
def test_the_least_budget_is_enough(n, d):
    plan, _ = planned(gaussian(n, d), None, (1.0,), least_nbytes(n, d, None))
    assert isinstance(plan, MixedPlan)
    assert planned(gaussian(n, d), None, (1.0,), least_nbytes(n, d, None) // 2)[0] is None


@pytest.mark.parametrize("budget", ["2%", "5%", "10%", "20%"])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_the_file_takes_the_bytes_that_the_plan_says(tmp_path, budget, padding_idx):
    n, d = 3000, 24
    counts = counts_of(n)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    layer = mgqe.MGQEmbedding(n, d, padding_idx, counts=counts, budget=budget)
    layer.raw_weight.data.copy_(gaussian(n, d))
    layer.start_quantizing()
    mgqe.save(layer.freeze(), tmp_path / "table")
    nbytes = layer.planner.nbytes
    rows, generator = layer.raw_weight.detach(), torch.Generator().manual_seed(0)
    plan = layer.planner.fit(tuple(rows.shape), lambda ids: rows[ids], layer.metric(), generator).plan
    assert (tmp_path / "table").stat().st_size == plan.nbytes
    assert 0.9 * nbytes < plan.nbytes <= nbytes


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("fractions", TIERS[1:])
@pytest.mark.parametrize("share", [0.03, 0.08])
def test_the_loss_is_what_was_predicted(power, fractions, share):
    n, d = 4000, 16
    rows, counts = gaussian(n, d), counts_of(n)
    plan, sample = planned(rows, counts, fractions, int(share * 4 * n * d), power=power)
    weights = (counts.double() + 1) ** power
    errors = (rows - decoded(plan, sample, rows)).double().square().sum(1)
    squares = (rows.double() - torch.from_numpy(plan.axes.mean)).square().sum(1)
    for g, error in enumerate(plan.errors):
        ids = plan.tiers.members(g)
        lost = float(weights[ids] @ errors[ids] / (weights[ids] @ squares[ids]))
        assert lost == pytest.approx(error, rel=0.1 if power < 1 else 0.3)  # a few ids have most of a head's weight
    assert float(weights @ errors / (weights @ squares)) == pytest.approx(plan.loss, rel=0.1)
    assert plan.cost == pytest.approx(float(plan.loss * (weights @ squares) / weights.mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("share", "spread", "has_levels", "turned"),
    [(0.05, 0.5, False, True), (0.12, 1.0, True, True), (0.1, 0.0, True, False), (0.2, 0.0, True, False)],
)
def test_the_loss_of_shapes_of_large_tables_is_what_was_predicted(monkeypatch, share, spread, has_levels, turned):
    """Coordinates and matrix are whole numbers there, and levels are shared by coordinates."""
    monkeypatch.setattr("mgqe.codec.planning.mixed.WHOLE_ROWS", 1)
    n, d = 6000, 16
    generator = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(d, d, generator=generator))
    rows = (torch.randn(n, d, generator=generator) * torch.arange(1, d + 1) ** -spread) @ axes
    plan, sample = planned(rows, counts_of(n), (0.1, 0.9), int(share * 4 * n * d))
    assert plan.capacity.matrix_dtype == BY_COLUMNS
    assert (plan.capacity.has_levels, plan.turned) == (has_levels, turned)
    weights = (counts_of(n).double() + 1) ** 0.5
    errors = (rows - decoded(plan, sample, rows)).double().square().sum(1)
    squares = (rows.double() - torch.from_numpy(plan.axes.mean)).square().sum(1)
    lost = float(weights @ errors / (weights @ squares))
    assert lost == pytest.approx(plan.loss, rel=0.1 if lost > 0.001 else 0.35)  # where rounding to bytes is most of it


def test_errors_count_in_the_metric():
    """Of two directions alike in variance the one that costs 100 times as much gets log2(100) / 2 = 3.3 more bits."""
    rows = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    choice = Choice(0.0, (1.0,), Metric(torch.diag(torch.tensor([1.0, 100.0])), "queries"))
    sample = Sample.of(rows, None, 0.0, (1.0,), None)
    plan = plan_mixed(sample, choice, least_nbytes(4000, 2, None) + 150)
    (tier,) = plan.capacity.tiers
    assert plan.capacity.widths == (1, 1)
    assert tier.code_bits in ((5, 3), (6, 2))
    errors = (rows - decoded(plan, sample, rows)).square().mean(0)
    assert errors[1] < 0.1 * errors[0]


ODD = {
    "one row": gaussian(1, 8),
    "two rows": gaussian(2, 8),
    "one dimension": gaussian(1000, 1),
    "all alike": torch.full((500, 16), 3.0),
    "zeros": torch.zeros(500, 16),
    "one direction": torch.outer(torch.arange(300.0), torch.arange(1.0, 9.0)),
    "fewer rows than centroids": gaussian(20, 16),
    "fewer rows than dimensions": gaussian(5, 16),
    "large": gaussian(500, 8) * 1e37,
    "small": gaussian(500, 8) * 1e-37,
    "a large mean": gaussian(500, 8) + 1000,
}


@pytest.mark.parametrize(
    ("counts", "fractions"), [("none", TIERS[0]), ("zeros", TIERS[1]), ("unequal", TIERS[1]), ("all alike", TIERS[2])]
)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_odd_tables(name, counts, fractions, shared):
    rows = ODD[name]
    n = len(rows)
    values = {"none": None, "zeros": torch.zeros(n), "all alike": torch.ones(n), "unequal": counts_of(n)}[counts]
    plan, sample = planned(rows, values, fractions, least_nbytes(*rows.shape, None) + 1500, shared=shared)
    vectors = decoded(plan, sample, rows)
    assert bool(vectors.isfinite().all())
    assert np.isfinite([plan.loss, plan.cost]).all()
    lost = (rows - vectors).double().square().sum()
    spread = (rows - rows.double().mean(0)).square().sum()
    assert lost <= (1 + 1e-6) * max(float(spread), 1e-9 * float(rows.double().square().sum())) or n < 3
    if spread == 0:
        assert torch.allclose(vectors, rows)


def test_all_weight_on_no_row():
    rows = gaussian(1, 4)
    plan, sample = planned(rows, None, (1.0,), 2000, padding_idx=0)
    assert bool(decoded(plan, sample, rows).isfinite().all())


def test_the_padding_may_hold_anything():
    rows = gaussian(500, 4)
    clean, dirty = rows.clone(), rows.clone()
    clean[7], dirty[7] = 0.0, torch.nan
    plan, other = (planned(table, None, (1.0,), 2000, padding_idx=7)[0] for table in (clean, dirty))
    assert plan.capacity == other.capacity
    assert plan.loss == other.loss


def test_a_sample_stands_for_all_rows():
    rows, counts = gaussian(3000, 4), counts_of(3000)
    whole = Sample.of(rows, counts, 0.5, (0.1, 0.9), None)
    part = Sample.of(rows, counts, 0.5, (0.1, 0.9), None, limit=500)
    assert len(part.rows) == 300 + 500
    assert part.mass == pytest.approx(whole.mass)
    assert part.weights[part.tier_of == 0].sum() == pytest.approx(whole.mass[0])
    assert part.weights.sum() == pytest.approx(whole.weights.sum(), rel=0.05)
