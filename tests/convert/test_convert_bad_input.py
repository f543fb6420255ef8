"""Wrong arguments: every error and warning names the module path."""

from __future__ import annotations

import copy

import pytest
import torch
from convert_models import COUNTS, DIM, N, Ranker, batch, ranker
from torch import nn

import mgqe
from mgqe import CompressConfig


def refused(error: type[Exception], match: str, model: nn.Module, *args, **options) -> None:
    """The call raises, and the model is as it was."""
    before, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    with pytest.raises(error, match=match):
        mgqe.compress_(model, *args, **options)
    assert dict(model.named_modules()) == modules
    assert all(value.equal(before[key]) or value.isnan().any() for key, value in model.state_dict().items())


def test_a_model_without_embeddings():
    refused(ValueError, "Sequential has no nn.Embedding or nn.EmbeddingBag", nn.Sequential(nn.Linear(2, 2)))


def test_a_model_that_is_an_embedding():
    refused(ValueError, r"the model itself is an Embedding.*from_pretrained", nn.Embedding(N, DIM))
    with pytest.raises(ValueError, match="the model itself is an MGQEmbedding: use its freeze"):
        mgqe.freeze_(mgqe.MGQEmbedding(N, DIM, counts=COUNTS))


def test_compressing_and_freezing_twice():
    model = Ranker()
    del model.weekday
    mgqe.compress_(model)
    refused(ValueError, r"left to compress; quantised already: user, encoder\.item, tags", model)
    mgqe.freeze_(model)
    with pytest.raises(ValueError, match=r"no quantised layer to freeze \(frozen already: user, encoder\.item, tags"):
        mgqe.freeze_(model)
    with pytest.raises(ValueError, match="Linear has no quantised layer to freeze: call mgqe"):
        mgqe.freeze_(nn.Linear(2, 2))


def test_a_filter_that_matches_nothing():
    match = r"filter_fn matches none of the model's tables: user, encoder\.item, tags, weekday"
    refused(ValueError, match, Ranker(), filter_fn=lambda module, path: "items" in path)


def test_a_rule_that_matches_nothing():
    refused(
        ValueError,
        r"rule 'encoder\.items' matches none of .*encoder\.item",
        Ranker(),
        CompressConfig(rules={"encoder.items": None}),
    )


@pytest.mark.parametrize(
    ("counts", "match"),
    [
        ({"encoder.items": COUNTS}, r"counts for 'encoder\.items' \(did you mean 'encoder\.item'\?\)"),
        ({"head": COUNTS}, "counts for 'head', where the model has no table: user, encoder"),
        ({"user": COUNTS[:-1]}, r"user: counts has 1999 entries, but num_embeddings is 2000"),
        ({"user": torch.zeros(N)}, "user: counts are all zero"),
        ({"user": -COUNTS}, "user: counts must not be negative"),
        ({"user": COUNTS.float() * torch.nan}, "user: counts must be finite"),
        ({"user": mgqe.Tiers.from_fractions(5)}, "user: tiers hold 5 ids, but num_embeddings is 2000"),
        ({"user": "often"}, "user: counts must be one number per id"),
    ],
)
def test_counts(counts, match):
    refused((ValueError, TypeError), match, Ranker(), counts=counts)


def test_counts_twice_for_one_table():
    model = nn.ModuleDict({"a": nn.Embedding(N, DIM)})
    model["b"] = model["a"]
    refused(ValueError, "counts for 'a' and for 'b', which are one table", model, counts={"a": COUNTS, "b": COUNTS})


def test_tables_too_small_to_gain():
    model = nn.ModuleDict({"weekday": nn.Embedding(7, 4), "hour": nn.Embedding(24, 4)})
    with pytest.warns(UserWarning, match="left every table as it is: weekday: left: codes .*hour: left") as caught:
        report = mgqe.compress_(model)
    assert caught[0].filename == __file__
    assert report.compressed == ()
    assert type(model["hour"]) is nn.Embedding
    assert all(row.bytes_after >= row.bytes_before for row in report.rows)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"num_subspaces": 5}, r"user: embedding_dim=16 is not divisible into num_subspaces=5"),
        ({"num_centroids": 1}, "user: num_centroids must be from 2"),
        ({"num_centroids": (4, 4, 4)}, "user: num_centroids has 3 entries, but there are 2 tiers"),
    ],
)
def test_settings_that_do_not_fit(config, match):
    refused((ValueError, TypeError), match, Ranker(), CompressConfig(**config), counts={"user": COUNTS})


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"init": "trained"}, "init must be one of"),
        ({"quantizer": "vx"}, r"quantizer must be one of \('vq', 'sx'\), got 'vx'"),
        ({"capacity": "rows"}, "capacity must be one of"),
        ({"centroid_dtype": "int4"}, "centroid_dtype must be one of"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number"),
        ({"commitment": -1.0}, "commitment must be a finite number of 0 or more"),
        ({"rows": "cached"}, "rows must be \"float32\" for whole models, got 'cached'"),
        ({"rules": {"a*": {"centroids": 4}}}, r"rule 'a\*' sets \['centroids'\]"),
        ({"rules": {"a*": 4}}, r"rule 'a\*' must be a mapping"),
        ({"rules": {"a*": {"rules": {}}}}, r"rule 'a\*' sets \['rules'\]"),
    ],
)
def test_configurations_that_fit_no_table(config, match):
    with pytest.raises((ValueError, TypeError), match=match):
        CompressConfig(**config)


def test_rows_that_are_nan():
    model = Ranker()
    with torch.no_grad():
        model.encoder["item"].weight[17] = torch.nan
    even = mgqe.CompressConfig(num_centroids=256)
    refused(ValueError, r"encoder\.item: row 17 of the embedding weight holds NaN", model, even, init="from_weight")
    mgqe.compress_(model)
    with pytest.raises(ValueError, match=r"encoder\.item: row 17 of the embedding weight holds NaN"):
        mgqe.freeze_(model)
    assert isinstance(model.user, mgqe.MGQEmbedding)


def test_sparse_gradients_and_optimisers():
    model = nn.ModuleDict({"item": nn.Embedding(N, DIM, sparse=True)})
    mgqe.compress_(model)
    for optimizer in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop):
        with pytest.raises(
            ValueError, match=rf"item: its gradients are sparse.*which {optimizer.__name__} does not take"
        ):
            mgqe.extend_optimizer(optimizer([model["item"].raw_weight]), model)
    optimizer = torch.optim.SparseAdam([model["item"].raw_weight])
    assert mgqe.extend_optimizer(optimizer, model) == 1
    mgqe.start_quantizing(model)
    (model["item"](torch.arange(5)).sum() + mgqe.quantization_loss(model)).backward()
    optimizer.step()
    dense = nn.ModuleDict({"item": nn.Embedding(N, DIM)})
    mgqe.compress_(dense)
    with pytest.raises(ValueError, match="item: its gradients are dense, which SparseAdam does not take"):
        mgqe.extend_optimizer(torch.optim.SparseAdam([dense["item"].raw_weight]), dense)


def test_optimisers_of_other_models():
    model = ranker()
    with pytest.raises(ValueError, match=r"holds the rows of none of user, encoder\.item, tags"):
        mgqe.extend_optimizer(torch.optim.Adam(nn.Linear(2, 2).parameters()), model)
    with pytest.raises(ValueError, match="Linear has no quantised layer"):
        mgqe.extend_optimizer(torch.optim.Adam(nn.Linear(2, 2).parameters()), nn.Linear(2, 2))


def test_a_frozen_model_put_back_in_training_mode():
    model = ranker()
    mgqe.freeze_(model)
    assert not model.training
    with pytest.warns(UserWarning, match="is frozen") as caught:
        model.train()
    messages = [str(warning.message) for warning in caught]
    assert [message.split(" is frozen")[0] for message in messages] == ["user", "encoder.item", "tags"]
    assert "keep the model from before freeze_" in messages[0]
    model(*batch()).sum().backward()  # the rest of the model can still train
    assert model.head.weight.grad.any()
    assert model.weekday.weight.grad.any()


def test_unknown_ids_in_a_frozen_model():
    model = ranker()
    mgqe.freeze_(model)
    with pytest.raises(IndexError, match=f"id {N} is out of range"):
        model.user(torch.tensor([N]))
    with pytest.raises(TypeError, match="ids must have an integer dtype"):
        model.user(torch.tensor([0.5]))
