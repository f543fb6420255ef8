"""The training modules on a GPU; where there is none, on the CPU by the ways of a GPU.

These tests look for tensors on the wrong device, which a GPU alone shows, and for differences from the same layer on
the CPU. Where Triton is installed, its kernels take part, without a GPU in its interpreter.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

import mgqe
from mgqe import MGQEmbedding, MGQEmbeddingBag, quantization_loss
from mgqe.checks.waiting import as_on_gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N, DIM = 200, 16
COUNTS = torch.arange(N) * 7 % 101
QUANTIZERS = {
    "vq": {"num_centroids": (16, 8)},
    "sx": {"quantizer": "sx", "num_centroids": (16, 8)},
    "subspaces": {"capacity": "subspaces", "num_subspaces": (8, 4), "num_centroids": 8},
    "padding, int8": {"padding_idx": 3, "centroid_dtype": "int8"},
    "frequency order": {"counts": None, "tiers": [20, 180]},
}
each_quantizer = pytest.mark.parametrize("arguments", QUANTIZERS.values(), ids=QUANTIZERS)


def there():
    """Around what is to happen on the GPU."""
    return nullcontext() if DEVICE == "cuda" else as_on_gpu()


def make(cls=MGQEmbedding, **arguments):
    torch.manual_seed(0)
    layer = cls(N, DIM, **{"counts": COUNTS, "warmup_steps": 0, **arguments})
    layer.start_quantizing()
    return layer


@pytest.mark.parametrize("sparse", [False, True])
@each_quantizer
def test_a_pass_is_that_of_the_cpu(arguments, sparse):
    layer = make(sparse=sparse, **arguments)
    twin = copy.deepcopy(layer).to(DEVICE)
    ids = torch.randint(N, (4, 16))
    for module, given, where in ((layer, ids, nullcontext()), (twin, ids.to(DEVICE), there())):
        with where:
            out = module(given)
            assert out.device == given.device
            (out.square().mean() + quantization_loss(module)).backward()
    with there():
        out = twin(ids.to(DEVICE)).cpu()
    assert torch.allclose(out, layer(ids), atol=1e-5)
    for mine, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        assert theirs.grad.device.type == DEVICE
        assert torch.allclose(theirs.grad.cpu().to_dense(), mine.grad.to_dense(), atol=1e-5)


@each_quantizer
def test_training_revival_freezing(arguments, tmp_path):
    torch.manual_seed(0)
    layer = MGQEmbedding(N, DIM, **{"counts": COUNTS, "warmup_steps": 3, "device": DEVICE, **arguments})
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    ids = torch.arange(N)
    with there():
        for _ in range(6):
            loss = layer(torch.randint(N, (32,), device=DEVICE)).square().mean() + quantization_loss(layer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        layer.revive()
        assert layer.quantizing
        assert all(value.device.type == DEVICE for value in layer.state_dict().values())
        vectors, frozen = layer.eval()(ids.to(DEVICE)).cpu(), layer.freeze()
        read = frozen.to(DEVICE).lookup(ids.to(DEVICE)).cpu()
    assert frozen.device.type == "cpu"
    mgqe.save(frozen, tmp_path / "table")
    table = mgqe.load(tmp_path / "table")  # for the CPU's kernels
    assert torch.equal(vectors, table.lookup(ids))
    assert torch.equal(read, table.lookup(ids))
    on_cpu = MGQEmbedding(N, DIM, **{"counts": COUNTS, **arguments})
    on_cpu.load_state_dict(layer.state_dict())
    same = (on_cpu.eval()(ids) == table.lookup(ids)).all(1)
    assert same.float().mean() > 0.95  # but for codes that rounding decides, where statistics are folded into keys


def test_bags():
    layer = make(MGQEmbeddingBag, mode="sum", padding_idx=3)
    twin = copy.deepcopy(layer).to(DEVICE)
    ids = torch.randint(9, (5, 7))
    with there():
        bags = twin(ids.to(DEVICE))
        (bags.sum() + quantization_loss(twin)).backward()
    assert torch.allclose(bags.detach().cpu(), layer(ids).detach(), atol=1e-5)
    assert twin.raw_weight.grad.device.type == DEVICE


def test_calibration_is_that_of_the_cpu():
    torch.manual_seed(0)
    mine = torch.nn.ModuleDict({"item": make(**QUANTIZERS["vq"]), "tag": torch.nn.Embedding(N, 4)})
    theirs = copy.deepcopy(mine).to(DEVICE)
    batches = [torch.randint(N, (32,)) for _ in range(3)]

    def loss_of(model, ids):
        return (model["item"](ids)[:, :4] * model["tag"](ids)).exp().mean()

    found = mgqe.calibrate(mine, batches, loss_of, progress=False)
    with there():
        made = mgqe.calibrate(theirs, [ids.to(DEVICE) for ids in batches], loss_of, progress=False)
    assert found.metrics.keys() == made.metrics.keys() == {"item", "tag"}
    for path, metric in found.metrics.items():
        torch.testing.assert_close(made.metrics[path].matrix.cpu(), metric.matrix, rtol=1e-4, atol=1e-6)
    assert made.mean_loss == pytest.approx(found.mean_loss, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    layer = make(dtype=dtype).to(DEVICE)
    with there():
        out = layer(torch.arange(9, device=DEVICE))
        (out.sum() + quantization_loss(layer)).backward()
    assert out.dtype == dtype
    assert layer.raw_weight.grad.dtype == dtype


def test_made_where_torch_makes_tensors_by_default():
    with there(), torch.device(DEVICE):
        layer = MGQEmbedding(N, DIM, counts=torch.arange(N) % 7, warmup_steps=0)
        assert layer.weight.device.type == DEVICE
        (layer(torch.arange(9)).sum() + quantization_loss(layer)).backward()
        table = layer.freeze()
    assert table.lookup(torch.arange(9)).shape == (9, DIM)


@pytest.mark.parametrize("training", [True, False])
@each_quantizer
def test_compiles(arguments, training):
    torch._dynamo.reset()
    layer = make(**arguments).to(DEVICE).train(training)
    ids = torch.tensor([[3, 0, 3], [8, 49, 2]], device=DEVICE)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=not training)
    with there():
        assert torch.allclose(compiled(ids), layer(ids), atol=1e-5)
