"""Devices that are not there: the error says what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mgqe
from mgqe import baselines
from mgqe.checks.devices import memory_for_rows, usable_device
from mgqe.table.base import FrozenTable


def test_what_is_there():
    assert usable_device("cpu") == torch.device("cpu")
    assert usable_device(torch.device("meta")).type == "meta"
    assert usable_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_what_is_no_device():
    with pytest.raises(ValueError, match=r"cpu, cuda, cuda:1 and so on, or auto, got 'gpu'"):
        usable_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_layer_on_a_gpu_that_is_not_there():
    with pytest.raises(ValueError, match=r"device='cuda:1' needs a (build of torch with CUDA|GPU).* use device='cpu'"):
        mgqe.DPQEmbedding(8, 4, device="cuda:1")


def test_a_build_with_cuda_that_sees_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a GPU, and torch sees none: check that nvidia-smi"):
        usable_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="device='cuda:2' is not there: torch sees 2 GPU"):
        usable_device("cuda:2")


def test_a_table_too_large_for_the_gpu():
    refused = pytest.raises(torch.OutOfMemoryError, match=r'1,000 x 4 numbers does not fit.*rows="cached"')
    with refused, memory_for_rows(1000, 4):
        raise torch.OutOfMemoryError("CUDA out of memory")


class Card(TorchDispatchMode):
    """A GPU with little memory, which `meta` stands in for: what is made there beyond it is torch's error."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.free = nbytes

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = function(*args, **(kwargs or {}))
        if (
            isinstance(made, torch.Tensor)
            and made.is_meta
            and all(r.alias_info is None for r in function._schema.returns)
        ):
            self.free -= made.nbytes
            if self.free < 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return made


N, DIM = 2000, 8
COUNTS = torch.arange(N, 0, -1)
TABLES = {
    "MGQE": (mgqe.MGQEmbedding, {"counts": COUNTS}),
    "DPQ, bfloat16 rows": (mgqe.DPQEmbedding, {"num_centroids": 16, "rows": "bfloat16"}),
    "DPQ, rows given": (mgqe.DPQEmbedding, {"num_centroids": 16, "_weight": torch.zeros(N, DIM)}),
    "MGQE bag": (mgqe.MGQEmbeddingBag, {"counts": COUNTS, "num_centroids": (16, 8)}),
    "DPQ bag, SX": (mgqe.DPQEmbeddingBag, {"num_centroids": 16, "quantizer": "sx"}),
    "full": (baselines.FullEmbedding, {}),
    "scalar": (baselines.ScalarQuantizedEmbedding, {}),
    "hash": (baselines.HashEmbedding, {"num_buckets": 600}),
    "low rank": (baselines.LowRankEmbedding, {"rank": 4}),
    "quotient-remainder": (baselines.QREmbedding, {"num_remainders": 4}),
    "additive": (baselines.AdditiveEmbedding, {"num_centroids": 16}),
}


@pytest.mark.parametrize(("kind", "arguments"), TABLES.values(), ids=TABLES)
def test_a_table_too_large_for_the_card(kind: type[torch.nn.Module], arguments: dict[str, Any]) -> None:
    """Made there, and moved there as part of a model: the error has torch's text, the table's size, and a remedy."""

    def refused() -> Any:
        text = rf"^a \w+ of 2,000 x {DIM}.* does not fit into the GPU's memory \(CUDA out of memory\)\. "
        return pytest.raises(torch.OutOfMemoryError, match=text + ".*docs/large_tables.md")

    with Card(10_000), refused():
        kind(N, DIM, device="meta", **arguments)
    model = torch.nn.ModuleDict({"item": kind(N, DIM, **arguments)})
    with Card(10_000), refused():
        model.to("meta")
    with Card(10**6):
        assert next(model.to("meta").parameters()).is_meta


def test_a_move_to_a_gpu_that_is_too_small_says_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    layer = mgqe.DPQEmbedding(10, 4, num_centroids=2)
    with pytest.raises(
        torch.OutOfMemoryError, match=r'10 x 4 numbers does not fit .*CUDA out of memory.*rows="cached"'
    ):
        layer._apply(refuse)
    table = layer.freeze()
    monkeypatch.setattr(FrozenTable, "to", refuse)
    with pytest.raises(torch.OutOfMemoryError, match=rf"a frozen table of {table.nbytes} bytes does not fit"):
        table.to("cpu")
