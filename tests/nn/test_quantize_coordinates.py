"""The written-out step of a layer with a plan against the one that autograd composes."""

from __future__ import annotations

import copy

import pytest
import torch

import mgqe
from mgqe.nn.quantizers.base import Quantizer

N, DIM = 3000, 8
COUNTS = 2000 // torch.arange(1, N + 1)


def planned(monkeypatch, budget, whole, **options):
    monkeypatch.setattr("mgqe.codec.planning.mixed.WHOLE_ROWS", 1 if whole else 1 << 40)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(N, DIM, generator=generator) * torch.linspace(2.0, 0.5, DIM)
    rows = rows @ torch.randn(DIM, DIM, generator=generator)
    layer = mgqe.MGQEmbedding(N, DIM, _weight=rows, counts=COUNTS, budget=budget, **options)
    layer.start_quantizing()
    assert layer.quantizer.is_whole == whole
    return layer


def gradients(layer, ids):
    layer.train()
    vectors = layer(ids)
    loss = mgqe.quantization_loss(layer)
    ((vectors - 1).square().mean() + 3 * loss).backward()
    found = [None if p.grad is None else p.grad.to_dense() for p in layer.parameters()]
    return [vectors.detach(), loss.detach(), *found]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("budget", ["9%", "25%"])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_vectors_loss_and_gradients_are_those_that_autograd_composes(monkeypatch, budget, whole, sparse, dtype):
    layer = planned(monkeypatch, budget, whole, sparse=sparse, padding_idx=7).to(dtype)
    composed = copy.deepcopy(layer)
    monkeypatch.setattr(composed.quantizer, "quantize", lambda *args: Quantizer.quantize(composed.quantizer, *args))
    ids = torch.randint(50, (4, 100), generator=torch.Generator().manual_seed(1)) ** 2
    for ours, theirs in zip(gradients(layer, ids), gradients(composed, ids), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            near = {"rtol": 2e-2, "atol": 1e-4} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-6}
            torch.testing.assert_close(ours, theirs, **near)


def test_the_vectors_have_the_bits_of_the_composed_pass(monkeypatch):
    layer = planned(monkeypatch, "9%", True)
    ids = torch.arange(N)
    assert torch.equal(layer.train()(ids), layer.eval()(ids))


def test_second_derivatives_are_those_that_autograd_composes(monkeypatch):
    layer = planned(monkeypatch, "9%", True)
    composed = copy.deepcopy(layer)
    monkeypatch.setattr(composed.quantizer, "quantize", lambda *args: Quantizer.quantize(composed.quantizer, *args))
    found = []
    for each in (layer, composed):
        vectors = each.train()(torch.arange(40))
        loss = vectors.pow(3).sum() + mgqe.quantization_loss(each)
        (gradient,) = torch.autograd.grad(loss, each.raw_weight, create_graph=True)
        gradient.square().sum().backward()
        found.append([p.grad for p in each.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_changed_buffer_counts_in_the_next_pass(monkeypatch):
    layer = planned(monkeypatch, "9%", True)
    ids = torch.arange(5)
    before = layer.train()(ids).detach()
    with torch.no_grad():
        layer.quantizer.mean.add_(1.0)
        layer.raw_weight.add_(1.0)
    torch.testing.assert_close(layer(ids).detach(), before + 1.0, rtol=1e-4, atol=1e-4)
    layer.load_state_dict({**layer.state_dict(), "quantizer.mean": layer.quantizer.mean - 1.0})
    with torch.no_grad():
        layer.raw_weight.sub_(1.0)
    torch.testing.assert_close(layer(ids).detach(), before, rtol=1e-4, atol=1e-4)


def test_sparse_gradients_hold_the_rows_of_the_plan_alone(monkeypatch):
    layer = planned(monkeypatch, "9%", True, sparse=True)
    gradients(layer, torch.arange(100))
    (book,) = layer.quantizer.codebooks
    used = sum(size for (size,) in layer.capacity.codebook_shapes)
    assert len(book.grad.coalesce().values()) == -(-used // 256) <= len(book)
