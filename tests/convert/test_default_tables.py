"""compress_ without a budget: tables whose capacity is left open are planned with the bytes of the even shape."""

from __future__ import annotations

import pytest
import torch
from convert_models import COUNTS, DIM, N, Ranker, batch

import mgqe
from mgqe import CompressConfig

EVEN = CompressConfig(num_centroids=(256, 64))
PLANNED = "at most, planned on its rows when the warm-up ends"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Ranker()


def test_tables_that_are_to_be_trained(model, tmp_path):
    even = mgqe.compress_(Ranker(), EVEN, counts={"encoder.item": COUNTS})
    before = model(*batch())
    report = mgqe.compress_(model, counts={"encoder.item": COUNTS})
    assert [type(m) for m in (model.user, model.encoder["item"], model.tags)] == [
        mgqe.DPQEmbedding,
        mgqe.MGQEmbedding,
        mgqe.DPQEmbeddingBag,
    ]
    assert [row.bytes_after for row in report.rows] == [row.bytes_after for row in even.rows]
    assert [row.why for row in report.rows[:2]] == [f"{PLANNED} (one tier: no counts)", PLANNED]
    assert torch.equal(model(*batch()), before)  # the warm-up: rows as they are
    for row in report.rows:
        if row.compressed:
            layer = model.get_submodule(row.path)
            assert layer.planner.is_default
            assert layer.planner.nbytes == row.bytes_after
            assert mgqe.save(layer.freeze(), tmp_path / "table") <= row.bytes_after


def test_trained_tables_are_reported_as_they_became(model, tmp_path):
    even = mgqe.compress_(Ranker(), EVEN, counts={"encoder.item": COUNTS})
    rows = {path: model.get_submodule(path).weight.detach().clone() for path in ("user", "encoder.item", "tags")}
    report = mgqe.compress_(model, counts={"encoder.item": COUNTS}, init="from_weight")
    assert report.compressed == tuple(rows)
    for row, largest in zip(report.rows, even.rows, strict=True):
        if row.compressed:
            layer = model.get_submodule(row.path)
            assert layer.quantizing
            assert layer.capacity.describe() in row.why
            assert mgqe.save(layer.freeze(), tmp_path / "table") == row.bytes_after <= largest.bytes_after
            lost = (layer.freeze().to_dense() - rows[row.path]).square().mean() / rows[row.path].var()
            assert lost < 0.01
    assert "(identity, one tier" in report.rows[0].why


def test_a_capacity_and_tiers_are_taken_as_they_are_given(model):
    tiers = mgqe.Tiers.from_counts(COUNTS)
    config = CompressConfig(rules={"user": {"num_subspaces": 4}})
    mgqe.compress_(model, config, counts={"encoder.item": tiers})
    assert model.user.capacity.num_subspaces == (4,)
    assert model.encoder["item"].capacity == CompressConfig(num_centroids=(128, 64)).capacity_of(DIM, tiers)
    assert model.tags.planner.is_default


def test_a_state_dict_of_even_tables_still_loads(model):
    """As earlier versions' compress_ made them without a capacity."""
    old = Ranker()
    mgqe.compress_(old, EVEN, counts={"encoder.item": COUNTS}, init="from_weight")
    mgqe.compress_(model, counts={"encoder.item": COUNTS})
    model.load_state_dict(old.state_dict())
    assert torch.equal(model.eval()(*batch()), old.eval()(*batch()))
    frozen, expected = mgqe.freeze_(model), mgqe.freeze_(old)
    assert all(frozen[path].equal(expected[path]) for path in expected)


def test_bad_input_names_the_path(model):
    with pytest.raises(ValueError, match=r"encoder\.item: .*counts"):
        mgqe.compress_(model, counts={"encoder.item": torch.ones(N + 1)})
    with torch.no_grad():
        model.encoder["item"].weight[17] = torch.nan
    with pytest.raises(ValueError, match=r"encoder\.item: 1 rows of weight hold NaN or infinity, the first is row 17"):
        mgqe.compress_(model, init="from_weight")
    assert type(model.user) is torch.nn.Embedding
