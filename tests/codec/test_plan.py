"""plan: exact bytes, a prediction that holds, more bytes never lose more; budget= wherever it is taken; every error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mgqe
from mgqe.codec.capacity import Capacity
from mgqe.codec.kmeans import THOROUGH
from mgqe.codec.layout import frozen_nbytes
from mgqe.codec.planning import Problem, budget_bytes
from mgqe.codec.planning.loss import predicted
from mgqe.codec.planning.rate import few_rows, limit, nested_factor, rounding, tier_error
from mgqe.codec.planning.split import split_budget

COUNTS = (20_000 / torch.arange(1, 2001)).long()[torch.randperm(2000, generator=torch.Generator().manual_seed(1))]


def gaussian(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def lost(rows: torch.Tensor, decoded: torch.Tensor, ids: torch.Tensor) -> float:
    return float((rows - decoded)[ids].square().sum() / rows[ids].square().sum())


# ---- the prediction ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "optimum"), [(1, 1 - 2 / math.pi), (2, 0.11748), (3, 0.03454), (4, 0.009497), (5, 0.002499)]
)
def test_one_dimension_is_the_lloyd_max_quantiser(bits, optimum):
    assert limit(1, 2**bits) == pytest.approx(optimum, rel=0.02)


def test_values_worked_by_hand():
    assert limit(3, 16) == pytest.approx(  # between 2 and 4 dimensions, -ln(share) is a power of s
        math.exp(
            -math.exp(
                (1 - math.log2(1.5)) * math.log(-math.log(0.106029)) + math.log2(1.5) * math.log(-math.log(0.336189))
            )
        )
    )
    assert limit(2, 2048) == pytest.approx(0.001822**2 / 0.003704)  # the line goes on
    assert tier_error(2, 64, 64) == 0
    assert tier_error(2, 64, 400, inherited=16) == pytest.approx(
        0.028678 * (1 - 48 / 400) ** (1.976 + 0.28 * math.log2(400 / 48)) * 1.05
    )
    assert few_rows(2, 4.0) == pytest.approx(0.75 ** (1.976 + 0.280 * 2))
    assert nested_factor(2, 0.25) == pytest.approx(1.05)
    assert nested_factor(2, 0.0) == 1
    assert rounding("float32", 256) == 0
    assert rounding("int8", 4) == pytest.approx((1.8 / 127) ** 2 / 12)


def test_more_of_anything_loses_less():
    assert all(
        limit(s, k) > limit(s, 2 * k) for s in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) for k in (2, 8, 100, 512, 4096)
    )
    assert all(limit(s, k) < limit(s + 1, k) for s in range(1, 32) for k in (2, 16, 256))
    assert all(few_rows(2, n) < few_rows(2, 2 * n) for n in (1.1, 2, 4, 20, 60))


@pytest.mark.parametrize(
    ("subspaces", "centroids", "share", "dtype"),
    [((8,), (16,), True, "float32"), ((8, 8), (64, 16), True, "int8"), ((16, 4), (16, 32), False, "float16")],
)
def test_predicted_is_what_k_means_loses_on_gaussian_rows(subspaces, centroids, share, dtype):
    rows = gaussian(2000, 16)
    tiers = mgqe.Tiers.from_counts(COUNTS, (0.2, 0.8)) if len(subspaces) > 1 else mgqe.Tiers.from_sizes((2000,))
    layer = mgqe.MGQEmbedding.from_pretrained(
        rows, tiers=tiers, num_subspaces=subspaces, num_centroids=centroids, capacity="both", share_codebook=share,
        centroid_dtype=dtype,
    )  # fmt: skip
    layer.start_quantizing(THOROUGH)
    decoded = layer.freeze().to_dense()
    problem = Problem.of(2000, 16, COUNTS)
    _, errors = predicted(problem.space, tiers.sizes, Capacity.of(16, tiers.sizes, subspaces, centroids, share), dtype)
    for g, error in enumerate(errors):
        assert lost(rows, decoded, tiers.members(g)) == pytest.approx(error, rel=0.12)


# ---- the choice --------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(70, 500),
    d=st.sampled_from([4, 6, 8, 15]),
    skew=st.floats(0, 2),
    shares=st.lists(st.floats(0.2, 0.9), min_size=2, max_size=3),
    ordered=st.booleans(),
    padding=st.booleans(),
)
def test_bytes_are_exact_and_more_never_lose_more(tmp_path_factory, n, d, skew, shares, ordered, padding):
    counts = 1e4 / torch.arange(1, n + 1) ** skew
    counts = counts if ordered else counts[torch.randperm(n, generator=torch.Generator().manual_seed(n))]
    problem = Problem.of(n, d, counts, padding_idx=0 if padding else None)
    least = problem.least()
    losses = []
    for budget in [least, *(max(least, int(share * n * d * 4)) for share in sorted(shares))]:
        plan = problem.plan(budget)
        assert plan.nbytes <= budget
        layer = mgqe.MGQEmbedding(n, d, padding_idx=0 if padding else None, warmup_steps=0, **plan.arguments())
        file = tmp_path_factory.mktemp("plan") / "table.safetensors"
        assert mgqe.save(layer.freeze(), file) == plan.nbytes == file.stat().st_size
        losses.append(plan.loss)
    assert losses == sorted(losses, reverse=True)
    with pytest.raises(ValueError, match=f"the least is {least:,} bytes"):
        problem.plan(least - 1)


def test_the_default_is_never_better_by_the_same_measure():
    problem = Problem.of(2000, 32, COUNTS)
    tiers = mgqe.Tiers.from_counts(COUNTS)
    for subspaces in (16, 8):
        for dtype in ("float32", "int8"):
            capacity = Capacity.of(32, tiers.sizes, (subspaces,) * 2, (128, 64))
            loss, _ = predicted(problem.space, tiers.sizes, capacity, dtype)
            assert problem.plan(frozen_nbytes(tiers, capacity, None, dtype)).loss <= loss


def test_ids_alike_have_one_tier_and_frequent_ids_more_bits():
    assert mgqe.plan(2000, 16, "10%").tiers.num_tiers == 1
    assert mgqe.plan(2000, 16, "10%", counts=COUNTS, max_tiers=1).tiers.num_tiers == 1
    counts = COUNTS.repeat_interleave(10)
    plan = mgqe.plan(20_000, 16, "5%", counts=counts)
    bits = [tier.num_subspaces * tier.bits for tier in plan.capacity.tiers]
    assert plan.tiers.num_tiers > 1
    assert bits == sorted(bits, reverse=True)
    assert counts[plan.tiers.members(0)].min() >= counts[plan.tiers.members(1)].max()
    assert max(mgqe.plan(2000, 16, "20%", counts=COUNTS, max_centroids=16).capacity.num_centroids) <= 16


def test_defaults_of_torch_do_not_matter():
    rows = gaussian(300, 8)
    counts = torch.arange(300)
    expected = mgqe.plan(300, 8, "60%", counts=counts, weight=rows)
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        found = mgqe.plan(300, 8, "60%", counts=counts, weight=rows)
        from_list = mgqe.plan(300, 8, "60%", counts=list(range(300)))
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert found == expected
    assert from_list.tiers == mgqe.plan(300, 8, "60%", counts=counts).tiers


def test_the_line_of_python_makes_the_same_layer():
    for counts in (COUNTS, None):
        plan = mgqe.plan(2000, 16, "8%", counts=counts)
        layer = eval(plan.python(), {"mgqe": mgqe, "counts": counts})
        assert (
            layer.freeze().tensor_chunks()[1]
            == mgqe.MGQEmbedding(2000, 16, **plan.arguments()).freeze().tensor_chunks()[1]
        )
    assert "2,000 ids" in str(plan)


# ---- budgets -----------------------------------------------------------------------------------------------


def test_what_a_budget_may_be():
    for budget in ("5%", " 5 % ", 0.05, 50, "50", np.int64(50), np.float32(0.05), "0.05"):
        assert budget_bytes(budget, 1000) == 50, budget
    for budget, words in [
        ("5 percent", "5 percent"),
        ("", "a budget is"),
        ("nan%", "between 0% and 100%"),
        ("0%", "between 0% and 100%"),
        ("120%", "between 0% and 100%"),
        (0, "0 bytes"),
        (-5, "-5 bytes"),
        (1.0, "no share"),
        (float("nan"), "no share"),
        (1000, "uncompressed it takes 1,000"),
        (0.0001, "is 0 bytes of 1,000"),
    ]:
        with pytest.raises(ValueError, match=words):
            budget_bytes(budget, 1000)
    for budget in (None, True, [5], b"5%"):
        with pytest.raises(TypeError, match='a budget is "5%"'):
            budget_bytes(budget, 1000)
        with pytest.raises(TypeError, match='a budget is "5%"'):
            mgqe.compress_table(None, budget)  # before the matrix is looked at


def test_bytes_go_where_they_gain_most():
    ladders = [[(10, 1.0), (20, 0.5), (40, 0.4)], [(10, 0.8), (15, 0.75), (30, 0.2)]]
    assert split_budget(ladders, 19) is None
    assert split_budget(ladders, 20) == [10, 10]
    assert split_budget(ladders, 30) == [20, 10]
    assert split_budget(ladders, 35) == [20, 15]
    assert split_budget(ladders, 50) == [20, 30]  # (15, 0.75) is passed over
    assert split_budget(ladders, 1000) == [40, 30]


def test_layers_take_a_budget():
    for made in (
        mgqe.MGQEmbedding(2000, 16, counts=COUNTS, budget="10%"),
        mgqe.MGQEmbeddingBag(2000, 16, counts=COUNTS, budget=12_800),
        mgqe.DPQEmbedding(2000, 16, budget=0.1),
        mgqe.DPQEmbeddingBag(2000, 16, budget="10%"),
        mgqe.MGQEmbedding.from_pretrained(gaussian(2000, 16), counts=COUNTS, budget="10%"),
    ):
        table = made.freeze()
        assert 6_400 < table.nbytes <= 12_800
    skewed = 1e9 / torch.arange(1, 20_001)  # the head's errors count so much that it gets more bits
    assert mgqe.MGQEmbedding(20_000, 16, counts=skewed, budget="10%").freeze().num_tiers > 1
    assert mgqe.DPQEmbedding(2000, 16, budget="5%").tiers.num_tiers == 1
    half = mgqe.DPQEmbedding(2000, 16, budget="20%", dtype=torch.float16)
    assert half.freeze().nbytes <= 12_800


def test_layers_refuse_what_a_budget_chooses():
    for more, words in [
        ({"num_centroids": 16}, "budget= chooses num_centroids: leave it out"),
        ({"capacity": "both", "centroid_dtype": "int8"}, "chooses capacity, centroid_dtype: leave them out"),
        ({"fractions": (0.5, 0.5)}, "chooses fractions"),
    ]:
        with pytest.raises(ValueError, match=words):
            mgqe.MGQEmbedding(2000, 16, counts=COUNTS, budget="10%", **more)
    with pytest.raises(ValueError, match="budget= chooses the tiers, by counts="):
        mgqe.MGQEmbedding(2000, 16, budget="10%", tiers=[2000])


@pytest.mark.parametrize(
    ("arguments", "more", "error", "words"),
    [
        ((2000, 16, 100), {}, ValueError, r"100 bytes is too small for 2,000 ids x 16: the least is \d"),
        ((2000, 16, 128_000), {}, ValueError, "uncompressed it takes 128,000"),
        ((1, 16, "5%"), {}, ValueError, "at least 2"),
        ((2000, 0, "5%"), {}, ValueError, "embedding_dim"),
        ((2000, 16, "5%"), {"counts": COUNTS[:5]}, ValueError, "counts has 5 entries, but num_embeddings is 2000"),
        ((2000, 16, "5%"), {"counts": -COUNTS}, ValueError, "not be negative"),
        ((2000, 16, "5%"), {"counts": COUNTS / 0.0}, ValueError, "must be finite"),
        ((2000, 16, "5%"), {"counts": ["many"] * 2000}, TypeError, "one number per id"),
        ((2000, 16, "5%"), {"max_tiers": 4}, ValueError, "1, 2 or 3"),
        ((2000, 16, "5%"), {"max_centroids": 1}, ValueError, "2 to 65,536"),
        ((2000, 16, "5%"), {"counts_power": -1}, ValueError, "counts_power"),
        ((2000, 16, "5%"), {"padding_idx": 2000}, ValueError, "padding_idx"),
    ],
)
def test_what_plan_refuses(arguments, more, error, words):
    with pytest.raises(error, match=words):
        mgqe.plan(*arguments, **more)


# ---- models ------------------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(3000, 16), nn.Embedding(2000, 16, padding_idx=0)
        self.day = nn.EmbeddingBag(7, 16)


@pytest.mark.parametrize("init", ["warmup", "from_weight"])
def test_one_budget_for_a_model(init):
    model = Model()
    before = sum(p.nbytes for p in model.parameters())
    report = mgqe.compress_(model, counts={"item": COUNTS}, budget="10%", init=init)
    assert report.compressed == ("user", "item")
    assert 0.09 * before < report.bytes_after <= before // 10
    assert {row.path: row.why for row in report.rows}["day"].startswith("left")
    files = {path: table.nbytes for path, table in mgqe.freeze_(model).items()}
    for row in report.rows:
        if row.compressed:  # rows fill whole bytes, so that a layer may leave some of what it was given
            most = files[row.path] + (1500 if init == "from_weight" else 4 * row.num_embeddings)
            assert files[row.path] < row.bytes_after < most


def test_rules_are_apart_from_the_budget():
    config = mgqe.CompressConfig(
        budget="10%", rules={"user": {"num_centroids": 4}, "item": {"budget": 9_000}, "day": None}
    )
    report = mgqe.compress_(Model(), config, counts={"item": COUNTS})
    rows = {row.path: row for row in report.rows}
    assert rows["user"].why == "3,000 ids x 8 of 4 (one tier: no counts)"
    assert 8_000 < rows["item"].bytes_after <= 9_000
    assert rows["day"].why == "left: rule 'day'"


def test_what_compress_refuses():
    for settings_, words in [
        ({"budget": "0.5%"}, "too few for 3 tables of 320,448: the least is"),
        ({"budget": "100%"}, "more than nothing and less than all"),
        ({"budget": 10**6}, "uncompressed it takes 320,448"),
        ({"budget": "10%", "counts": {"item": COUNTS[:5]}}, "item: counts has 5 entries"),
        ({"budget": "10%", "counts": {"item": mgqe.Tiers.from_sizes((2000,))}}, "item: a budget chooses the tiers"),
        ({"config": mgqe.CompressConfig(num_centroids=8), "budget": "10%"}, "budget= chooses num_centroids"),
    ]:
        model = Model()
        with pytest.raises(ValueError, match=words):
            mgqe.compress_(model, **settings_)
        assert type(model.user) is nn.Embedding
    with pytest.raises(ValueError, match="a budget is"):
        mgqe.CompressConfig(budget="small")
    model = Model()
    nn.init.constant_(model.user.weight, torch.nan)
    with pytest.raises(ValueError, match="user: 3000 rows of weight hold NaN"):
        mgqe.compress_(model, budget="10%", init="from_weight")


def test_ids_that_are_nearly_in_order_get_as_good_a_plan():
    """Two neighbours out of order: the tiers are ranges all the same, for which a table holds no map."""
    counts = (1e7 / torch.arange(1, 20_001)).long()
    swapped = counts.clone()
    swapped[:2] = counts[:2].flip(0)
    ordered, nearly = (mgqe.plan(20_000, 16, "10%", counts=c) for c in (counts, swapped))
    assert nearly.loss == pytest.approx(ordered.loss)
    assert nearly.nbytes == ordered.nbytes


def test_a_table_of_zeros_is_planned_from_its_counts():
    counts = (1e6 / torch.arange(1, 5_001)).long()
    layer = mgqe.MGQEmbedding.from_pretrained(torch.zeros(5_000, 16), counts=counts, budget="10%")
    assert layer.freeze().to_dense().abs().max() == 0
    model = nn.ModuleDict({"item": nn.Embedding.from_pretrained(torch.zeros(5_000, 16), freeze=False)})
    assert mgqe.compress_(model, counts={"item": counts}, budget="10%", init="from_weight").rows[0].compressed


def test_a_table_that_is_too_small_for_a_rule_with_a_budget_is_left():
    model = nn.ModuleDict({"item": nn.Embedding(5_000, 16), "day": nn.Embedding(7, 16)})
    report = mgqe.compress_(model, mgqe.CompressConfig(rules={"*": {"budget": "10%"}}))
    assert [row.compressed for row in report.rows] == [True, False]


def test_the_line_of_python_has_the_padding():
    counts = (1e6 / torch.arange(1, 5_001)).long()
    plan = mgqe.plan(5_000, 16, 25_200, counts=counts, padding_idx=0)
    layer = eval(plan.python(), {"mgqe": mgqe, "counts": counts})
    assert layer.padding_idx == 0
