"""NeuMF against its equation, against the concatenated form, and in a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from recsys_data import tiny_config, write_tiny
from torch import nn

import mgqe
from mgqe.recsys.models.neumf import NeuMF
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.artifacts import load_run
from mgqe.recsys.train.run import train_run

PATHS = {"gmf_user", "gmf_item", "mlp_user", "mlp_item"}


def rows(values: list[list[float]]) -> nn.Embedding:
    return nn.Embedding.from_pretrained(torch.tensor(values))


def by_hand() -> NeuMF:
    """Two dimensions, layers 4 -> 2 -> 1, and small values."""
    model = NeuMF(
        rows([[1.0, 2.0], [0.0, 1.0]]),
        rows([[3.0, -1.0], [1.0, 1.0], [2.0, 0.0]]),
        rows([[1.0, 0.0], [0.0, 2.0]]),
        rows([[1.0, 1.0], [-2.0, 1.0], [0.0, -3.0]]),
        embedding_dim=2,
        num_layers=2,
    )
    values = {
        "weight": [1.0, 0.5],
        "user_layer.weight": [[1.0, 0.0], [0.0, 1.0]],
        "user_layer.bias": [0.0, 1.0],
        "item_layer.weight": [[1.0, 0.0], [0.0, 2.0]],
        "layers.0.weight": [[2.0, 1.0]],
        "layers.0.bias": [-1.0],
        "last.weight": [[10.0]],
        "last.bias": [0.25],
    }
    model.load_state_dict({name: torch.tensor(value) for name, value in values.items()}, strict=False)
    return model.eval()


def test_scores_by_hand() -> None:
    # User 0 and item 0: product 1*1*3 + 0.5*2*(-1) = 2; first layer relu([1+1, 0+1+2*1]) = [2, 3]; second
    # relu(2*2 + 3 - 1) = 6; 2 + 10*6 + 0.25 = 62.25. User 0, item 1: 1 + 1 = 2; relu([1-2, 1+2]) = [0, 3];
    # relu(3 - 1) = 2; 22.25. User 1, item 2: 0; relu([0, 2+1-6]) = [0, 0]; relu(-1) = 0; 0.25.
    # User 1, item 1: 0.5; relu([-2, 3+2]) = [0, 5]; 4; 40.75.
    model = by_hand()
    found = model(torch.tensor([0, 1]), torch.tensor([[0, 1], [2, 1]]))
    assert found.tolist() == [[62.25, 22.25], [0.25, 40.75]]


def random_model(dim: int = 8, num_users: int = 5, num_items: int = 7) -> NeuMF:
    torch.manual_seed(0)
    sizes = (num_users, num_items, num_users, num_items)
    return NeuMF(*(nn.Embedding(size, dim) for size in sizes), embedding_dim=dim).eval()


def test_the_split_first_layer_is_the_concatenated_one() -> None:
    model = random_model()
    users, items = torch.randint(5, (6,)), torch.randint(7, (6, 4))
    p = model.mlp_user(users)[:, None].expand(-1, 4, -1)
    z = torch.cat([p, model.mlp_item(items)], dim=2)
    weight = torch.cat([model.user_layer.weight, model.item_layer.weight], dim=1)  # 2d -> d
    assert weight.shape == (8, 16)
    z = torch.relu(z @ weight.T + model.user_layer.bias)
    for layer, width in zip(model.layers, (4, 2), strict=True):
        z = torch.relu(layer(z))
        assert z.shape[-1] == width
    product = model.gmf_user(users)[:, None] * model.gmf_item(items)
    joined = torch.cat([model.weight, model.last.weight[0]])
    expected = torch.cat([product, z], dim=2) @ joined + model.last.bias
    torch.testing.assert_close(model(users, items), expected)


def test_gradients_are_those_of_the_equation() -> None:
    model = random_model(dim=4).double()
    users, items = torch.tensor([0, 0, 3]), torch.tensor([[1, 1], [6, 1], [0, 6]])
    parameters = dict(model.named_parameters())

    def loss(*values: torch.Tensor) -> torch.Tensor:
        named = dict(zip(parameters, values, strict=True))
        found: torch.Tensor = torch.func.functional_call(model, named, (users, items))
        return found.square().sum()

    assert torch.autograd.gradcheck(loss, tuple(parameters.values()))


def test_the_catalogue_is_scored_as_pairs_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    users = torch.tensor([4, 0, 0, 2])
    pairs = model(users, torch.arange(7).expand(4, -1))
    torch.testing.assert_close(model.score_catalogue(users, model.catalogue(7)), pairs)
    monkeypatch.setattr("mgqe.recsys.models.neumf.CATALOGUE_CELLS", 8 * 7 * 3)  # three users, then one
    torch.testing.assert_close(model.score_catalogue(users, model.catalogue(7)), pairs)


@pytest.mark.parametrize(("dim", "num_layers"), [(4, 4), (8, 0)])
def test_a_network_without_units(dim: int, num_layers: int) -> None:
    with pytest.raises(ValueError, match=f"{num_layers} layers for {dim} dimensions: set fewer layers"):
        NeuMF(*(nn.Embedding(3, dim) for _ in range(4)), embedding_dim=dim, num_layers=num_layers)


@pytest.mark.parametrize("embedding", ["full", "mgqe:D=4,K=4/2", "hash:buckets=4"])
def test_a_run(tmp_path: Path, embedding: str) -> None:
    config = tiny_config(write_tiny(tmp_path), model="neumf", embedding=embedding, mlp_layers=2)
    out = tmp_path / "out"
    metrics = train_run(config, out)
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert set(metrics["embedding_bytes_by_table"]) == PATHS
    tables = {path: mgqe.load(out / f"{path}.mgqe.safetensors") for path in PATHS}
    assert {path: table.embedding_dim for path, table in tables.items()} == dict.fromkeys(PATHS, 8)
    task = RunData.load(config).task
    assert {path: info.field for path, info in task.tables.items()} == {
        "gmf_user": "user", "gmf_item": "item", "mlp_user": "user", "mlp_item": "item"
    }  # fmt: skip
    assert task.evaluate(load_run(out)) == metrics["quality"]


def test_items_with_equal_rows_draw(tmp_path: Path) -> None:
    """A matrix product may give equal rows unequal last bits, but ties must count against the model."""
    config = tiny_config(write_tiny(tmp_path), model="neumf")
    task = RunData.load(config).task
    sizes = (task.split.num_users, task.split.num_items) * 2
    tables = [nn.Embedding(size, 8) for size in sizes]
    with torch.no_grad():
        for table in tables[1::2]:
            table.weight.copy_(table.weight[:1].expand_as(table.weight))
    found = task.evaluate(NeuMF(*tables, embedding_dim=8).eval())
    assert all(value == 0.0 for name, value in found.items() if not name.startswith("popularity_"))
