"""Tiers by the lengths of rows: the sizes by hand and by brute force, and tables without counts that need them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import mgqe
from mgqe.codec.planning.lengths import sizes_by_length

D = 32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lost(weight: torch.Tensor, table: mgqe.CompactTable, rows: slice = slice(None)) -> float:
    """Share of the squares of some rows, less the mean of all, that are lost."""
    decoded = table.lookup(torch.arange(len(weight)))
    return float((decoded - weight)[rows].square().sum() / (weight - weight.mean(0))[rows].square().sum())


def test_sizes_by_hand():
    assert sizes_by_length(np.array([100.0, 1, 1, 1, 1]), 3) == [(5,), (1, 4)]
    assert sizes_by_length(np.array([1.0, 4, 4, 100, 100, 1, 1, 1]), 4) == [(8,), (2, 6), (2, 2, 4)]
    assert sizes_by_length(np.ones(5), 4) == [(5,)]
    assert sizes_by_length(np.zeros(4), 4) == [(4,)]  # rows alike
    assert sizes_by_length(np.array([7.0]), 4) == [(1,)]


def test_sizes_are_those_that_need_fewest_bits():
    squares = np.exp(2 * np.random.default_rng(0).standard_normal((50, 9)))

    def bits(rows: np.ndarray, sizes: tuple[int, ...]) -> float:
        parts = np.split(np.sort(rows)[::-1], np.cumsum(sizes)[:-1])
        return sum(len(part) * math.log(part.mean()) for part in parts)

    for rows in squares:
        for sizes in sizes_by_length(rows, 4)[1:]:
            cuts = itertools.combinations(range(1, 9), len(sizes) - 1)
            least = min(bits(rows, tuple(np.diff([0, *cut, 9]))) for cut in cuts)
            assert sum(sizes) == 9
            assert bits(rows, sizes) <= least + 0.1  # rows are counted in cells of 1 / 256 of the range of logarithms


def test_rows_of_one_length_stay_together():
    squares = np.random.default_rng(0).chisquare(64, 5000)  # Gaussian rows
    assert sizes_by_length(squares, 4) == [(5000,)]
    squares[7] *= 900  # and a row 30 times as long
    assert sizes_by_length(squares, 4) == [(5000,), (1, 4999)]


@pytest.mark.parametrize("times", [30, 100, 1e6])
@pytest.mark.parametrize("budget", ["20%", "5%"])
def test_a_long_row_costs_the_others_nothing(budget, times):
    weight = torch.randn(5000, D, generator=generator()) / torch.arange(1, D + 1) ** 0.5
    others = slice(1, None)
    alone = lost(weight, mgqe.compress_table(weight, budget, progress=False), others)
    weight[0] *= times
    table = mgqe.compress_table(weight, budget, progress=False)
    assert lost(weight, table, others) < 1.15 * alone + 2e-4
    assert lost(weight, table, slice(1)) < 1e-3


@pytest.fixture(scope="module")
def mixture():
    """Rows as a model leaves them: a few are trained and long, the others are about as they began."""
    weight = torch.rand(20_000, D, generator=generator(1)) * 0.04 - 0.02
    trained = torch.randperm(20_000, generator=generator(2))[:1000]
    weight[trained] += torch.randn(1000, D, generator=generator(3)) / torch.arange(1, D + 1) ** 0.3 * 0.3
    return weight


@pytest.mark.parametrize("budget", ["20%", "10%", "5%"])
def test_the_expected_loss_is_what_is_lost(mixture, budget):
    plan = mgqe.plan(*mixture.shape, budget, weight=mixture)
    assert plan.tiers.num_tiers > 1
    assert abs(plan.tiers.sizes[0] - 1000) < 100
    table = mgqe.compress_table(mixture, budget, progress=False)
    assert tuple(tier.ids for tier in table.config.tiers) == plan.tiers.sizes
    assert lost(mixture, table) == pytest.approx(plan.loss, rel=0.25, abs=3e-4)
    one_tier = mgqe.DPQEmbedding.from_pretrained(mixture, budget=budget).freeze()
    assert lost(mixture, table) < 0.4 * lost(mixture, one_tier)


def test_a_trained_model_without_counts(mixture):
    model = torch.nn.ModuleDict({"item": torch.nn.Embedding.from_pretrained(mixture.clone(), freeze=False)})
    report = mgqe.compress_(model, budget="10%", init="from_weight", progress=False)
    assert "tiers by length" in str(report)
    layer = model["item"]
    assert isinstance(layer, mgqe.MGQEmbedding)
    assert layer.tiers.num_tiers > 1
    ids = torch.arange(500)
    expected = model.eval()["item"](ids)
    again = torch.nn.ModuleDict({"item": mgqe.MGQEmbedding(20_000, D, budget="10%")})
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()["item"](ids), expected)
    mgqe.freeze_(model)
    assert torch.equal(model["item"](ids), expected)


def test_a_layer_without_counts_finds_its_tiers_when_its_warm_up_ends(mixture):
    layer = mgqe.MGQEmbedding(20_000, D, budget="10%", _weight=mixture.clone(), padding_idx=3)
    assert layer.tiers.num_tiers == 1
    layer.start_quantizing()
    assert layer.tiers.num_tiers > 1
    assert layer.eval()(torch.tensor([3])).eq(0).all()


def test_numbers_beyond_the_squares_of_float32(mixture):
    for scale in (1e25, 1e-25):
        plan = mgqe.plan(*mixture.shape, "10%", weight=mixture * scale)
        assert plan.tiers.num_tiers > 1
