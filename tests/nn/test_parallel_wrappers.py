"""What torch wraps models in to train them on several processes; here with one, which takes the same path."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mgqe
from mgqe import baselines

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")

N, DIM = 60, 8
BASELINES = {
    "AdditiveEmbedding": {},
    "CCEmbedding": {},
    "FullEmbedding": {},
    "HashEmbedding": {},
    "LowRankEmbedding": {"rank": 2},
    "PQEmbedding": {"num_centroids": 16},
    "QREmbedding": {},
    "RecJPQEmbedding": {"num_centroids": 4},
    "SVDEmbedding": {"rank": 2},
    "ScalarQuantizedEmbedding": {},
}


@pytest.fixture(autouse=True)
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make(**arguments: object) -> nn.Module:
    return mgqe.MGQEmbedding(N, DIM, counts=torch.arange(N), num_centroids=(4, 4), **arguments)


def fully_shard(model: nn.Module) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no fully_shard")
    fsdp.fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))


class InTurn(nn.Module):
    """Two tables, of which a batch looks up one."""

    def __init__(self, **arguments: object) -> None:
        super().__init__()
        self.news, self.shop = make(**arguments), make(**arguments)

    def forward(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        return getattr(self, name)(ids)


@pytest.mark.parametrize("arguments", [{}, {"quantizer": "sx"}, {"rows": "bfloat16"}], ids=["vq", "sx", "bfloat16"])
def test_tables_used_in_turn_train_where_unused_parameters_are_looked_for(arguments):
    torch.manual_seed(0)
    model = InTurn(warmup_steps=3, **arguments)
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.5)
    errors = []
    for step in range(40):
        vectors = parallel("news" if step % 2 else "shop", torch.arange(10))
        error = (vectors - 1).square().mean()
        optimizer.zero_grad()
        (error + mgqe.quantization_loss(parallel)).backward()
        optimizer.step()
        errors.append(error.item())
    assert model.news.quantizing
    assert model.shop.quantizing
    assert errors[-1] < 0.9 * errors[1]


@pytest.mark.parametrize("layer", [make, lambda: mgqe.DPQEmbeddingBag(N, DIM, num_centroids=4)], ids=["MGQ", "bag"])
def test_fully_shard_is_refused_when_it_wraps(layer):
    model = nn.Sequential(layer(), nn.Linear(DIM, 1))
    with pytest.raises(RuntimeError, match=r"of 60 x 8 cannot be replaced by a sharded .* DistributedDataParallel"):
        fully_shard(model)


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fully_sharded_data_parallel_is_refused_when_it_wraps(use_orig_params):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    model = nn.Sequential(make(), nn.Linear(DIM, 1))
    with pytest.raises(RuntimeError, match=r"of 60 x 8 cannot be replaced by a sharded"):
        fsdp.FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=use_orig_params)


def test_a_frozen_model_is_sharded_and_looks_up_as_before():
    model = nn.Sequential(make(), nn.Linear(DIM, 1))
    mgqe.freeze_(model)
    expected = model(torch.arange(9))
    fully_shard(model)
    assert torch.allclose(model(torch.arange(9)), expected)


@pytest.mark.parametrize("name", BASELINES)
def test_a_sharded_baseline_trains_and_freezes(name):
    torch.manual_seed(0)
    layer = getattr(baselines, name)(N, DIM, **BASELINES[name])
    expected = layer.freeze()
    model = nn.Sequential(layer, nn.Linear(DIM, 1))
    fully_shard(model)
    model(torch.arange(9)).sum().backward()
    assert torch.equal(layer.freeze().to_dense(), expected.to_dense())
