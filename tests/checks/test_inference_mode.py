"""Objects that were made or changed in torch.inference_mode train, grow and load outside of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import mgqe
from mgqe import baselines
from mgqe.checks.inference import as_normal
from mgqe.nn import rows as storage

N, DIM = 100, 8
torch.manual_seed(0)
COUNTS = torch.arange(N, 0, -1)[torch.randperm(N)]
IDS = torch.arange(64).view(8, 8)

MAKERS: dict[str, Callable[[], Any]] = {
    **{
        f"rows={rows}": lambda rows=rows: mgqe.MGQEmbedding(N, DIM, counts=COUNTS, rows=rows, warmup_steps=1)
        for rows in ("float32", "bfloat16", "cached", "sketch")
    },
    "rows=narrow": lambda: mgqe.MGQEmbedding(N, DIM, counts=COUNTS, rows="narrow", quantizer="sx", warmup_steps=1),
    "rows=codes": lambda: mgqe.DPQEmbedding(
        N, DIM, num_centroids=8, rows=storage.CodeRows(torch.randint(8, (N, DIM // 2)))
    ),
    "sx": lambda: mgqe.DPQEmbedding(N, DIM, quantizer="sx", warmup_steps=1),
    "bag": lambda: mgqe.MGQEmbeddingBag(N, DIM, counts=COUNTS, warmup_steps=1),
    "DPQ bag": lambda: mgqe.DPQEmbeddingBag(N, DIM, warmup_steps=1),
    "budget": lambda: mgqe.MGQEmbedding(N, DIM, counts=COUNTS, budget=0.5, warmup_steps=1),
    "from_pretrained": lambda: mgqe.MGQEmbedding.from_pretrained(torch.randn(N, DIM), counts=COUNTS),
    "tiers": lambda: mgqe.MGQEmbedding(N, DIM, tiers=mgqe.Tiers.from_counts(COUNTS), warmup_steps=0),
    "full from_pretrained": lambda: baselines.FullEmbedding.from_pretrained(torch.randn(N, DIM), freeze=False),
    **{
        name: lambda name=name: getattr(baselines, name)(N, DIM)
        for name in baselines.__all__
        if name.endswith("Embedding")
    },
}


def check_it_trains(layer: nn.Module) -> None:
    """Three steps change every parameter, and a checkpoint of the module can be loaded."""
    tensors = [*layer.parameters(), *layer.buffers()]
    assert not [t.shape for t in tensors if t.is_inference()]
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer.train()
    for _ in range(3):
        loss = layer(IDS).square().sum() + mgqe.quantization_loss(layer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, layer.parameters(), strict=True))
    layer.load_state_dict({name: t.clone() for name, t in layer.state_dict().items()})


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad], ids=["inference_mode", "no_grad"])
def test_a_layer_made_inside_trains_outside(name: str, mode: Any) -> None:
    with mode():
        layer = MAKERS[name]()
        assert not torch.is_grad_enabled()  # the mode itself is unchanged
    check_it_trains(layer)


@pytest.mark.parametrize("name", ["weight", "weight frozen", "counts", "tiers", "full"])
def test_a_layer_made_outside_of_tensors_made_inside_trains(name: str) -> None:
    with torch.inference_mode():
        rows, counts, tiers = torch.randn(N, DIM), COUNTS.clone(), mgqe.Tiers.from_counts(COUNTS)
    if name == "weight frozen":
        layer = mgqe.DPQEmbedding.from_pretrained(rows, freeze=True)
        layer.raw_weight.requires_grad_(True)
    else:
        layer = {
            "weight": lambda: mgqe.DPQEmbedding.from_pretrained(rows),
            "counts": lambda: mgqe.MGQEmbedding(N, DIM, counts=counts, warmup_steps=1),
            "tiers": lambda: mgqe.MGQEmbedding(N, DIM, tiers=tiers, warmup_steps=1),
            "full": lambda: baselines.FullEmbedding.from_pretrained(rows, freeze=False),
        }[name]()
    check_it_trains(layer)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item, self.score = nn.Embedding(1000, 16), nn.Linear(16, 1000, bias=False)
        self.score.weight = self.item.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.item(ids)


@pytest.mark.parametrize("init", ["warmup", "from_weight"])
@pytest.mark.parametrize(("made", "swapped"), [(True, True), (True, False), (False, True)])
def test_a_model_made_or_compressed_inside_trains_outside(made: bool, swapped: bool, init: str) -> None:
    with torch.inference_mode(made):
        model = Tied()
    before = as_normal(model.item.weight.detach()).clone()
    with torch.inference_mode(swapped):
        mgqe.compress_(model, init=init)
    assert model.score._parameters["weight"] is model.item.raw_weight
    assert torch.equal(model.item.raw_weight, before)
    check_it_trains(model)


def test_compress_trains_the_very_parameter_that_an_optimiser_holds() -> None:
    model = Tied()
    weight = model.item.weight
    with torch.inference_mode():
        mgqe.compress_(model)
    assert model.item.raw_weight is weight


def test_a_layer_started_loaded_or_frozen_inside_trains_on_outside() -> None:
    layer = mgqe.MGQEmbedding(N, DIM, counts=COUNTS)
    other = mgqe.MGQEmbedding(N, DIM, counts=COUNTS, warmup_steps=0)
    with torch.inference_mode():
        layer.load_state_dict(other.state_dict())
        mgqe.start_quantizing(layer)
        layer(IDS)
        layer.freeze()
    assert layer.quantizing
    check_it_trains(layer)


@pytest.mark.parametrize("kind", ["compact", *(name for name in baselines.__all__ if name.endswith("Embedding"))])
def test_a_table_frozen_or_loaded_inside_holds_normal_tensors(kind: str, tmp_path: Any) -> None:
    layer = mgqe.MGQEmbedding(N, DIM, counts=COUNTS) if kind == "compact" else getattr(baselines, kind)(N, DIM)
    with torch.inference_mode():
        table = layer.freeze()
        mgqe.save(table, tmp_path / "table")
        loaded = mgqe.load(tmp_path / "table")
        moved = loaded.to("cpu")
    for one in (table, loaded, moved):
        assert not [name for name, tensor in one.to_tensors()[0].items() if tensor.is_inference()]
    assert loaded.equal(table)


def test_a_table_changed_inside_changes_on_outside(tmp_path: Any) -> None:
    table = mgqe.MGQEmbedding(N, DIM, counts=COUNTS).freeze()
    rows = torch.randn(5, DIM)
    expected = table.with_fallback(rows[4])
    with torch.inference_mode():
        changed = table.with_fallback(rows[4])
        changed.update(torch.tensor([0, 1]), rows[:2])
        changed.append(rows[2:])
        changed.append(rows[:1], tier=0)
    assert not [name for name, tensor in changed.to_tensors()[0].items() if tensor.is_inference()]
    changed.update(torch.tensor([0, N]), rows[2:4])
    changed.append(rows[1:2], tier=0)
    for one in (expected,):
        one.update(torch.tensor([0, 1]), rows[[2, 1]])
        one.append(rows[[3, 3, 4]])
        one.append(rows[:2], tier=0)
    assert torch.equal(changed.to_dense(), expected.to_dense())
    mgqe.save(changed, tmp_path / "table")
    with torch.inference_mode():
        mgqe.append(tmp_path / "table", rows)
    assert mgqe.load(tmp_path / "table").num_embeddings == changed.num_embeddings + 5


def test_a_model_frozen_and_loaded_inside_is_served_outside(tmp_path: Any) -> None:
    model = Tied()
    mgqe.compress_(model)
    other = Tied()
    with torch.inference_mode():
        mgqe.freeze_(model)
        mgqe.save_model(model, tmp_path)
        mgqe.load_model(other, tmp_path)
        other.load_state_dict(model.state_dict())
    assert not [name for name, buffer in other.item.named_buffers() if buffer.is_inference()]
    head = nn.Linear(16, 1)
    head(other(IDS)).sum().backward()  # vectors of the table may be kept for a backward pass
    assert head.weight.grad is not None
    assert torch.equal(other(IDS), model(IDS))
