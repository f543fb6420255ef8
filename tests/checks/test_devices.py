"""Devices that are not there: the error says what to do."""

from __future__ import annotations

import pytest
import torch

import mgqe
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
