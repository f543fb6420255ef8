"""torch.compile(fullgraph=True) of a training step: forward pass and loss in one graph, equal to the eager step."""

from __future__ import annotations

import copy

import pytest
import torch

import mgqe
from mgqe.checks.waiting import as_on_gpu
from mgqe.nn.context.hints import hints_of

N, DIM = 300, 16
COUNTS = torch.arange(N, 0, -1)
EVEN = {"counts": COUNTS, "num_centroids": (16, 8)}
LAYERS = {
    "dpq": (mgqe.DPQEmbedding, {"num_centroids": 16}),
    "even": (mgqe.MGQEmbedding, EVEN),
    "default": (mgqe.MGQEmbedding, {"counts": COUNTS}),
    "budget": (mgqe.MGQEmbedding, {"counts": COUNTS, "budget": "12%"}),
    "sx": (mgqe.MGQEmbedding, {**EVEN, "quantizer": "sx"}),
    "padding, bfloat16 rows": (mgqe.MGQEmbedding, {**EVEN, "padding_idx": 3, "rows": "bfloat16"}),
}


def make(kind, arguments):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"item": kind(N, DIM, **{"warmup_steps": 0, **arguments})})
    mgqe.start_quantizing(model)
    return model


def loss_of(model, ids):
    return model["item"](ids).square().mean() + mgqe.quantization_loss(model)


def one_step(model, ids, compute=loss_of):
    model.zero_grad()
    loss = compute(model, ids)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("kind", "arguments"), LAYERS.values(), ids=LAYERS)
def test_a_compiled_step_is_the_eager_one(kind, arguments):
    torch._dynamo.reset()
    model = make(kind, arguments)
    twin = copy.deepcopy(model)
    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    made = torch.Generator().manual_seed(1)
    for _ in range(2):
        ids = torch.randint(N, (6, 5), generator=made)
        with mgqe.one_graph(model):
            mine = one_step(model, ids, compiled)
        for a, b in zip(mine, one_step(twin, ids), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_one_compilation_does_for_all_steps_and_for_a_gpu():
    torch._dynamo.reset()
    model = make(*LAYERS["even"])
    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    with as_on_gpu(), mgqe.one_graph(model), torch._dynamo.config.patch(error_on_recompile=True):
        losses = [one_step(model, torch.arange(8) + step, compiled)[0] for step in range(4)]
    assert len({float(loss) for loss in losses}) == 4


def test_passes_are_not_counted_and_each_loss_is_read_once():
    model = make(*LAYERS["even"])
    with mgqe.one_graph(model):
        first = loss_of(model, torch.arange(9))
        assert mgqe.quantization_loss(model) == 0
    assert model["item"].schedule.passes == 0
    assert torch.equal(first, loss_of(model, torch.arange(9)))
    assert model["item"].schedule.passes == 1


def test_the_optimiser_is_told_of_codebooks_before_the_graph():
    model = make(*LAYERS["even"])
    assert not any(hints_of(book).follows_rows for book in model["item"].quantizer.codebooks)
    with mgqe.one_graph(model):
        assert all(hints_of(book).follows_rows for book in model["item"].quantizer.codebooks)


@pytest.mark.parametrize("arguments", [{"warmup_steps": 9}, {"rows": "sketch", "warmup_steps": 0}])
def test_layers_that_cannot_be_in_one_graph_are_named(arguments):
    model = torch.nn.ModuleDict({"item": mgqe.DPQEmbedding(N, DIM, num_centroids=16, **arguments)})
    says = r"^item: mgqe.one_graph\(\) takes layers whose codebooks have started"
    with pytest.raises(RuntimeError, match=says), mgqe.one_graph(model):
        pass
