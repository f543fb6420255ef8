"""Ids out of range on a GPU, of every layer class: the nearest row is read, and each wait names the layer, once.

On the CPU by the ways of a GPU; test_waits.py and test_waits_of_baselines.py have the rest of what waits.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from contract import BUDGET, DIM, ROWS, SUBJECTS, TIERED, Subject, quantised, shuffled_counts

import mgqe
from mgqe.checks.waiting import as_on_gpu
from mgqe.nn.quantized import QuantizedEmbedding

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DPQ = {"num_subspaces": 4, "num_centroids": 6}
LAYERS = [
    *(subject for subject in SUBJECTS if not subject.is_torch),
    *quantised("MGQE bag, sum", mgqe.MGQEmbeddingBag, counts=shuffled_counts, mode="sum", **TIERED),
    *quantised("MGQE bag, max", mgqe.MGQEmbeddingBag, counts=shuffled_counts, mode="max", **TIERED),
    *quantised("DPQ bag", mgqe.DPQEmbeddingBag, **DPQ),
    *quantised("DPQ, cached rows", mgqe.DPQEmbedding, rows="cached", **DPQ),
    *quantised("DPQ, rows of a sketch", mgqe.DPQEmbedding, rows="sketch", **DPQ),
    *quantised("DPQ, narrow rows", mgqe.DPQEmbedding, rows="narrow", quantizer="sx", **DPQ),
]
each_layer = pytest.mark.parametrize("subject", LAYERS, ids=lambda subject: subject.name)


@pytest.fixture(autouse=True)
def as_in_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgqe.nn.quantization.budget_bytes", lambda *_: BUDGET)
    if not GPU:
        monkeypatch.setenv("MGQE_TRITON", "0")


def looked_up(layer: torch.nn.Module, *ids: int) -> torch.Tensor:
    """One row of ids, a bag of bags, by the ways of a GPU."""
    with nullcontext() if GPU else as_on_gpu():
        return layer(torch.tensor([ids], device=DEVICE))


def refused(layer: torch.nn.Module, wrong: int, path: str = ""):
    kind = type(layer).__name__
    valid = rf"valid ids of a {kind} of {ROWS} x {DIM} are 0 to {ROWS - 1}\."
    return pytest.raises(IndexError, match=rf"^{path}id {wrong} is out of range: {valid}")


@each_layer
def test_the_nearest_row_is_read_and_the_check_names_the_path(subject: Subject) -> None:
    model = torch.nn.ModuleDict({"item": subject.make()}).to(DEVICE).eval()
    layer = model["item"]
    for wrong, nearest in ((ROWS, ROWS - 1), (-1, 0), (2**40, ROWS - 1)):
        assert torch.equal(looked_up(layer, 2, wrong), looked_up(layer, 2, nearest))
        with refused(layer, wrong, "item: "):
            mgqe.check_ids(model)
        mgqe.check_ids(model)


@each_layer
def test_every_wait_names_the_layer_once(subject: Subject) -> None:
    layer = subject.make().to(DEVICE)
    waits = [layer.state_dict, lambda: layer.to(DEVICE)]
    if isinstance(layer, QuantizedEmbedding):
        waits.append(layer.revive if subject.quantizing else layer.start_quantizing)
    for wait in (*waits, layer.freeze, layer.eval):
        looked_up(layer, 2, ROWS).sum().backward()
        with refused(layer, ROWS):
            wait()
        wait()
