"""Gradients, losses and revival of the training modules, against the papers' formulas and against nn.Embedding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from mgqe import DPQEmbedding, MGQEmbedding, MGQEmbeddingBag, quantization_loss
from mgqe.codec.equations import codebook_loss, commitment_loss
from mgqe.nn.quantizers.vq import VQQuantizer

N, DIM = 200, 16
COUNTS = torch.arange(N) * 7 % 101
ALL = torch.arange(N)
LAYOUTS = {
    "two tiers": {"num_centroids": (16, 8)},
    "alike tiers": {"num_centroids": 16},
    "a codebook a tier": {"num_centroids": (16, 8), "share_codebook": False},
    "subspaces": {"capacity": "subspaces", "num_subspaces": (8, 4), "num_centroids": 8},
    "one codebook for all subspaces": {"num_centroids": 16, "share_subspaces": True},
    "int8": {"num_centroids": (16, 8), "centroid_dtype": "int8"},
    "padding": {"num_centroids": (16, 8), "padding_idx": 4},
    "counts divide": {"num_centroids": (16, 8), "scale_grad_by_freq": True},
    "commitment 0": {"num_centroids": (16, 8), "commitment": 0.0},
}


class Composed(VQQuantizer):
    """The same quantiser asked through ``forward``, autograd doing the rest: the oracle of the fast way."""

    def forward(self, rows, groups, counts):
        return super().forward(rows, groups, counts)


def make(cls=MGQEmbedding, **arguments):
    torch.manual_seed(0)
    layer = cls(N, DIM, **{"counts": COUNTS, "warmup_steps": 0, "num_centroids": (16, 8), **arguments})
    layer.start_quantizing()
    return layer


def composed(layer):
    twin = copy.deepcopy(layer)
    twin.quantizer.__class__ = Composed
    assert layer.quantizer.is_fused
    assert not twin.quantizer.is_fused
    return twin


def assert_same_gradients(layer, twin):
    for (name, parameter), other in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert parameter.grad.is_sparse == other.grad.is_sparse
        assert torch.allclose(parameter.grad.to_dense(), other.grad.to_dense(), rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("arguments", LAYOUTS.values(), ids=LAYOUTS)
def test_the_fast_pass_is_the_composed_one(arguments, sparse):
    layer = make(sparse=sparse, **arguments)
    twin = composed(layer)
    ids, pull = torch.randint(20, (3, 30)), torch.randn(3, 30, DIM)
    losses = []
    for module in (layer, twin):
        out = module(ids)
        losses.append(quantization_loss(module))
        ((out * pull).sum() + 3 * losses[-1]).backward()
    assert torch.equal(layer(ids), twin(ids))
    assert torch.allclose(*losses)
    assert_same_gradients(layer, twin)


# Not "counts divide": the second derivative of torch's own F.embedding leaves the division out.
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "counts divide"])
def test_a_gradient_penalty_is_that_of_the_composed_pass(name):
    layer = make(**LAYOUTS[name])
    twin = composed(layer)
    ids, pull = torch.randint(20, (3, 30)), torch.randn(3, 30, DIM)
    for module in (layer, twin):
        vectors = module(ids)
        loss = (pull * vectors.tanh()).sum() + 3 * quantization_loss(module)
        gradients = torch.autograd.grad(loss, list(module.parameters()), create_graph=True)
        (loss + sum(g.square().sum() for g in gradients)).backward()
    assert_same_gradients(layer, twin)


def test_a_gradient_penalty_by_hand_where_counts_divide():
    """Loss = sum of pull * vector^2; the row's gradient g is the mean over its two calls; the penalty is ||g||^2."""
    layer = make(scale_grad_by_freq=True, commitment=0.0)
    pull = torch.tensor([[1.0], [3.0]])
    vectors = layer(torch.tensor([7, 7]))
    (gradient,) = torch.autograd.grad((pull * vectors.square()).sum(), [layer.raw_weight], create_graph=True)
    value = vectors[0].detach()
    assert torch.allclose(gradient[7], (1 + 3) * 2 * value / 2)
    gradient.square().sum().backward()
    # d||g||^2 / d vector_i = 2 g * pull_i; straight through to the row, the mean over the two calls.
    assert torch.allclose(layer.raw_weight.grad[7], 2 * gradient[7].detach() * 2 * (1 + 3) / 2 / 2)


def test_a_gradient_penalty_with_sparse_gradients_is_refused():
    layer = make(sparse=True)
    loss = layer(torch.arange(5)).square().sum()
    with pytest.raises(RuntimeError, match="sparse=False"):
        torch.autograd.grad(loss, [layer.raw_weight], create_graph=True)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_the_fast_pass_of_bags(mode):
    layer = make(MGQEmbeddingBag, mode=mode, padding_idx=4)
    twin = composed(layer)
    for module in (layer, twin):
        bags = module(torch.randint(9, (5, 7), generator=torch.manual_seed(1)))
        (bags.square().sum() + quantization_loss(module)).backward()
    assert_same_gradients(layer, twin)


def test_each_loss_may_have_a_backward_pass_of_its_own():
    layer = make()
    twin = copy.deepcopy(layer)
    layer(torch.arange(5)).square().sum().backward()
    quantization_loss(layer).backward()
    (twin(torch.arange(5)).square().sum() + quantization_loss(twin)).backward()
    assert_same_gradients(layer, twin)


def test_loss_by_hand():
    layer = make(num_centroids=8, commitment=0.5, padding_idx=0)
    ids = torch.tensor([3, 3, 0, 7])
    out = layer(ids)
    rows, counts = layer.raw_weight[[3, 7]], torch.tensor([2, 1])
    vectors = out[[0, 3]]
    expected = codebook_loss(rows, vectors, counts) + 0.5 * commitment_loss(rows, vectors, counts)
    assert torch.allclose(quantization_loss(layer), expected)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("scale", [False, True])
def test_row_gradients_are_those_of_nn_embedding(sparse, scale):
    layer = make(sparse=sparse, scale_grad_by_freq=scale)
    full = nn.Embedding(N, DIM, scale_grad_by_freq=scale)
    ids, pull = torch.tensor([[1, 1, 1], [2, 5, 5]]), torch.randn(2, 3, DIM)
    (layer(ids) * pull).sum().backward()
    (full(ids) * pull).sum().backward()
    assert torch.allclose(layer.raw_weight.grad.to_dense(), full.weight.grad, atol=1e-6)
    assert all(p.grad is None for p in layer.quantizer.parameters())  # no loss was asked for: nothing to learn


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_accumulate_to_those_of_one_batch(sparse):
    layer = make(sparse=sparse)
    twin = copy.deepcopy(layer)
    ids, pull = torch.randint(N, (64,)), torch.randn(64, DIM)
    ((layer(ids) * pull).mean() + quantization_loss(layer)).backward()
    for half in (slice(32), slice(32, 64)):
        (((twin(ids[half]) * pull[half]).mean() + quantization_loss(twin)) / 2).backward()
    assert_same_gradients(layer, twin)


def test_a_graph_that_is_kept_runs_backward_twice():
    layer = make()
    loss = layer(torch.arange(5)).square().sum() + quantization_loss(layer)
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in layer.parameters()]
    loss.backward()
    assert all(torch.allclose(p.grad, 2 * g) for p, g in zip(layer.parameters(), once, strict=True))


def test_parts_that_are_held_still():
    rows = make(_freeze=True)
    (rows(torch.arange(5)).sum() + quantization_loss(rows)).backward()
    assert rows.raw_weight.grad is None
    assert rows.quantizer.codebooks[0].grad.any()
    books = make()
    books.quantizer.requires_grad_(False)
    (books(torch.arange(5)).sum() + quantization_loss(books)).backward()
    assert books.raw_weight.grad.any()
    assert books.quantizer.codebooks[0].grad is None
    nothing = make().requires_grad_(False)
    assert not nothing(torch.arange(5)).requires_grad


@pytest.mark.parametrize("quantizer", ["vq", "sx"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_batch_of_nothing_but_padding(quantizer, sparse):
    layer = make(padding_idx=3, quantizer=quantizer, num_centroids=(16, 8), sparse=sparse)
    before = copy.deepcopy(layer.state_dict())
    out = layer(torch.tensor([3, 3]))
    assert not out.any()
    (out.sum() + quantization_loss(layer)).backward()
    assert all(p.grad is None or not p.grad.to_dense().any() for p in layer.parameters())
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items() if name != "steps")


@pytest.mark.parametrize("cls", [MGQEmbedding, MGQEmbeddingBag])
def test_padding_is_zeros_in_every_state_whatever_its_row_holds(cls):
    rows = torch.randn(N, DIM)
    layer = cls.from_pretrained(rows, counts=COUNTS, padding_idx=3, warmup_steps=2)
    other = layer(torch.tensor([[3, 4]])).detach()
    for _ in range(4):  # the warm-up and after it
        ids = torch.tensor([[3]])
        assert not layer(ids).any()
        assert not layer.eval()(ids).any()
        layer.train()
    assert layer.quantizing
    assert other.any()
    assert not layer.freeze().lookup(torch.tensor(3)).any()


@pytest.mark.parametrize("quantizer", ["vq", "sx"])
def test_max_norm_reaches_codes_and_table(quantizer):
    layer = make(max_norm=0.5, quantizer=quantizer, num_centroids=(16, 8))
    layer(torch.arange(9)).sum().backward()
    layer.eval()
    table = layer.freeze()
    assert (layer.raw_weight.norm(dim=1) <= 0.5 + 1e-6).all()
    assert torch.equal(layer(ALL), table.to_dense())


def test_training_mode_without_gradients_neither_counts_nor_leaves_a_loss():
    layer = DPQEmbedding(N, DIM, num_centroids=8, warmup_steps=1)
    with torch.no_grad():
        for _ in range(3):
            layer(ALL)
        assert not layer.quantizing
        assert quantization_loss(layer) == 0
        layer.start_quantizing()
        layer(ALL)
        assert quantization_loss(layer) == 0


def test_evaluation_does_not_report_the_loss_of_training():
    layer = make()
    (layer(ALL).sum() + quantization_loss(layer)).backward()
    layer.eval()(ALL)
    assert quantization_loss(layer) == 0
    layer.train()(ALL)
    layer.eval()(ALL)  # figures looked at between a forward pass and its loss
    assert quantization_loss(layer) > 0


@pytest.mark.parametrize("quantizer", ["vq", "sx"])
def test_a_compiled_layer_is_not_compiled_again_at_every_step(quantizer):
    torch._dynamo.reset()
    layer = MGQEmbedding(N, DIM, counts=COUNTS, num_centroids=(8, 4), quantizer=quantizer, warmup_steps=2)
    counter = CompileCounter()
    compiled = torch.compile(layer, backend=counter)
    optimizer = torch.optim.Adam(layer.parameters())
    counted = []
    for _ in range(9):
        loss = compiled(torch.randint(N, (32,))).square().sum() + quantization_loss(layer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        counted.append(counter.frame_count)
    assert layer.quantizing
    assert counted[4] == counted[-1]


@pytest.mark.parametrize("quantizer", ["vq", "sx"])
@pytest.mark.parametrize("share_codebook", [True, False])
@pytest.mark.parametrize("tiers", [[0, N], [N, 0], [50, 0, 150]])
def test_tiers_without_ids(tiers, share_codebook, quantizer):
    arguments = {"num_centroids": 8, "share_codebook": share_codebook, "quantizer": quantizer}
    layer = make(counts=None, tiers=tiers, **arguments)
    (layer(ALL).square().sum() + quantization_loss(layer)).backward()
    layer.revive()
    layer.eval()
    assert torch.equal(layer(ALL), layer.freeze().to_dense())
    assert all(parameter.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("quantizer", ["vq", "sx"])
def test_a_table_of_equal_rows(quantizer, value):
    layer = make(_weight=torch.full((N, DIM), value), quantizer=quantizer, num_centroids=(16, 8))
    (layer(ALL).square().sum() + quantization_loss(layer)).backward()
    layer.revive()
    layer.eval()
    rows = layer.freeze().to_dense()
    assert torch.equal(layer(ALL), rows)
    assert torch.allclose(rows, torch.full_like(rows, value), atol=0.02)


def test_more_centroids_than_rows_to_start_from():
    layer = DPQEmbedding(70, DIM, num_subspaces=4, num_centroids=256, share_subspaces=True, padding_idx=0)
    layer.start_quantizing()
    book = layer.quantizer.codebooks[0][0]
    assert book.isfinite().all()
    assert len(book.unique(dim=0)) == 256


def test_the_start_of_a_huge_codebook_is_bounded():
    from mgqe.codec.kmeans import KMEANS, WORK_LIMIT, revive_interval, revive_size, sample_size

    assert sample_size(256, 64) * 64 * 256 * KMEANS.iterations < WORK_LIMIT  # the usual case is not cut
    assert sample_size(65_536, 64) * 64 * 65_536 <= WORK_LIMIT
    assert sample_size(65_536, 4096) == 65_536  # but as many rows as centroids there must be
    assert revive_interval(revive_size(256)) == 100
    assert revive_interval(revive_size(65_536)) > 10_000
