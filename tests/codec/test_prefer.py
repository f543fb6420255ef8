"""prefer: the fastest of the shapes that lose about as little, or the one that loses least; and what look-ups take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mgqe
from mgqe.codec.axes import Axes
from mgqe.codec.capacity import BY_COLUMNS, Capacity, TierShape
from mgqe.codec.metric import Metric
from mgqe.codec.planning.mixed import WHOLE_ROWS, MixedPlan, Sample, plan_mixed
from mgqe.codec.planning.shapes import Choice, Coordinates, Shape, fastest
from mgqe.codec.planning.speed import Costs, Frequencies, full_cost, lookup_cost, lookup_share, speed_rank
from mgqe.codec.planning.waterfill import Spectrum

N = 20_000
assert N > WHOLE_ROWS
COUNTS = 1_000_000 // torch.arange(1, N + 1)


def rows_of(d: int, decay: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    axes, _ = torch.linalg.qr(torch.randn(d, d, generator=generator))
    return (torch.randn(N, d, generator=generator) * torch.arange(1, d + 1) ** -decay) @ axes


@settings(max_examples=10, deadline=None)
@given(
    d=st.sampled_from([8, 24, 40]),
    decay=st.floats(0.2, 1.2),
    budget=st.floats(0.03, 0.25),
    fractions=st.sampled_from([(1.0,), (0.1, 0.9)]),
)
def test_size_loses_no_more_and_speed_takes_no_longer(d, decay, budget, fractions):
    rows, nbytes = rows_of(d, decay), int(budget * 4 * N * d)
    sample = Sample.of(rows, COUNTS, 0.5, fractions, None, limit=4096)
    plans: dict[str, MixedPlan] = {}
    for prefer in ("speed", "size"):
        plan = plan_mixed(sample, Choice(0.5, fractions, Metric.identity(d), prefer=prefer), nbytes)
        assert plan is not None
        assert plan.nbytes <= nbytes
        plans[prefer] = plan
    speed, size = plans["speed"], plans["size"]
    assert size.loss <= speed.loss
    assert rank(speed) <= rank(size)


def rank(plan: MixedPlan) -> int:
    return speed_rank(plan.capacity, Frequencies.of(N, COUNTS), plan.turned)


def test_they_differ_where_levels_lose_little():
    rows = rows_of(32, 0.5)
    speed, size = (mgqe.plan(N, 32, "15%", counts=COUNTS, weight=rows, prefer=prefer) for prefer in ("speed", "size"))
    assert isinstance(size, mgqe.RowsPlan)
    assert size.loss < speed.loss
    assert speed.lookup_share < size.lookup_share
    assert max(speed.nbytes, size.nbytes) <= speed.budget == size.budget
    assert mgqe.plan(N, 32, "15%", counts=COUNTS, weight=rows).capacity == speed.capacity  # the default


def test_small_tables_have_one_best_shape():
    rows = rows_of(16, 0.5)[:3000]
    plans = [mgqe.plan(3000, 16, "10%", weight=rows, prefer=prefer) for prefer in ("speed", "size")]
    assert plans[0].capacity == plans[1].capacity


def test_a_layer_makes_the_plan_that_is_preferred():
    rows = rows_of(16, 0.5)
    plan = mgqe.plan(N, 16, "12%", weight=rows, prefer="size")
    assert plan.python() == 'mgqe.MGQEmbedding.from_pretrained(weight, budget=153_600, prefer="size")'
    by_text = eval(plan.python(), {"mgqe": mgqe, "weight": rows})
    by_arguments = mgqe.MGQEmbedding.from_pretrained(rows, **plan.arguments())
    for layer in (by_text, by_arguments):
        layer.start_quantizing()
        assert layer.capacity == plan.capacity
        assert layer.freeze().nbytes <= 153_600


def test_it_is_one_of_two_and_needs_rows():
    rows = rows_of(8, 0.5)
    for wrong in ("fast", None, ("speed",)):
        with pytest.raises(ValueError, match=r"prefer must be one of \('speed', 'size'\), got"):
            mgqe.plan(N, 8, "10%", weight=rows, prefer=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give weight"):
        mgqe.plan(N, 8, "10%", prefer="size")


# ---- what look-ups take ----------------------------------------------------------------------------------------

UNITS = Costs(
    row=1, number=10, level=100, copy=1e3, product=1e4, float_product=1e5, line=1e6, full_number=2, near_line=20,
    far_line=200,
)  # fmt: skip


def mixed(widths, bits, d, matrix_dtype=BY_COLUMNS, ids=100):
    return Capacity(d, (TierShape.mixed(ids, (bits,) * len(widths)),), False, False, widths, matrix_dtype)


@pytest.mark.parametrize(
    ("capacity", "turned", "expected"),
    [
        (mixed((1, 1, 1), 4, 3), False, 1 + 3 * 10 + 3 * 100),
        (mixed((1, 1), 4, 3), True, 1 + 3 * 10 + 2 * 100 + 2 * 3 * 1e4),
        (mixed((9, 1), 8, 12), True, 1 + 12 * 10 + 3 * 1e3 + 10 * 12 * 1e4),  # nine coordinates in two copies
        (mixed((9, 1), 8, 12, "int8"), True, 1 + 12 * 10 + 3 * 1e3 + 10 * 12 * 1e5),
        (mixed((2, 1), 8, 3, None), False, 1 + 3 * 10 + 2 * 1e3),
        (Capacity.of(32, [10, 90], [2, 1], [8, 8]), False, 1 + 32 * 10 + 2 * 2 * 1e3),  # the finest tier
    ],
)
def test_cost_of_a_row_by_hand(capacity, turned, expected):
    assert lookup_cost(capacity, turned, UNITS) == expected


def test_shares_of_the_most_frequent():
    asked = Frequencies.of(4, torch.tensor([1, 5, 0, 4]))
    assert [asked.beyond(rows) for rows in (0.9, 1, 2.7, 3, 4, 9)] == pytest.approx([1, 0.5, 0.1, 0, 0, 0])
    for alike in (Frequencies.of(4, None), Frequencies.of(4, torch.zeros(4))):
        assert [alike.beyond(rows) for rows in (0, 1, 3, 4)] == [1.0, 0.75, 0.25, 0.0]


def test_share_by_hand():
    # 2^23 rows of 16 numbers: 2^15 fit the core's own cache, 2^19 the last one; of codes, a byte each, all do
    n = 1 << 23
    capacity = mixed((16,), 8, 16, ids=n)
    alike = Frequencies.of(n, None)
    full = 16 * 2 + 20 * (1 - 2**-8) + 200 * (1 - 2**-4)
    assert full_cost(16, alike, UNITS) == full
    assert lookup_share(capacity, alike, True, UNITS) == pytest.approx(lookup_cost(capacity, True, UNITS) / full)
    often = torch.ones(n, dtype=torch.int64)
    often[7] = n  # half of the look-ups, about
    full = 16 * 2 + 20 * (1 - 2**-8) / 2 + 200 * (1 - 2**-4) / 2
    assert full_cost(16, Frequencies.of(n, often), UNITS) == pytest.approx(full, rel=1e-3)
    # 2^26 rows: half of the codes fit
    many = mixed((16,), 8, 16, ids=1 << 26)
    missed = 1e6 * 0.5 * (1 + 1 / 64)
    full = 16 * 2 + 20 * (1 - 2**-11) + 200 * (1 - 2**-7)
    expected = (lookup_cost(many, True, UNITS) + missed) / full
    assert lookup_share(many, Frequencies.of(1 << 26, None), True, UNITS) == pytest.approx(expected)


def test_counts_decide_where_codes_do_not_fit_the_caches():
    # Levels of 3 and of 7 bits take as long to decode. Rows of 24 and 56 bytes, of which 32 MB hold 67% and 29%.
    n, d = 1 << 21, 64
    axes = Axes.own(np.eye(d), np.ones(d), Metric.identity(d))
    own = Coordinates(axes, Spectrum(np.ones((1, d)), np.ones(1), (n,)), np.zeros(d), 1.0, turned=False)
    small, large = (
        Shape(own, mixed((1,) * d, bits, d, ids=n), np.zeros(1), loss) for bits, loss in ((3, 0.0105), (7, 0.01))
    )
    assert lookup_cost(small.capacity, False) == lookup_cost(large.capacity, False)
    often = torch.ones(n, dtype=torch.int64)
    often[:1000] = n
    assert fastest([small, large], Frequencies.of(n, None)) is small
    assert fastest([small, large], Frequencies.of(n, often)) is large  # the caches hold what nearly all look-ups read


@settings(max_examples=20, deadline=None)
@given(st.integers(1, N), st.sampled_from([1, 10, 10**6]))
def test_counts_decide_nothing_where_codes_fit_the_caches(frequent, times):
    often = torch.ones(N, dtype=torch.int64)
    often[:frequent] = times
    shapes = [mixed((1,) * 32, 7, 32, ids=N), mixed((8,) * 4, 8, 32, ids=N), mixed((1,) * 20, 5, 32, ids=N)]
    ranks = [[speed_rank(shape, Frequencies.of(N, counts)) for shape in shapes] for counts in (None, often)]
    assert ranks[0] == ranks[1]


def test_plans_say_it():
    rows = rows_of(32, 0.5)
    plan = mgqe.plan(N, 32, "15%", weight=rows)
    assert f"look-up {plan.lookup_share:.1f} of nn.Embedding's time, estimated" in str(plan)
    even = mgqe.plan(N, 32, "15%", counts=COUNTS)
    assert even.lookup_share == lookup_share(even.capacity, Frequencies.of(N, COUNTS), turned=False)
    assert str(even).endswith(f"look-up {even.lookup_share:.1f} of nn.Embedding's time, estimated")


def test_plans_say_when_codes_have_no_use_for_more_bytes():
    rows = rows_of(16, 0.5)
    plans = {budget: mgqe.plan(N, 16, budget, weight=rows) for budget in ("12%", "25%", "30%")}
    assert plans["12%"].limit == ""
    assert plans["25%"].nbytes == plans["30%"].nbytes < 0.23 * plans["30%"].full_nbytes
    assert ", all codes with the most bits that levels have, 7, " in str(plans["30%"])
    size = mgqe.plan(N, 16, "30%", weight=rows, prefer="size")
    assert ", all codes with the most bits that codes have, 8, " in str(size)
