"""prefer_tail: every id counts alike in a plan; refused where nothing says which ids are rare, and passed on."""

from __future__ import annotations

import pickle

import pytest
import torch

import mgqe
from mgqe import CompressConfig, Quantization
from mgqe.codec.metric import Metric
from mgqe.codec.planning.problem import Candidate, TableProblem, candidates
from mgqe.nn.budget_planner import BudgetPlanner

N, DIM = 4_000, 16
COUNTS = 1_000_000 // torch.arange(1, N + 1) ** 1.5
GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(N, DIM, generator=GENERATOR) @ torch.diag(torch.linspace(1, 0.2, DIM))


def planned(prefer_tail: bool) -> mgqe.RowsPlan:
    plan = mgqe.plan(N, DIM, "6%", counts=COUNTS, weight=ROWS, prefer_tail=prefer_tail)
    assert isinstance(plan, mgqe.RowsPlan)
    return plan


def measured(table: mgqe.CompactTable) -> tuple[float, float]:
    """Shares of the squares that are lost of the most frequent tenth of the ids, and of the others."""
    lost, squares = (table.to_dense() - ROWS).square().sum(1), (ROWS - ROWS.mean(0)).square().sum(1)
    head = N // 10  # ids are in frequency order
    return float(lost[:head].sum() / squares[:head].sum()), float(lost[head:].sum() / squares[head:].sum())


def test_the_tail_keeps_more_and_the_head_less():
    """By prediction and in the table itself, in no more bytes."""
    (head, tail), (other_head, other_tail) = (planned(tail).head_and_tail for tail in (False, True))
    assert tail > 1.2 * head  # by default
    assert other_tail < 0.95 * tail
    assert other_head > 1.2 * head
    assert other_head == pytest.approx(other_tail, rel=0.2)  # rows are alike, whatever their counts
    tables = [
        mgqe.compress_table(ROWS, "6%", counts=COUNTS, prefer_tail=prefer_tail, progress=False)
        for prefer_tail in (False, True)
    ]
    default, alike = map(measured, tables)
    assert alike[0] > 1.2 * default[0]
    assert alike[1] < 0.95 * default[1]
    assert max(table.nbytes for table in tables) <= 0.06 * 4 * N * DIM


def test_it_is_the_plan_without_counts():
    """Rows alike count alike: what is planned is what nobody's counts would give, where one tier is as good."""
    alike = planned(True)
    assert alike.python() == (
        "mgqe.MGQEmbedding.from_pretrained(weight, counts=counts, budget=15_360, prefer_tail=True)"
    )
    by_text = eval(alike.python(), {"mgqe": mgqe, "weight": ROWS, "counts": COUNTS})
    by_arguments = mgqe.MGQEmbedding.from_pretrained(ROWS, **alike.arguments())
    for layer in (by_text, by_arguments):
        layer.start_quantizing()
        assert layer.capacity == alike.capacity
    one_tier = dict(alike.compared)[(N,)]
    without = mgqe.plan(N, DIM, "6%", weight=ROWS)
    assert one_tier == pytest.approx(without.loss, rel=1e-9)


def test_candidates_of_tables_that_prefer_the_tail_weigh_all_ids_alike():
    def problem(prefer_tail: bool) -> TableProblem:
        return TableProblem(ROWS, COUNTS, {}, prefer_tail=prefer_tail)

    listed = candidates([problem(True)])
    assert [(each.counts_power, each.fractions) for each in listed] == [
        (0.0, (0.1, 0.9)),
        (0.0, (1.0,)),
        (0.0, (0.1, 0.3, 0.6)),
        (0.0, (0.02, 0.08, 0.3, 0.6)),
    ]
    both = candidates([problem(True), problem(False)])
    assert both == candidates([problem(False)])  # the other table's are tried
    candidate = Candidate(0.75, (0.1, 0.9), "identity")
    assert [problem(tail).choice(candidate).counts_power for tail in (True, False)] == [0.0, 0.75]


def test_whatever_spends_a_budget_is_told():
    alike = planned(True).capacity
    assert alike != planned(False).capacity
    layer = mgqe.MGQEmbedding.from_pretrained(ROWS, counts=COUNTS, budget="6%", prefer_tail=True)
    layer.start_quantizing()
    assert layer.capacity == alike
    config = CompressConfig(budget="6%", init="from_weight", prefer_tail=True)
    models = [torch.nn.ModuleDict({"item": torch.nn.Embedding.from_pretrained(ROWS, freeze=False)}) for _ in range(3)]
    mgqe.compress_(models[0], config, counts={"item": COUNTS}, progress=False)
    options = {"budget": "6%", "init": "from_weight", "prefer_tail": True}
    mgqe.compress_(models[1], counts={"item": COUNTS}, progress=False, **options)
    assert models[0]["item"].capacity == models[1]["item"].capacity
    rules = {"item": {"prefer_tail": False}}
    mgqe.compress_(models[2], CompressConfig(**options, rules=rules), counts={"item": COUNTS}, progress=False)
    assert models[2]["item"].capacity != models[0]["item"].capacity


def test_an_even_shape_by_counts_lets_ids_count_alike():
    shapes = [
        mgqe.MGQEmbedding(N, DIM, counts=COUNTS, budget="6%", quantizer="sx", prefer_tail=tail).tiers.sizes
        for tail in (False, True)
    ]
    alike = mgqe.plan(N, DIM, "6%", counts=COUNTS, counts_power=0.0).tiers.sizes
    assert shapes[1] == alike
    assert shapes[0] != alike


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"prefer_tail=True lets rare ids count .* give counts \(N,\) too"):
        mgqe.plan(N, DIM, "6%", weight=ROWS, prefer_tail=True)
    with pytest.raises(ValueError, match=r"give counts \(N,\) too"):
        mgqe.compress_table(ROWS, "6%", prefer_tail=True)
    with pytest.raises(ValueError, match=r"there are no rows: give weight .* or counts_power=0"):
        mgqe.plan(N, DIM, "6%", counts=COUNTS, prefer_tail=True)
    with pytest.raises(ValueError, match="prefer_tail=True says how a table is planned, but num_centroids says"):
        Quantization(num_centroids=16, prefer_tail=True)
    with pytest.raises(TypeError, match="DPQEmbedding has one tier and takes no prefer_tail"):
        mgqe.DPQEmbedding(N, DIM, budget="6%", prefer_tail=True)


def test_a_layer_saved_before_there_was_such_a_preference_loads():
    for each in (Quantization(budget="5%"), BudgetPlanner(9000, None, None)):
        old = dict(each.__dict__)
        del old["prefer_tail"]
        again = object.__new__(type(each))
        again.__dict__.update(old)
        again = pickle.loads(pickle.dumps(again))
        assert again.prefer_tail is False
    assert BudgetPlanner(9000, None, None).problem((9, 4), lambda ids: ids, Metric.identity(4)).prefer_tail is False
