"""`weight` of a quantised layer: the parameter in the warm-up, then the decoded table with its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mgqe import DPQEmbedding, MGQEmbedding, MGQEmbeddingBag, quantization_loss

N, DIM = 60, 8
COUNTS = torch.arange(N) * 7 % 31 + 1
ALL = torch.arange(N)


def make(cls=MGQEmbedding, started: bool = True, **arguments) -> MGQEmbedding:
    torch.manual_seed(0)
    layer = cls(N, DIM, counts=COUNTS, num_subspaces=4, num_centroids=(6, 6), **arguments)
    if started:
        layer.start_quantizing()
    return layer


def test_in_the_warm_up_it_is_the_parameter():
    layer = make(started=False)
    assert layer.weight is layer.raw_weight
    assert isinstance(layer.weight, nn.Parameter)
    assert next(name for name, _ in layer.named_parameters()) == "weight"
    tied = nn.Linear(DIM, N, bias=False)
    tied.weight = layer.weight
    layer.weight = nn.Parameter(torch.zeros(N, DIM))
    assert not layer(ALL).any()
    assert tied.weight.any()


@pytest.mark.parametrize("quantizer", ["vq", "sx"])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_then_it_is_the_decoded_table(quantizer, padding_idx):
    layer = make(quantizer=quantizer, padding_idx=padding_idx).eval()
    assert torch.equal(layer.weight, layer(ALL))
    assert torch.equal(layer.weight, layer.freeze().to_dense())
    assert layer.weight.dtype == layer.raw_weight.dtype
    assert not layer.raw_weight.equal(layer.weight)
    with torch.no_grad():
        assert not layer.weight.requires_grad


def test_gradients_go_straight_through():
    layer, hidden = make(), torch.randn(5, DIM)
    target = torch.randn(5, N)
    (F.linear(hidden, layer.weight) * target).sum().backward()
    torch.testing.assert_close(layer.raw_weight.grad, target.T @ hidden)
    assert not layer.quantizer.codebooks[0].grad  # they follow the rows through the loss
    quantization_loss(layer).backward()
    assert layer.quantizer.codebooks[0].grad.any()


def test_the_loss_is_that_of_all_rows_and_is_counted_once_a_step():
    layer = make(commitment=0.5)
    error = (layer.raw_weight - layer.weight).square().mean()
    assert quantization_loss(layer).item() == pytest.approx(1.5 * error.item(), rel=1e-5)
    before = int(layer.steps)
    layer.eval()
    layer.weight  # noqa: B018  neither evaluation
    layer.train()
    with torch.no_grad():
        layer.weight  # noqa: B018  nor a reading without gradients counts
    assert int(layer.steps) == before


def test_an_output_layer_alone_trains_the_codebooks():
    layer = make()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    hidden, target = torch.randn(64, DIM), torch.randint(N, (64,))
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(hidden @ layer.weight.T, target)
        optimizer.zero_grad()
        (loss + quantization_loss(layer)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert len(layer.losses) <= 2


@pytest.mark.parametrize("training", [True, False])
def test_compiles(training):
    torch._dynamo.reset()
    layer = make().train(training)
    output = torch.compile(lambda h: F.linear(h, layer.weight), backend="aot_eager", fullgraph=not training)
    hidden = torch.randn(3, DIM)
    torch.testing.assert_close(output(hidden), F.linear(hidden, layer.weight))


def test_a_bag_has_it_too():
    layer = make(MGQEmbeddingBag, mode="sum").eval()
    assert torch.equal(layer(ALL.unsqueeze(1)), layer.weight)


@pytest.mark.parametrize("quantizer", ["vq", "sx"])
def test_a_padding_row_that_is_kept_is_quantised_and_does_not_train(quantizer):
    layer = make(started=False, padding_idx=4, quantizer=quantizer)
    with torch.no_grad():
        layer.weight[4] = torch.linspace(-1, 1, DIM)
    assert not layer(torch.tensor([4])).any()
    layer.zero_padding = False
    assert torch.equal(layer(torch.tensor([4])), layer.weight[4:5])
    layer.start_quantizing()
    vectors = layer(torch.tensor([4, 4, 2]))
    assert vectors[0].any()
    (vectors.sum() + quantization_loss(layer)).backward()
    assert not layer.raw_weight.grad[4].any()
    assert layer.raw_weight.grad[2].any()
    layer.eval()
    assert torch.equal(layer.freeze().lookup(ALL), layer(ALL))


def test_a_thorough_start_is_better():
    torch.manual_seed(0)
    rows = torch.randn(3000, DIM) * torch.rand(3000, 1).exp()
    from mgqe.codec.kmeans import THOROUGH

    errors = []
    for effort in ({}, {"kmeans": THOROUGH}):
        layer = DPQEmbedding.from_pretrained(rows, num_subspaces=4, num_centroids=64)
        layer.start_quantizing(**effort)
        errors.append(float((layer.eval().weight.detach() - rows).square().mean()))
    assert errors[1] < 0.97 * errors[0]
