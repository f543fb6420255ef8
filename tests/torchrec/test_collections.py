"""The real torchrec's collections: see examples/torchrec_bags.py for how to install it."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from paths import EXAMPLES

import mgqe

pytestmark = pytest.mark.slow
torchrec = pytest.importorskip("torchrec", reason="needs torchrec and fbgemm-gpu-cpu: see examples/torchrec_bags.py")

CONFIG = mgqe.CompressConfig(num_centroids=32, centroid_dtype="int8")


@pytest.fixture(scope="module")
def example():
    path = EXAMPLES / "torchrec_bags.py"
    spec = importlib.util.spec_from_file_location("torchrec_bags", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_collection_of_bags(example, tmp_path):
    torch.manual_seed(0)
    model, features = example.make(), example.batch()
    before = model(features).values()
    assert mgqe.compress_(model, CONFIG).compressed == ("embedding_bags.user", "embedding_bags.item")
    assert torch.equal(model(features).values(), before)  # the warm-up
    mgqe.start_quantizing(model)
    (model(features).values().sum() + mgqe.quantization_loss(model)).backward()
    assert all(bag.raw_weight.grad.any() for bag in model.embedding_bags.values())
    model.eval()
    expected = model(features)
    mgqe.freeze_(model)
    frozen = model(features)
    assert frozen.keys() == expected.keys() == ["user", "seen", "bought"]
    torch.testing.assert_close(frozen.values(), expected.values())
    mgqe.save_model(model, tmp_path / "model")
    assert torch.equal(mgqe.load_model(example.make(), tmp_path / "model")(features).values(), frozen.values())


def test_weighted_bags(example):
    table = torchrec.EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=3000, feature_names=["item"])
    model = torchrec.EmbeddingBagCollection(tables=[table], is_weighted=True)
    lengths = torch.tensor([3, 0, 7])
    features = torchrec.KeyedJaggedTensor(["item"], torch.randint(3000, (10,)), torch.rand(10), lengths=lengths)
    mgqe.compress_(model, CONFIG, init="from_weight")
    model.eval()
    expected = model(features).values()
    mgqe.freeze_(model)
    torch.testing.assert_close(model(features).values(), expected)


def test_a_collection_without_pooling():
    table = torchrec.EmbeddingConfig(name="item", embedding_dim=16, num_embeddings=3000, feature_names=["item"])
    model = torchrec.EmbeddingCollection(tables=[table])
    features = torchrec.KeyedJaggedTensor(["item"], torch.randint(3000, (10,)), lengths=torch.tensor([3, 0, 7]))
    mgqe.compress_(model, CONFIG, init="from_weight")
    model.eval()
    expected = model(features)["item"].values()
    mgqe.freeze_(model)
    assert torch.equal(model(features)["item"].values(), expected)
