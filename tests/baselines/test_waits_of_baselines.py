"""Baselines in a training step on a GPU: they wait for nothing, and ids out of range are an error later."""

from __future__ import annotations

import pickle

import pytest
import torch
from waits import Waits

import mgqe
from mgqe import baselines
from mgqe.checks.waiting import as_on_gpu

N, DIM = 40, 8
PAIRS = torch.arange(120) % 30, torch.arange(120) * 7 % N
LAYERS = {
    "full": lambda: baselines.FullEmbedding(N, DIM),
    "hashing": lambda: baselines.HashEmbedding(N, DIM, num_buckets=10, num_hashes=2),
    "quotient-remainder": lambda: baselines.QREmbedding(N, DIM),
    "low rank": lambda: baselines.LowRankEmbedding(N, DIM, rank=3),
    "clustered": lambda: baselines.CCEmbedding(N, DIM, num_columns=2, num_centroids=4),
    "additive": lambda: baselines.AdditiveEmbedding(N, DIM, num_codebooks=2, num_centroids=4),
    "additive, by frequency": lambda: baselines.AdditiveEmbedding(
        N, DIM, num_codebooks=2, num_centroids=4, scale_grad_by_freq=True
    ),
    "recjpq": lambda: baselines.RecJPQEmbedding(N, DIM, num_subspaces=2, num_centroids=4),
    "recjpq, by frequency": lambda: baselines.RecJPQEmbedding(
        N, DIM, num_subspaces=2, num_centroids=4, scale_grad_by_freq=True
    ),
}


@pytest.fixture(autouse=True)
def without_triton(monkeypatch):
    monkeypatch.setenv("MGQE_TRITON", "0")


each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def made(make):
    torch.manual_seed(0)
    return make()


def gradients(layer, ids):
    layer(ids).square().sum().backward()
    return [p.grad for p in layer.parameters()]


@each_layer
def test_a_step_waits_for_nothing_and_is_that_of_the_cpu(make):
    ids = torch.tensor([3, 39, 3, 7])
    mine, theirs = made(make), made(make)
    with as_on_gpu():
        theirs(ids)  # keeps what later steps need
        with Waits() as waits:
            there = gradients(theirs, ids)
    assert waits.counts == {}
    for a, b in zip(gradients(mine, ids), there, strict=True):
        torch.testing.assert_close(b, a)


@each_layer
def test_ids_out_of_range_are_an_error_later(make):
    model = torch.nn.ModuleDict({"item": made(make)})
    with pytest.raises(IndexError, match="40"):
        model["item"](torch.tensor([N]))
    with as_on_gpu():
        wrong, last = (model["item"](torch.tensor([id])) for id in (N, N - 1))
    assert torch.equal(wrong, last)
    with pytest.raises(IndexError, match=rf"^item: id 40 is out of range: .* {type(model['item']).__name__} of 40 x 8"):
        mgqe.check_ids(model)
    with as_on_gpu():
        model["item"](torch.tensor([-1]))
    with pytest.raises(IndexError, match="id -1"):
        model.eval()
    assert model.state_dict()


def test_a_pickle_from_before_there_were_guards():
    layer = made(LAYERS["full"])
    del layer.id_guard
    again = pickle.loads(pickle.dumps(layer))
    with as_on_gpu():
        again(torch.tensor([N]))
    with pytest.raises(IndexError, match="id 40"):
        again.check_ids()
