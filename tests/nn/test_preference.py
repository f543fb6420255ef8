"""prefer= in configurations: one of two, refused where a shape is given, and passed on to whatever spends a budget."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

import mgqe
from mgqe import CompressConfig, Quantization
from mgqe.nn.budget_planner import BudgetPlanner

N, DIM = 20_000, 16
COUNTS = 1_000_000 // torch.arange(1, N + 1)
GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(N, DIM, generator=GENERATOR) @ torch.randn(DIM, DIM, generator=GENERATOR)


def best(prefer: str):
    return mgqe.plan(N, DIM, "12%", counts=COUNTS, weight=ROWS, prefer=prefer).capacity


def test_it_is_one_of_two():
    assert Quantization().prefer == "speed"
    for make in (Quantization, CompressConfig, lambda prefer: mgqe.MGQEmbedding(N, 4, counts=COUNTS, prefer=prefer)):
        with pytest.raises(ValueError, match=r"prefer must be one of \('speed', 'size'\), got 'fast'"):
            make(prefer="fast")
    with pytest.raises(ValueError, match=r"prefer must be one of"):
        CompressConfig(rules={"item": {"prefer": "fast"}})


def test_a_shape_that_is_given_leaves_nothing_to_prefer():
    message = "prefer='size' says how a table is planned, but num_subspaces says its shape"
    with pytest.raises(ValueError, match=message):
        Quantization(num_subspaces=4, prefer="size")
    config = CompressConfig(budget="5%", prefer="size", rules={"day": {"num_centroids": 4}, "item": {"budget": 9000}})
    assert config.for_table(("day",)).prefer == "speed"  # as good as none
    assert config.for_table(("item",)).prefer == config.for_table(("user",)).prefer == "size"


def test_an_even_plan_has_nothing_to_prefer():
    layer = mgqe.MGQEmbedding(N, DIM, counts=COUNTS, budget="5%", prefer="size", quantizer="sx")
    assert layer.planner is None
    assert layer.freeze().nbytes <= 0.05 * 4 * N * DIM


@pytest.mark.parametrize("prefer", ["speed", "size"])
def test_what_spends_a_budget_is_told(prefer):
    assert best("speed") != best("size")
    layer = mgqe.MGQEmbedding.from_pretrained(ROWS, counts=COUNTS, budget="12%", prefer=prefer)
    layer.start_quantizing()
    assert layer.capacity == best(prefer)
    model = torch.nn.ModuleDict({"item": torch.nn.Embedding.from_pretrained(ROWS, freeze=False)})
    report = mgqe.compress_(model, counts={"item": COUNTS}, budget="12%", prefer=prefer, init="from_weight")
    (row,) = report.rows
    assert row.lookup_share == pytest.approx(
        mgqe.plan(N, DIM, "12%", counts=COUNTS, weight=ROWS, prefer=prefer).lookup_share, rel=0.2
    )  # the default candidate, whose tiers are by prediction, too
    assert f" {row.lookup_share:.1f}  " in str(report)
    assert str(report).endswith("* share of nn.Embedding's time, estimated")


def test_without_a_budget_the_default_bytes_are_spent_so():
    layers = [mgqe.MGQEmbedding.from_pretrained(ROWS, counts=COUNTS, prefer=prefer) for prefer in ("speed", "size")]
    for layer in layers:
        layer.start_quantizing()
    assert layers[0].capacity != layers[1].capacity


def test_a_rule_may_prefer_something_else():
    model = torch.nn.ModuleDict({name: torch.nn.Embedding.from_pretrained(ROWS, freeze=False) for name in "ab"})
    config = CompressConfig(budget="12%", init="from_weight", rules={"b": {"prefer": "size"}})
    mgqe.compress_(model, config, counts={"a": COUNTS, "b": COUNTS})
    assert model["a"].quantizer.is_planned
    assert model["a"].capacity != model["b"].capacity


def test_a_layer_saved_before_there_was_a_preference_loads():
    config, planner = Quantization(budget="5%"), BudgetPlanner(9000, None, None)
    for each in (config, planner):
        old = dict(each.__dict__)
        del old["prefer"]
        again = object.__new__(type(each))
        again.__dict__.update(old)
        again = pickle.loads(pickle.dumps(again))
        assert again.prefer == "speed"
        assert dataclasses.replace(again) == each or type(each) is BudgetPlanner
