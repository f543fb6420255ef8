"""LightGCN: its graph and propagation against hand-worked values and dense matrices, and whole runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recsys_data import tiny_config, write_tiny
from torch import Tensor, nn

import mgqe
from mgqe.codec.planning import problem
from mgqe.collection import Collection
from mgqe.recsys.models.lightgcn import LightGCN, Propagate, normalised_adjacency
from mgqe.recsys.models.mf import MF
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.artifacts import load_run
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.loop import EpochReport
from mgqe.recsys.train.run import full_model, train_run
from mgqe.recsys.train.tuned import tuned_settings

# User 0 has items 0 and 1, user 1 has item 1: degrees 2, 1 and 1, 2, 0.
USERS, ITEMS = torch.tensor([0, 1, 0]), torch.tensor([1, 1, 0])


def model(num_layers: int, dropout: float = 0.0) -> LightGCN:
    rows = MF(nn.Embedding(2, 1), nn.Embedding(3, 1), dropout)
    rows.user.weight.data.copy_(torch.tensor([[1.0], [2.0]]))
    rows.item.weight.data.copy_(torch.tensor([[4.0], [8.0], [3.0]]))
    return LightGCN(rows, normalised_adjacency(USERS, ITEMS, 2, 3), num_layers)


def test_the_graph_of_two_users_and_three_items() -> None:
    half = 0.5**0.5  # 1 / sqrt(2 * 1)
    expected = torch.tensor([[half, 0.5, 0.0], [0.0, half, 0.0]])
    adjacency = normalised_adjacency(USERS, ITEMS, 2, 3).to_dense()
    torch.testing.assert_close(adjacency[:2, 2:], expected)
    torch.testing.assert_close(adjacency[2:, :2], expected.T)
    assert not adjacency[:2, :2].any()
    assert not adjacency[2:, 2:].any()


def test_one_layer_by_hand() -> None:
    half = 0.5**0.5
    users, items = model(num_layers=1).vectors()
    # The layer gives users 4 half + 8 / 2 and 8 half, items 1 half, 1 / 2 + 2 half, and the one without users nothing.
    expected = [[(1 + 4 * half + 4) / 2], [(2 + 8 * half) / 2]]
    torch.testing.assert_close(users, torch.tensor(expected))
    torch.testing.assert_close(items, torch.tensor([[(4 + half) / 2], [(8 + 0.5 + 2 * half) / 2], [1.5]]))


def test_no_layer_is_matrix_factorisation() -> None:
    plain = model(num_layers=0)
    users, items = plain.vectors()
    assert torch.equal(users, plain.user.weight)
    assert torch.equal(items, plain.item.weight)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, int]:
    num_users, num_items = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    cells = st.integers(0, num_users * num_items - 1)
    chosen = torch.tensor(draw(st.lists(cells, min_size=1, unique=True)))
    return chosen // num_items, chosen % num_items, num_users, num_items


@given(graphs(), st.integers(0, 4))
def test_propagation_and_its_gradient_are_those_of_dense_powers(graph: tuple[Tensor, Tensor, int, int], layers: int):
    users, items, num_users, num_items = graph
    joined = torch.zeros(num_users + num_items, num_users + num_items)
    joined[users, items + num_users] = joined[items + num_users, users] = 1.0
    root = joined.sum(dim=1).clamp(min=1).rsqrt()
    dense = root[:, None] * joined * root
    mean = torch.stack([torch.linalg.matrix_power(dense, k) for k in range(layers + 1)]).mean(dim=0)
    rows = torch.randn(len(dense), 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.arange(3.0 * len(dense)).reshape(-1, 3)
    propagated = Propagate.apply(rows, normalised_adjacency(*graph), layers)
    torch.testing.assert_close(propagated, mean @ rows)
    (propagated * weights).sum().backward()
    torch.testing.assert_close(rows.grad, mean @ weights)


def test_what_is_served_scores_as_what_is_trained() -> None:
    trained = model(num_layers=3, dropout=0.5).eval()
    users, items = torch.tensor([0, 1]), torch.tensor([[0, 1, 2]] * 2)
    expected = trained.propagated()(users, items)
    served = trained.served()
    assert served.dropout.p == 0.5
    assert torch.equal(served(users, items), expected)
    assert served.user is trained.user


def test_the_graph_moves_with_the_rows_and_is_not_saved() -> None:
    trained = model(num_layers=2)
    assert trained.state_dict().keys() == {"user.weight", "item.weight"}
    assert all(vectors.dtype == torch.float64 for vectors in trained.double().vectors())
    meta = model(num_layers=2).to("meta")
    assert meta.adjacency.is_meta


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    data = write_tiny(tmp_path_factory.mktemp("data"))
    return tiny_config(data, model="lightgcn", loss="bpr", embedding="full", dim=16, graph_layers=2)


@pytest.mark.parametrize("loss", ["bce", "bpr", "softmax", "ce"])
def test_a_loss_is_that_of_factorisation_on_propagated_rows(config: TrainConfig, loss: str) -> None:
    task = RunData.load(replace(config, loss=loss)).task
    graph = (task.split.train_users, task.split.train_items, task.split.num_users, task.split.num_items)
    rows = MF(nn.Embedding(task.split.num_users, 4), nn.Embedding(task.split.num_items, 4))
    gcn = LightGCN(rows, normalised_adjacency(*graph), 2)
    batch = next(iter(task.batches(256, "full", 1)))
    loss_of_rows = task.loss(gcn, batch)
    loss_of_rows.backward()
    assert rows.user.weight.grad.any()
    assert rows.item.weight.grad.any()
    assert task.loss(gcn.served(), batch) == loss_of_rows


def test_a_run_serves_the_propagated_rows(config: TrainConfig, tmp_path: Path) -> None:
    metrics = train_run(replace(config, metrics="recall@5", select_by="recall@5"), tmp_path / "out")
    data = RunData.load(config)
    loaded = load_run(tmp_path / "out")
    assert type(loaded) is MF
    assert data.task.evaluate(loaded)["full_ndcg@10"] == metrics["quality"]["full_ndcg@10"]
    best = metrics["history"]["annealed"][metrics["best_epoch"]["annealed"]]
    assert metrics["quality"]["valid_full_recall@5"] == pytest.approx(best["full_recall@5"], abs=1e-9)
    items = Collection.load(tmp_path / "out" / "item")
    assert items.query_weight is None
    assert torch.equal(items.table.to_dense(), mgqe.load(tmp_path / "out" / "item.mgqe.safetensors").to_dense())


@pytest.mark.parametrize("embedding", ["mgqe:budget=40%", "dpq:D=4,K=8", "pq:D=4,K=8", "scalar:bits=4"])
def test_small_tables_are_made_of_the_propagated_rows(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedding: str
) -> None:
    monkeypatch.setattr(problem, "SHAPES", problem.SHAPES[:2])
    config = replace(config, embedding=embedding, quantised_epochs=0)
    metrics = train_run(config, tmp_path / "out", warm_ups=tmp_path / "warm-ups")
    served, _ = full_model(config, RunData.load(config), tmp_path / "warm-ups", lambda report: None)
    rows, small = served.item.weight.detach(), load_run(tmp_path / "out").item(torch.arange(77))
    assert metrics["embedding_bytes"] < metrics["full_embedding_bytes"]
    assert (small - rows).norm() < 0.8 * (rows - rows.mean(dim=0)).norm()


def test_a_killed_run_ends_alike(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, embedding="dpq:D=4,K=8")

    def stop(report: EpochReport) -> None:
        if report.record is not None and (report.phase, report.epoch) in stops:
            stops.remove((report.phase, report.epoch))
            raise KeyboardInterrupt

    stops = [("full", 2), ("annealed", 1), ("quantised", 1)]
    while stops:
        with pytest.raises(KeyboardInterrupt):
            train_run(config, tmp_path / "killed", on_epoch=stop)
    killed, whole = train_run(config, tmp_path / "killed"), train_run(config, tmp_path / "whole")
    assert killed["quality"] == whole["quality"]
    for name in ("user", "item"):
        name = f"{name}.mgqe.safetensors"
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    "embedding", ["hash:buckets=20", "lowrank:r=2", "qr:remainders=8", "recjpq:D=4,K=8", "cce:K=8"]
)
def test_tables_that_hold_no_rows_are_refused(embedding: str) -> None:
    name = embedding.partition(":")[0]
    message = (
        rf"{name} has no rows .*: give one of full, mgqe, dpq, pq, scalar, svd, additive, or --model mf for {name}"
    )
    with pytest.raises(ValueError, match=message):
        TrainConfig(model="lightgcn", embedding=embedding)


@pytest.mark.parametrize("data", ["beauty-split", "ml-1m-split", "clicks.csv"])
def test_tuned_settings(data: str) -> None:
    config = TrainConfig(data=data, model="lightgcn").with_settings(tuned_settings("lightgcn", data))
    assert (config.loss, config.weight_decay, config.dropout) == ("softmax", 3e-6, 0.3)


@pytest.mark.parametrize("data", ["beauty-split", "ml-1m-split", "clicks.csv"])
def test_settings_of_factorisation(data: str) -> None:
    config = TrainConfig(data=data, model="mf").with_settings(tuned_settings("mf", data))
    assert (config.loss, config.negatives, config.weight_decay, config.init_std) == ("softmax", 512, 1e-5, 0.02)


@pytest.mark.parametrize(("given", "negatives"), [
    (["loss=bpr"], 4), (["loss=bpr", "negatives=1"], 1), (["loss=softmax"], 512), (["max_epochs=3"], 512),
])  # fmt: skip
def test_negatives_of_one_loss_are_not_taken_for_another(given: list[str], negatives: int) -> None:
    config = TrainConfig(model="mf").with_settings([*tuned_settings("mf", "clicks.csv", given), *given])
    assert config.negatives == negatives
    tuned = TrainConfig(model="mf", data="clicks.csv").with_settings(tuned_settings("mf", "clicks.csv"))
    assert tuned.with_embedding(f"full@{','.join(given)}").negatives == negatives


def test_a_number_of_negatives_of_ones_own_stays_with_any_loss() -> None:
    config = TrainConfig(model="mf", data="clicks.csv", negatives=64, loss="softmax")
    assert config.with_embedding("full@loss=bpr").negatives == 64


def test_fewer_layers_than_none_are_refused() -> None:
    with pytest.raises(ValueError, match="graph_layers must be a whole number of 0 or more"):
        TrainConfig(model="lightgcn", graph_layers=-1)
