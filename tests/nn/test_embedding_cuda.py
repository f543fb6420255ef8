"""The training modules on a GPU; skipped where there is none.

Everything there goes through the torch twins, which the other tests compare with the kernels on the CPU; these
tests look for tensors on the wrong device and for differences from the same layer on the CPU.
"""

from __future__ import annotations

import copy

import pytest
import torch

import mgqe
from mgqe import MGQEmbedding, MGQEmbeddingBag, quantization_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")

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


def make(cls=MGQEmbedding, **arguments):
    torch.manual_seed(0)
    layer = cls(N, DIM, **{"counts": COUNTS, "warmup_steps": 0, **arguments})
    layer.start_quantizing()
    return layer


@pytest.mark.parametrize("sparse", [False, True])
@each_quantizer
def test_a_pass_is_that_of_the_cpu(arguments, sparse):
    layer = make(sparse=sparse, **arguments)
    twin = copy.deepcopy(layer).cuda()
    ids = torch.randint(N, (4, 16))
    for module, given in ((layer, ids), (twin, ids.cuda())):
        out = module(given)
        assert out.device == given.device
        (out.square().mean() + quantization_loss(module)).backward()
    assert torch.allclose(twin(ids.cuda()).cpu(), layer(ids), atol=1e-5)
    for mine, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        assert theirs.grad.is_cuda
        assert torch.allclose(theirs.grad.cpu().to_dense(), mine.grad.to_dense(), atol=1e-5)


@each_quantizer
def test_training_revival_freezing(arguments, tmp_path):
    torch.manual_seed(0)
    layer = MGQEmbedding(N, DIM, **{"counts": COUNTS, "warmup_steps": 3, "device": "cuda", **arguments})
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(6):
        loss = layer(torch.randint(N, (32,), device="cuda")).square().mean() + quantization_loss(layer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layer.revive()
    assert layer.quantizing
    assert all(value.is_cuda for value in layer.state_dict().values())
    layer.eval()
    table = layer.freeze()
    assert table.device.type == "cpu"
    ids = torch.arange(N)
    assert torch.equal(layer(ids.cuda()).cpu(), table.lookup(ids))
    assert torch.equal(table.to("cuda").lookup(ids.cuda()).cpu(), table.lookup(ids))
    mgqe.save(table, tmp_path / "table")
    on_cpu = MGQEmbedding(N, DIM, **{"counts": COUNTS, **arguments})
    on_cpu.load_state_dict(layer.state_dict())
    same = (on_cpu.eval()(ids) == table.lookup(ids)).all(1)
    assert same.float().mean() > 0.95  # but for codes that rounding decides, where statistics are folded into keys


def test_bags():
    layer = make(MGQEmbeddingBag, mode="sum", padding_idx=3)
    twin = copy.deepcopy(layer).cuda()
    ids = torch.randint(9, (5, 7))
    assert torch.allclose(twin(ids.cuda()).cpu(), layer(ids), atol=1e-5)
    (twin(ids.cuda()).sum() + quantization_loss(twin)).backward()
    assert twin.raw_weight.grad.is_cuda


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    layer = make(dtype=dtype).cuda()
    out = layer(torch.arange(9, device="cuda"))
    assert out.dtype == dtype
    (out.sum() + quantization_loss(layer)).backward()
    assert layer.raw_weight.grad.dtype == dtype


def test_made_where_torch_makes_tensors_by_default():
    with torch.device("cuda"):
        layer = MGQEmbedding(N, DIM, counts=torch.arange(N) % 7, warmup_steps=0)
        assert layer.weight.is_cuda
        (layer(torch.arange(9)).sum() + quantization_loss(layer)).backward()
        table = layer.freeze()
    assert table.lookup(torch.arange(9)).shape == (9, DIM)


@pytest.mark.parametrize("training", [True, False])
@each_quantizer
def test_compiles(arguments, training):
    torch._dynamo.reset()
    layer = make(**arguments).cuda().train(training)
    ids = torch.tensor([[3, 0, 3], [8, 49, 2]], device="cuda")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=not training)
    assert torch.allclose(compiled(ids), layer(ids), atol=1e-5)
