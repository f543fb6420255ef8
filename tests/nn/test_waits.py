"""A training step on a GPU waits for nothing: counted on the CPU, where layers take the ways of a GPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from replay import Recording
from waits import Waits

import mgqe
from mgqe.checks.waiting import as_on_gpu
from mgqe.nn.rows import CachedRows

N, DIM = 300, 16
COUNTS = torch.arange(N, 0, -1)
EVEN = {"num_centroids": (16, 8)}
LAYERS = {
    "default": (mgqe.MGQEmbedding, {"counts": COUNTS}),
    "budget": (mgqe.MGQEmbedding, {"counts": COUNTS, "budget": "12%"}),
    "even": (mgqe.MGQEmbedding, {"counts": COUNTS, **EVEN}),
    "even, shuffled": (mgqe.MGQEmbedding, {"counts": torch.arange(N) * 7 % 101, **EVEN}),
    "subspaces": (mgqe.MGQEmbedding, {"counts": COUNTS, "capacity": "subspaces", "num_subspaces": (8, 4)}),
    "padding, int8": (mgqe.MGQEmbedding, {"counts": COUNTS, "padding_idx": 3, "centroid_dtype": "int8", **EVEN}),
    "bfloat16 rows": (mgqe.MGQEmbedding, {"counts": COUNTS, "rows": "bfloat16", **EVEN}),
    "narrow": (mgqe.DPQEmbedding, {"rows": "narrow", "quantizer": "sx", "num_centroids": 16}),
    "sketch": (mgqe.DPQEmbedding, {"rows": "sketch", "num_centroids": 16}),
    "sx": (mgqe.MGQEmbedding, {"counts": COUNTS, "quantizer": "sx", **EVEN}),
    "dpq": (mgqe.DPQEmbedding, {"num_centroids": 16}),
    "by frequency": (mgqe.DPQEmbedding, {"num_centroids": 16, "scale_grad_by_freq": True}),
    "bag": (mgqe.MGQEmbeddingBag, {"counts": COUNTS, "mode": "sum", "padding_idx": 3}),
    "dpq bag": (mgqe.DPQEmbeddingBag, {"num_centroids": 16}),
}
each_layer = pytest.mark.parametrize(("make", "arguments"), LAYERS.values(), ids=LAYERS)
both = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])


@pytest.fixture(autouse=True)
def without_triton(monkeypatch):
    """Whose interpreter is slow, and reads what it computes with."""
    monkeypatch.setenv("MGQE_TRITON", "0")


WAITING = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x[0]),
    "a condition": lambda x: 1 if x[0] > 0 else 2,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "a mask": lambda x: x[x > 0],
    "a mask that is set": lambda x: x.__setitem__(x > 0, torch.zeros(3)),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "a list": lambda x: x[[0, 2]],
    "equal": lambda x: torch.equal(x, x + 1),
    "allclose": lambda x: torch.allclose(x, x + 1),
    "bincount": lambda x: x.long().bincount(),
    "torch.tensor": lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("use", WAITING.values(), ids=WAITING)
def test_what_waits_is_counted(use):
    """Also what is no operator of torch on the CPU, so that this counter can fail."""
    with as_on_gpu(), Waits() as waits:
        use(torch.arange(1.0, 4.0))
    assert waits.counts.total() >= 1


def test_what_does_not_wait_is_not_counted():
    x, state = torch.arange(3.0), torch.arange(2)
    with Waits(state) as waits:
        torch.where(x > 0, x, 0.0).masked_fill_(x > 1, 0.0).index_select(0, torch.arange(2)).sum()
        x[1:], x.shape[0], x.numel(), x[torch.arange(2)], int(state[0]), state.tolist()
    assert waits.counts == {}


def make_layer(make, arguments, warm_up=0, **more):
    torch.manual_seed(0)
    return make(N, DIM, **{"warmup_steps": warm_up, **arguments, **more})


def batches():
    made = torch.Generator().manual_seed(1)
    return [torch.randint(N, (8, 6), generator=made) for _ in range(5)]


def step(layer, optimizer, ids):
    optimizer.zero_grad()
    loss = layer(ids).square().mean() + mgqe.quantization_loss(layer)
    loss.backward()
    optimizer.step()


def host_state(layer):
    return [buffer for name, buffer in layer.named_buffers() if name == "store.state"]


def test_the_state_of_a_store_stays_on_the_cpu():
    for rows in ("sketch", "cached"):
        layer = make_layer(mgqe.DPQEmbedding, {"rows": rows, "num_centroids": 16})
        (state,) = host_state(layer)
        assert host_state(layer.to("meta")) == [state]


@both
@each_layer
def test_a_step_waits_for_nothing(make, arguments, sparse):
    layer = make_layer(make, arguments, sparse=sparse)
    optimizer = mgqe.RowwiseAdagrad(layer.parameters(), lr=0.01)
    first, second, *rest = batches()
    with as_on_gpu():
        step(layer, optimizer, first)  # starts the codebooks, and keeps what later steps need
        step(layer, optimizer, second)
        with Waits(*host_state(layer)) as waits:
            for ids in rest:
                step(layer, optimizer, ids)
    assert layer.quantizing
    assert waits.counts == {}


@both
@each_layer
def test_a_step_of_the_warm_up_waits_for_nothing(make, arguments, sparse):
    if sparse and "scale_grad_by_freq" in arguments:
        return  # torch refuses the two together
    layer = make_layer(make, arguments, warm_up=100, sparse=sparse)
    optimizer = mgqe.RowwiseAdagrad(layer.parameters(), lr=0.01)
    first, second, *rest = batches()
    with as_on_gpu():
        step(layer, optimizer, first)
        step(layer, optimizer, second)
        with Waits(*host_state(layer)) as waits:
            for ids in rest:
                step(layer, optimizer, ids)
    assert not layer.quantizing
    assert waits.counts == {}


@each_layer
def test_a_step_has_nothing_to_do_with_the_cpu(make, arguments):
    """`meta` stands in for a GPU: a tensor of the CPU in between would be copied, or be an error."""
    layer = make_layer(make, arguments)
    layer.start_quantizing()
    layer.to("meta")
    optimizer = mgqe.RowwiseAdagrad(layer.parameters(), lr=0.01)
    first, second, third, *_ = (ids.to("meta") for ids in batches())
    with as_on_gpu():
        step(layer, optimizer, first)
        step(layer, optimizer, second)
        with Waits(*host_state(layer)) as waits:
            step(layer, optimizer, third)
    assert layer.raw_weight.grad.is_meta
    state = {"select": 2, "_local_scalar_dense": 2} if host_state(layer) else {}
    assert waits.with_the_cpu == state


def test_what_does_wait_is_what_the_page_says():
    """docs/gpu.md: rows="cached" and max_norm."""
    first, second, third, *_ = batches()
    for arguments, expected in (({"rows": CachedRows(cache_rows=256)}, True), ({"max_norm": 1.0}, True), ({}, False)):
        layer = make_layer(mgqe.DPQEmbedding, {"num_centroids": 16, **arguments})
        optimizer = mgqe.RowwiseAdagrad(layer.parameters(), lr=0.01)
        with as_on_gpu():
            step(layer, optimizer, first)
            step(layer, optimizer, second)
            with Waits() as waits:
                step(layer, optimizer, third)
        assert bool(waits.counts) == expected, arguments


@both
@each_layer
def test_a_step_of_the_warm_up_is_that_of_the_cpu(make, arguments, sparse):
    if sparse and "scale_grad_by_freq" in arguments:
        return
    ids = batches()[0]
    mine = make_layer(make, arguments, warm_up=100, sparse=sparse)
    theirs = copy.deepcopy(mine)
    mine(ids).square().sum().backward()
    with as_on_gpu():
        theirs(ids).square().sum().backward()
    assert torch.equal(theirs(ids), mine(ids))
    torch.testing.assert_close(theirs.raw_weight.grad.to_dense(), mine.raw_weight.grad.to_dense())


@both
@each_layer
def test_a_step_is_that_of_the_cpu(make, arguments, sparse):
    """But for codes that sums in another order decide: SX chooses by float32 scores, of which narrow rows have ties."""
    if arguments.get("rows") == "narrow":
        return
    ids = batches()[0]
    mine = make_layer(make, arguments, sparse=sparse)
    mine.start_quantizing()
    theirs = copy.deepcopy(mine)
    results = []
    for layer, context in ((mine, torch.enable_grad()), (theirs, as_on_gpu())):
        with context:
            out = layer(ids)
            loss = mgqe.quantization_loss(layer)
            (out.square().sum() + loss).backward()
        gradients = [p.grad.to_dense() for p in layer.parameters() if p.grad is not None]
        results.append([out.detach(), loss.detach(), *gradients])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)


@both
@pytest.mark.parametrize("arguments", [{"counts": COUNTS}, {"counts": COUNTS, "padding_idx": 3, **EVEN}])
def test_distinct_ids_change_nothing_and_wait_for_nothing(arguments, sparse):
    mine = make_layer(mgqe.MGQEmbedding, arguments, sparse=sparse)
    mine.start_quantizing()
    theirs = copy.deepcopy(mine)
    theirs.distinct_on_gpu = True
    ids, results, looked_up = batches()[0], [], []
    whole = mgqe.ops.unique_padded
    for layer in (mine, theirs):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        with as_on_gpu():
            for _ in range(2):
                step(layer, optimizer, ids)  # keeps what later steps need
        optimizer.zero_grad()
        with as_on_gpu(), pytest.MonkeyPatch.context() as patch, Waits() as waits:
            patch.setattr(mgqe.ops, "unique_padded", lambda ids: (looked_up.append(ids), whole(ids))[1])
            out = layer(ids)
            loss = mgqe.quantization_loss(layer)
            (out.square().sum() + loss).backward()
        gradients = [p.grad.to_dense() for p in layer.parameters() if p.grad is not None]
        results.append([out.detach(), loss.detach(), *gradients])
        assert waits.counts == {}
    assert len(looked_up) == 1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sparse", [False, True])
def test_an_optimizers_step_is_that_of_the_cpu(sparse):
    results = []
    for context in (torch.enable_grad(), as_on_gpu()):
        layer = make_layer(mgqe.DPQEmbedding, {"num_centroids": 16, "sparse": sparse})
        layer.start_quantizing()
        optimizer = mgqe.RowwiseAdagrad(layer.parameters(), lr=0.1, weight_decay=0.01)
        with context:
            for ids in batches():
                step(layer, optimizer, ids)
        results.append(layer.raw_weight.detach())
    torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-3)


# ---- replayed as CUDA graphs are ---------------------------------------------------------------------------------

CAPTURED = [name for name in LAYERS if name not in ("sketch", "narrow")]  # which mgqe.one_graph refuses


@pytest.mark.parametrize("name", CAPTURED)
def test_a_replayed_step_is_that_of_other_ids(name):
    layer = make_layer(*LAYERS[name])
    layer.start_quantizing()
    ids, optimizer = batches()[0], mgqe.RowwiseAdagrad(layer.parameters(), lr=0.01)

    with as_on_gpu(), mgqe.one_graph(layer):
        step(layer, optimizer, ids)
        step(layer, optimizer, ids)
        with Recording() as recording:
            step(layer, optimizer, ids)
        twin = copy.deepcopy(layer)
        eager = mgqe.RowwiseAdagrad(twin.parameters(), lr=0.01)
        eager.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        before = layer.raw_weight.detach().clone()
        for others in batches()[1:3]:
            ids.copy_(others)
            recording.replay()
            with mgqe.one_graph(twin):
                step(twin, eager, others)
    assert not torch.equal(layer.raw_weight, before)
    for (key, mine), theirs in zip(layer.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def test_a_step_that_branches_on_its_ids_is_told():
    ids, total = torch.tensor([1, 2, 3]), torch.zeros(())
    with Recording() as recording:
        total.add_(ids[ids > 1].sum())
    ids.copy_(torch.tensor([0, 0, 2]))
    with pytest.raises(AssertionError, match="made another shape"):
        recording.replay()


# ---- ids out of range ----------------------------------------------------------------------------------------


def waiting_points(layer):
    return {
        "check_ids": lambda: mgqe.check_ids(torch.nn.Sequential(layer)),
        "eval": layer.eval,
        "state_dict": layer.state_dict,
        "freeze": layer.freeze,
        "start": layer.start_quantizing,
        "to": layer.double,
    }


@pytest.mark.parametrize("point", ["check_ids", "eval", "state_dict", "freeze", "start", "to"])
@pytest.mark.parametrize(("wrong", "named"), [(N, N), (-1, -1), (N + 5, N + 5)])
def test_ids_out_of_range_are_an_error_at_the_next_wait(point, wrong, named):
    layer = make_layer(mgqe.DPQEmbedding, {"num_centroids": 16}, warm_up=100)
    with as_on_gpu():
        vectors = layer(torch.tensor([2, wrong, 5]))
        assert torch.equal(vectors[1], layer.raw_weight[min(max(wrong, 0), N - 1)])
        layer(torch.tensor([1]))
    with pytest.raises(IndexError, match=rf"id {named} is out of range.*DPQEmbedding of 300 x 16 are 0 to 299"):
        waiting_points(layer)[point]()
    waiting_points(layer)[point]()  # it is raised once


def test_the_error_names_the_layers_path():
    model = torch.nn.ModuleDict({"item": make_layer(mgqe.DPQEmbedding, {"num_centroids": 16})})
    with as_on_gpu():
        model["item"](torch.tensor([N]))
    with pytest.raises(IndexError, match=r"^item: id 300 "):
        mgqe.check_ids(model)
    mgqe.check_ids(model)


def test_compiled_layers_note_ids_too():
    layer = make_layer(mgqe.DPQEmbedding, {"num_centroids": 16})
    layer.start_quantizing()
    layer.eval()
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with as_on_gpu():
        assert torch.allclose(compiled(torch.tensor([3, 3, 7])), layer(torch.tensor([3, 3, 7])))
        compiled(torch.tensor([3, N, 7]))
    with pytest.raises(IndexError, match="id 300"):
        layer.check_ids()


def test_on_the_cpu_the_pass_itself_raises():
    layer = make_layer(mgqe.DPQEmbedding, {"num_centroids": 16})
    with pytest.raises(IndexError, match="300"):
        layer(torch.tensor([N]))
    mgqe.check_ids(layer)


def test_ids_of_inference_mode_are_noted():
    layer = make_layer(mgqe.DPQEmbedding, {"num_centroids": 16}).eval()
    with as_on_gpu(), torch.inference_mode():
        layer(torch.tensor([N]))
        layer(torch.tensor([0]))
    with pytest.raises(IndexError, match="id 300"):
        layer.check_ids()
