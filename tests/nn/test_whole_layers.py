"""Layers whose plan has column scales, as large tables get: training and freezing as other layers do."""

from __future__ import annotations

import pytest
import torch

import mgqe
from mgqe.codec.layout import BY_COLUMNS

N, DIM = 3000, 8
COUNTS = 2000 // torch.arange(1, N + 1)
IDS = torch.arange(N)


@pytest.fixture(autouse=True)
def small_tables_are_large(monkeypatch):
    monkeypatch.setattr("mgqe.codec.planning.mixed.WHOLE_ROWS", 1)


def planned(budget, cls=mgqe.MGQEmbedding, **options):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(N, DIM, generator=generator) * torch.linspace(2.0, 0.5, DIM)
    rows = rows @ torch.randn(DIM, DIM, generator=generator)
    layer = cls(N, DIM, _weight=rows, counts=COUNTS, budget=budget, **options)
    layer.start_quantizing()
    assert layer.capacity.matrix_dtype == BY_COLUMNS
    return layer


def same_bits(layer) -> None:
    layer.eval()
    with torch.no_grad():
        assert torch.equal(layer(IDS), layer.freeze().lookup(IDS))


def step(layer) -> None:
    layer.train()
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    (layer(IDS).square().mean() + mgqe.quantization_loss(layer)).backward()
    optimizer.step()


def test_centroids_train_and_freeze_to_the_bits_of_the_forward_pass():
    layer = planned("9%")
    assert not layer.capacity.has_levels
    before = layer.freeze()
    same_bits(layer)
    step(layer)
    same_bits(layer)
    assert not torch.equal(layer.freeze().snapshot.centroids[0], before.snapshot.centroids[0])


def test_levels_stay_shared():
    layer = planned("25%")
    assert layer.capacity.has_levels
    step(layer)
    same_bits(layer)
    book, bits = layer.freeze().snapshot.centroids[0], layer.capacity.tiers[0].code_bits
    pieces = layer.capacity.pieces_of_codebook(0)
    of_bits = {}
    for piece, b in zip(pieces, bits, strict=True):
        centroids = book[piece.entry : piece.entry + (1 << b)].tolist()
        assert centroids == sorted(of_bits.setdefault(b, centroids))
    assert layer.revive() is None


def test_rows_that_are_alike_in_all_directions_are_not_turned():
    rows = torch.randn(N, DIM, generator=torch.Generator().manual_seed(0))
    layer = mgqe.DPQEmbedding(N, DIM, _weight=rows, budget="25%")
    layer.start_quantizing()
    table = layer.freeze()
    assert torch.equal(table.snapshot.transform.matrix, torch.eye(DIM, dtype=torch.int8))
    same_bits(layer)
    queries = rows[:5]
    torch.testing.assert_close(table.topk(queries, 3)[0], (queries @ table.to_dense().T).topk(3)[0], atol=1e-4, rtol=0)
    step(layer)
    same_bits(layer)


def test_levels_lose_little_of_rows():
    layer = planned("25%")
    rows = layer.raw_weight.detach()
    lost = (layer.freeze().to_dense() - rows).square().sum() / (rows - rows.mean(0)).square().sum()
    assert lost < 0.01


@pytest.mark.parametrize("budget", ["9%", "25%"])
def test_a_checkpoint_holds_the_plan(budget, tmp_path):
    layer = planned(budget)
    step(layer)
    other = mgqe.MGQEmbedding(N, DIM, counts=COUNTS, budget=budget)
    other.load_state_dict(layer.state_dict())
    assert other.capacity == layer.capacity
    assert other.freeze().equal(layer.freeze())
    mgqe.save(layer.freeze(), tmp_path / "table")
    assert torch.equal(mgqe.load(tmp_path / "table").lookup(IDS), other.eval()(IDS))


def test_rows_are_added_to_the_table():
    """A row that is a decoded one gets its codes again."""
    table = planned("25%").freeze()
    vectors = table.lookup(torch.tensor([3, 2999]))
    table.append(vectors, tier=0)
    torch.testing.assert_close(table.lookup(torch.tensor([N, N + 1])), vectors, atol=0.2, rtol=0)
    torch.testing.assert_close(table.lookup(torch.tensor([N]))[0], vectors[0], atol=1e-5, rtol=0)


def test_top_k_is_exact():
    table = planned("9%").freeze()
    queries = torch.randn(5, DIM, generator=torch.Generator().manual_seed(1))
    scores, ids = table.topk(queries, 10)
    exact = queries @ table.to_dense().T
    torch.testing.assert_close(scores, exact.topk(10).values, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(exact.gather(1, ids), scores, atol=1e-4, rtol=1e-5)
