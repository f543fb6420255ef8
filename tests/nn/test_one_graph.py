"""torch.compile(fullgraph=True) of a training step: forward pass and loss in one graph, equal to the eager step."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import pytest
import torch

import mgqe
from mgqe import ops
from mgqe.checks.waiting import as_on_gpu
from mgqe.codec.layout import BY_COLUMNS
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


def backend_with(graphs):
    """aot_eager, which keeps the operators of mgqe that forward and backward passes have."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def keep(module, inputs):
        names = (str(node.target) for node in module.graph.nodes)
        graphs.append([name.split(".")[1] for name in names if name.startswith("mgqe.")])
        return make_boxed_func(module.forward)

    return aot_autograd(fw_compiler=keep, bw_compiler=keep)


def step_of_a_gpu(model, ids, compiled):
    """A step with kernels; where there is no Triton, as if there were, which the twins are then in place of."""
    with pytest.MonkeyPatch.context() as patch, as_on_gpu():
        patch.setattr(ops, "quantizes_by_tier", lambda device: True)
        with mgqe.one_graph(model):
            return one_step(model, ids, compiled)


def step_without_kernels(model, ids, compiled):
    with as_on_gpu(), mgqe.one_graph(model):
        return one_step(model, ids, compiled)


VQ = ["quantize_in_graph"], ["scatter_in_graph"]
PLAN = ["transform", "quantize_in_graph", "transform"], ["scatter_in_graph"]
OPERATORS = {"dpq": VQ, "even": VQ, "default": PLAN, "budget": PLAN, "padding, bfloat16 rows": VQ}
OPERATORS["sx"] = ["choose_softly"], ["soft_gradients"]


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize(("name", "operators"), OPERATORS.items(), ids=OPERATORS)
def test_on_a_gpu_the_kernels_are_in_the_graph(name, operators, sparse, monkeypatch):
    """As operators of mgqe; SX by Triton's interpreter, the others by their twins, to which the kernels are equal."""
    if name == "sx" and find_spec("triton") is None:
        pytest.skip("needs Triton, which runs on CPUs by its interpreter: pip install triton")
    kind, arguments = LAYERS[name]
    model = make(kind, {**arguments, "sparse": sparse})
    twin = copy.deepcopy(model)
    if name != "sx":
        monkeypatch.setenv("MGQE_TRITON", "0")
    graphs, ids = [], torch.randint(N, (6, 5), generator=torch.Generator().manual_seed(2))
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, backend=backend_with(graphs), fullgraph=True)
    for _ in range(2):
        mine = step_of_a_gpu(model, ids, compiled)
        assert model["item"].raw_weight.grad.is_sparse == sparse
        for a, b in zip(mine, one_step(twin, ids), strict=True):
            torch.testing.assert_close(a.to_dense(), b.to_dense(), atol=1e-6, rtol=1e-4)
    assert tuple(graphs) == operators
    for a, b in zip(model["item"].quantizer.buffers(), twin["item"].quantizer.buffers(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)  # statistics of SX have moved alike


@pytest.mark.parametrize(("budget", "backward"), [("9%", ["scatter_in_graph"]), ("25%", [])])
def test_plans_of_large_tables_are_in_the_graph(budget, backward, monkeypatch):
    """Whose centroids are whole multiples of steps; with 25%, levels that coordinates share, and that do not train."""
    monkeypatch.setattr("mgqe.codec.planning.mixed.WHOLE_ROWS", 1)
    monkeypatch.setenv("MGQE_TRITON", "0")
    made = torch.Generator().manual_seed(0)
    rows = torch.randn(3000, 8, generator=made) * torch.linspace(2.0, 0.5, 8) @ torch.randn(8, 8, generator=made)
    layer = mgqe.MGQEmbedding(3000, 8, _weight=rows, counts=2000 // torch.arange(1, 3001), budget=budget)
    layer.start_quantizing()
    assert layer.capacity.matrix_dtype == BY_COLUMNS
    model = torch.nn.ModuleDict({"item": layer})
    twin, graphs, ids = copy.deepcopy(model), [], torch.arange(0, 900, 13)
    torch._dynamo.reset()
    mine = step_of_a_gpu(model, ids, torch.compile(loss_of, backend=backend_with(graphs), fullgraph=True))
    assert tuple(graphs) == (PLAN[0], backward)
    for a, b in zip(mine, one_step(twin, ids), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_one_compilation_does_for_all_steps_and_for_a_gpu():
    torch._dynamo.reset()
    model = make(*LAYERS["even"])
    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    with as_on_gpu(), mgqe.one_graph(model), torch._dynamo.config.patch(error_on_recompile=True):
        losses = [one_step(model, torch.arange(8) + step, compiled)[0] for step in range(4)]
    assert len({float(loss) for loss in losses}) == 4


SIZED = {
    "even": (*LAYERS["even"], step_of_a_gpu),
    "even, sparse": (mgqe.MGQEmbedding, {**EVEN, "sparse": True}, step_of_a_gpu),
    "default": (*LAYERS["default"], step_of_a_gpu),
    "sx, by torch's operators": (*LAYERS["sx"], step_without_kernels),
    "bag": (mgqe.MGQEmbeddingBag, {**EVEN, "mode": "sum"}, step_of_a_gpu),
    "bag by a plan": (mgqe.MGQEmbeddingBag, {"counts": COUNTS}, step_of_a_gpu),
}


@pytest.mark.parametrize(("kind", "arguments", "take_step"), SIZED.values(), ids=SIZED)
def test_batches_of_other_sizes_are_not_compiled_again(kind, arguments, take_step, monkeypatch):
    """The first size is compiled for itself, the second for all others: torch's own way where dynamic= is left out."""
    monkeypatch.setenv("MGQE_TRITON", "0")
    model = make(kind, arguments)
    twin, graphs, made = copy.deepcopy(model), [], torch.Generator().manual_seed(3)
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, backend=backend_with(graphs), fullgraph=True)
    for size in (6, 9, 40, 2, 257):
        ids = torch.randint(N, (size, 5), generator=made)
        for a, b in zip(take_step(model, ids, compiled), one_step(twin, ids), strict=True):
            torch.testing.assert_close(a.to_dense(), b.to_dense(), atol=1e-6, rtol=1e-4)
    assert len(graphs) == 2 * 2  # there and back, twice


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
