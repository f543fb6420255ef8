"""The tables over torchrec's rows gather the metric of their vectors and bags, as the layers do."""

from __future__ import annotations

import pytest
import torch

import mgqe

pytest.importorskip("torchrec", reason="needs torchrec and fbgemm-gpu: see docs/torchrec.md")
pytest.importorskip("mgqe.torchrec")

from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType

DIM = 8
TABLE = {"name": "item", "embedding_dim": DIM, "num_embeddings": 500, "feature_names": ["seen", "bought"]}
CONFIG = mgqe.CompressConfig(num_centroids=8)


def features() -> KeyedJaggedTensor:
    lengths = torch.tensor([2, 0, 3, 1, 1, 4])
    return KeyedJaggedTensor(["seen", "bought"], torch.randint(500, (11,)), lengths=lengths, weights=torch.rand(11))


def test_a_vector_for_every_id():
    collection = mgqe.torchrec.QuantizedEmbeddingCollection([EmbeddingConfig(**TABLE)], CONFIG)
    table, queries = collection.tables["item"], torch.randn(11, DIM)
    table.gathers_metric = True
    out = collection(features())
    (torch.cat([out["seen"].values(), out["bought"].values()]) * queries).sum().backward()
    torch.testing.assert_close(table.metric().matrix, (queries.T @ queries / 11).double(), rtol=1e-5, atol=1e-6)
    assert table.metric().lookups == 11
    assert {"quantizers.item.metric_sum", "quantizers.item.metric_weight"} <= collection.state_dict().keys()


@pytest.mark.parametrize("kind", ["sum", "mean", "weighted"])
def test_bags(kind):
    pooling = PoolingType.MEAN if kind == "mean" else PoolingType.SUM
    config = EmbeddingBagConfig(**TABLE, pooling=pooling)
    collection = mgqe.torchrec.QuantizedEmbeddingBagCollection([config], CONFIG, is_weighted=kind == "weighted")
    table, pull, batch = collection.tables["item"], torch.randn(6, DIM), features()
    table.gathers_metric = True
    (torch.cat(torch.split(collection(batch).values(), DIM, 1)) * pull).sum().backward()
    of_bag = torch.arange(6).repeat_interleave(batch.lengths())
    scale = {"sum": torch.ones(11), "mean": 1 / batch.lengths()[of_bag], "weighted": batch.weights()}[kind]
    gradients = pull[of_bag] * scale.unsqueeze(-1)
    torch.testing.assert_close(table.metric().matrix, (gradients.T @ gradients / 11).double(), rtol=1e-5, atol=1e-6)
    assert table.metric().lookups == 11
