"""plan with weight=: the plan that a layer with this budget makes of these rows, quickly, and every error."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import mgqe
from mgqe.codec.planning import mixed
from mgqe.codec.planning.head_tail import head_and_tail

N, D = 3000, 16


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ROWS = torch.randn(N, D, generator=seeded(0)) * torch.arange(1, D + 1) ** -0.7 + 0.3
COUNTS = (20_000 / torch.arange(1, N + 1)).long()[torch.randperm(N, generator=seeded(1))]
QUERIES = torch.randn(200, D, generator=seeded(2)) * torch.arange(D, 0, -1) ** -2.0


def planned(budget="5%", weight=ROWS, **given) -> mgqe.RowsPlan:
    plan = mgqe.plan(N, D, budget, weight=weight, **given)
    assert isinstance(plan, mgqe.RowsPlan)
    return plan


GIVEN = {
    "rows alone": {},
    "counts": {"counts": COUNTS},
    "queries": {"queries": QUERIES},
    "counts and queries": {"counts": COUNTS, "queries": QUERIES},
    "padding": {"counts": COUNTS, "padding_idx": 7},
    "half precision": {"counts": COUNTS, "weight": ROWS.half()},
    "a few bytes": {"counts": COUNTS, "budget": 4_000},
    "many bytes": {"counts": COUNTS, "budget": 0.2},
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_layer_with_this_budget_makes_the_same_table(tmp_path, name):
    given = GIVEN[name]
    plan = planned(**given)
    weight, padding = given.get("weight", ROWS), given.get("padding_idx")
    assert plan.nbytes <= plan.budget
    assert plan.full_nbytes == weight.nbytes
    names = {"mgqe": mgqe, "weight": weight, "counts": COUNTS, "queries": QUERIES, **given}
    by_text = eval(plan.python(), names)
    by_arguments = mgqe.MGQEmbedding.from_pretrained(weight, padding_idx=padding, **plan.arguments())
    for layer in (by_text, by_arguments):
        table = layer.freeze()
        assert layer.capacity == plan.capacity
        assert layer.tiers == plan.tiers
        assert table.padding_idx == plan.padding_idx == padding
        assert mgqe.save(table, tmp_path / "table.safetensors") == plan.nbytes


def test_compress_makes_the_same_table():
    model = torch.nn.ModuleDict({"item": torch.nn.Embedding.from_pretrained(ROWS, freeze=False)})
    mgqe.compress_(model, counts={"item": COUNTS}, budget=12_000, init="from_weight", queries={"item": QUERIES})
    assert model["item"].capacity == planned(12_000, counts=COUNTS, queries=QUERIES).capacity


def test_the_line_of_python():
    assert planned(9_600).python() == "mgqe.MGQEmbedding.from_pretrained(weight, budget=9_600)"
    assert planned(9_600, counts=COUNTS, queries=QUERIES, padding_idx=-N).python() == (
        "mgqe.MGQEmbedding.from_pretrained(weight, padding_idx=0, counts=counts, queries=queries, budget=9_600)"
    )


def test_queries_decide_where_bits_go():
    """Only one dimension is ever multiplied with anything but 0.1: its coordinate gets the most bits of a dimension."""
    queries = torch.full((100, D), 0.1)
    queries[:, -1] = torch.linspace(-3, 3, 100)
    blind, told = planned(), planned(queries=queries)
    assert (blind.metric, told.metric) == ("identity", "queries")
    assert told.capacity != blind.capacity
    lost = []
    for plan in (blind, told):
        errors = mgqe.MGQEmbedding.from_pretrained(ROWS, **plan.arguments()).freeze().to_dense() - ROWS
        lost.append(float(errors[:, -1].square().mean()))
    assert lost[1] < 0.2 * lost[0]


def test_fewer_queries_than_dimensions_are_enough():
    assert planned(queries=QUERIES[:2]).metric == "queries"


def test_tiers_that_were_compared():
    plan = planned(counts=COUNTS)
    (two, one) = plan.compared
    assert (two[0], one[0]) == ((300, 2700), (3000,))
    assert plan.loss == min(two[1], one[1])
    assert plan.tiers.sizes == min(plan.compared, key=lambda pair: pair[1])[0]
    assert len(plan.errors) == plan.tiers.num_tiers
    assert planned().compared == (((3000,), planned().loss),)
    few = mgqe.plan(200, D, 1_300, counts=COUNTS[:200], weight=ROWS[:200])
    assert [sizes for sizes, _ in few.compared] == [(200,)]  # codebooks of two tiers do not fit


@pytest.mark.parametrize("budget", [4_000, "5%", "20%"])
def test_head_and_tail_lose_about_what_is_predicted(budget):
    plan = planned(budget, counts=COUNTS)
    table = mgqe.MGQEmbedding.from_pretrained(ROWS, **plan.arguments()).freeze()
    lost = (table.to_dense() - ROWS).square().sum(1)
    squares = (ROWS - ROWS.mean(0)).square().sum(1)
    head = torch.zeros(N, dtype=torch.bool)
    head[COUNTS.argsort(descending=True, stable=True)[: N // 10]] = True
    measured = [float(lost[group].sum() / squares[group].sum()) for group in (head, ~head)]
    assert plan.head_and_tail == pytest.approx(measured, rel=0.25)
    assert plan.head_and_tail[0] <= 1.05 * plan.head_and_tail[1]
    assert planned(budget).head_and_tail is None


def test_head_and_tail_by_hand():
    plan = SimpleNamespace(
        tiers=mgqe.Tiers.from_sizes((10,)),
        axes=SimpleNamespace(coordinates=lambda rows: rows),
        errors=(0.1,),
        choice=SimpleNamespace(counts_power=0.0),
    )
    rows, counts = torch.ones(10, 1), torch.ones(10)
    rows[3], counts[3] = 2.0, 5.0
    # The mean square is 1.3, of which each row loses .13: the frequent one of 4, the nine others of 1.
    assert head_and_tail(plan, rows, counts) == pytest.approx((0.0325, 0.13))
    rows[8] = torch.nan
    # Without the padding, the mean square is 12 / 9.
    assert head_and_tail(plan, rows, counts, padding_idx=8) == pytest.approx((1.2 / 9 / 4, 1.2 / 9))


def test_no_centroids_are_fitted(monkeypatch):
    def refuse(*_):
        raise AssertionError("centroids were fitted")

    monkeypatch.setattr(mixed, "fit_codebooks", refuse)
    planned(counts=COUNTS)


def test_the_text_says_bits_and_coordinates():
    plan = planned(counts=COUNTS, budget="10%")
    bits = [sum(tier.code_bits) for tier in plan.capacity.tiers]
    assert str(plan).startswith(f"300 ids x {bits[0]} bits; 2,700 ids x {bits[1]} bits, separate codebooks")
    assert f", {plan.capacity.num_coordinates} of 16 coordinates, metric: identity, look-up " in str(plan)


def test_the_padding_may_hold_nan():
    rows = ROWS.clone()
    rows[7] = torch.nan
    assert planned(weight=rows, padding_idx=7).capacity == planned(padding_idx=7).capacity


NAN_ROW = ROWS.clone()
NAN_ROW[5] = torch.nan


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"weight": NAN_ROW}, ValueError, "1 rows of weight hold NaN or infinity, the first is row 5"),
        ({"weight": ROWS / 0}, ValueError, "3000 rows of weight hold NaN or infinity, the first is row 0"),
        ({"weight": torch.zeros(N, D)}, ValueError, "all zero: give a trained table, or leave weight out"),
        ({"weight": ROWS[:5]}, ValueError, r"weight must have shape \(3000, 16\), got \(5, 16\)"),
        ({"weight": ROWS.T}, ValueError, r"weight must have shape \(3000, 16\), got \(16, 3000\)"),
        ({"weight": ROWS.long()}, TypeError, "floating-point tensor of rows, got torch.int64"),
        ({"weight": ROWS.numpy()}, TypeError, "floating-point tensor of rows, got ndarray"),
        ({"weight": ROWS.to_sparse()}, TypeError, "weight must be a dense tensor"),
        ({"weight": ROWS.to("meta")}, TypeError, "the rows of weight are on the meta device"),
        ({"weight": None, "queries": QUERIES}, ValueError, "give weight .* too, or leave queries out"),
        ({"queries": QUERIES[:, :8]}, ValueError, r"shape \(n, 16\), as many dimensions as rows, got \(n, 8\)"),
        ({"queries": QUERIES[:0]}, ValueError, "n and d at least 1"),
        ({"queries": QUERIES / 0}, ValueError, "query 0 holds NaN or infinity"),
        ({"queries": torch.zeros(5, D)}, ValueError, "all queries are zeros"),
        ({"budget": 100}, ValueError, r"100 bytes is too small for 3,000 ids x 16: the least is \d[\d,]* bytes"),
        ({"budget": 192_000}, ValueError, "uncompressed it takes 192,000"),
        ({"weight": ROWS.half(), "budget": 96_000}, ValueError, "uncompressed it takes 96,000"),
        ({"counts": COUNTS[:5]}, ValueError, "counts has 5 entries, but num_embeddings is 3000"),
        ({"padding_idx": N}, ValueError, "padding_idx"),
        ({"max_tiers": 1, "counts_power": 1}, ValueError, "max_tiers, counts_power can be given only without weight"),
    ],
)
def test_what_is_refused(given, error, words):
    with pytest.raises(error, match=words):
        mgqe.plan(N, D, **{"budget": "5%", "weight": ROWS, **given})
