"""table_metrics: the losses of this step, usage when it is asked for, and nothing changed by reading."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mgqe
from mgqe.integrations.tensorboard import add_table_metrics

IDS = torch.arange(20)


def model(**options) -> nn.ModuleDict:
    torch.manual_seed(0)
    layers = {name: mgqe.DPQEmbedding(100, 8, num_centroids=16, **options) for name in ("user", "item")}
    return nn.ModuleDict({**layers, "out": nn.Linear(8, 1)})


def test_the_warm_up_has_no_loss_and_no_usage():
    tables = model(warmup_steps=5)
    tables["item"](IDS)
    assert mgqe.table_metrics(tables, usage=True) == {"mgqe/user/quantizing": 0.0, "mgqe/item/quantizing": 0.0}


def test_each_table_has_its_own_loss_which_reading_leaves():
    tables = model(warmup_steps=0)
    tables["item"](IDS), tables["user"](IDS)
    metrics = mgqe.table_metrics(tables)
    losses = [metrics[f"mgqe/{name}/quantization_loss"] for name in ("user", "item")]
    assert losses[0] != losses[1]
    loss = mgqe.quantization_loss(tables)
    assert loss.item() == pytest.approx(sum(losses), rel=1e-6)
    assert mgqe.table_metrics(tables) == metrics  # also between quantization_loss and backward
    loss.backward()
    assert "mgqe/item/quantization_loss" not in mgqe.table_metrics(tables)


def test_a_table_that_this_step_did_not_look_up_has_no_loss():
    tables = model(warmup_steps=0)
    optimizer = torch.optim.SGD(tables.parameters(), lr=0.1)
    for name in ("user", "item"):
        (tables[name](IDS).sum() + mgqe.quantization_loss(tables)).backward()
        optimizer.step()
    tables["item"](IDS)
    metrics = mgqe.table_metrics(tables)
    assert "mgqe/item/quantization_loss" in metrics
    assert "mgqe/user/quantization_loss" not in metrics


def test_usage_is_that_of_the_codebooks():
    tables = model(warmup_steps=0)
    mgqe.start_quantizing(tables)
    (stats,) = tables["item"].codebook_stats()
    metrics = mgqe.table_metrics(tables, usage=True, prefix="tables")
    assert metrics["tables/item/tier_0/usage"] == stats.usage
    assert metrics["tables/item/tier_0/perplexity"] == stats.perplexity


def test_a_layer_alone_and_a_frozen_model():
    layer = mgqe.DPQEmbedding(100, 8, num_centroids=16)
    assert mgqe.table_metrics(layer) == {"mgqe/quantizing": 0.0}
    tables = model()
    mgqe.freeze_(tables)
    assert mgqe.table_metrics(tables, usage=True) == {}


def test_tensorboard_gets_each_number():
    class Writer:
        def __init__(self) -> None:
            self.scalars: dict[str, tuple[float, int]] = {}

        def add_scalar(self, name, value, step):
            self.scalars[name] = (value, step)

    writer, tables = Writer(), model(warmup_steps=0)
    tables["item"](IDS)
    add_table_metrics(writer, tables, 7, usage=True)
    expected = mgqe.table_metrics(tables, usage=True)
    assert writer.scalars == {name: (value, 7) for name, value in expected.items()}
    assert "mgqe/item/tier_0/usage" in expected


def test_tensorboards_own_writer_takes_them(tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        add_table_metrics(writer, model(warmup_steps=0), 1)
    assert any(tmp_path.iterdir())
