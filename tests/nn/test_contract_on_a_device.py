"""Every embedding class on a GPU: the numbers of the CPU, and no tensor of the CPU among those of the GPU.

Where there is no GPU, on a device that is made up (:mod:`made_up_device`), by the ways of a GPU. It is registered for a
whole process, so that these tests run in one of their own then, which the last test of this file starts.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from contract import BUDGET, DIM, ROWS, SUBJECTS
from recsys_data import tiny_config, write_tiny
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from waits import Waits

import mgqe
from mgqe.checks.waiting import as_on_gpu
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.loop import make_optimizer, run_epoch
from mgqe.recsys.train.run import build_tables

GPU = torch.cuda.is_available()
WITHIN = os.environ.get("MGQE_MADE_UP_DEVICE") == "1"
if WITHIN:  # before anything has a gradient: torch counts devices then
    from made_up_device import made_up_device
on_the_device = pytest.mark.skipif(not (GPU or WITHIN), reason="run by test_all_of_it_on_a_made_up_device")
each_subject = pytest.mark.parametrize("subject", [s for s in SUBJECTS if not s.is_torch], ids=lambda s: s.name)
IDS, ALL_IDS = torch.arange(24).view(4, 6) * 7 % ROWS, torch.arange(ROWS)
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@contextmanager
def there():
    """Around what happens on the device."""
    if GPU:
        yield torch.device("cuda")
        return
    with made_up_device() as device, as_on_gpu():
        yield device


@pytest.fixture(autouse=True)
def as_in_the_contract(monkeypatch):
    monkeypatch.setattr("mgqe.nn.quantization.budget_bytes", lambda *_: BUDGET)
    if not GPU:
        monkeypatch.setenv("MGQE_TRITON", "0")


def a_step(layer, device):
    """Vectors and gradients on the CPU, and the frozen table, of a copy of the layer."""
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).to(device)
    vectors = layer(IDS.to(device))
    (vectors.square().sum() + mgqe.quantization_loss(layer)).backward()
    gradients = [None if p.grad is None else p.grad.cpu() for p in layer.parameters()]
    return vectors.detach().cpu(), gradients, layer.eval().freeze()


@on_the_device
@each_subject
def test_steps_starts_and_freezing_are_those_of_the_cpu(subject):
    layer = subject.make()
    vectors, gradients, table = a_step(layer, "cpu")
    with there() as device:
        made, of_made, frozen = a_step(layer, device)
        frozen = frozen.to("cpu")
    torch.testing.assert_close(made, vectors, **CLOSE)
    for mine, theirs in zip(gradients, of_made, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(theirs, mine, **CLOSE)
    same = (frozen.lookup(ALL_IDS) - table.lookup(ALL_IDS)).abs().amax(1) < 1e-4
    assert same.float().mean() > 0.95  # but for codes that rounding decides


@on_the_device
@each_subject
def test_lookups_bags_and_searches_are_those_of_the_cpu(subject):
    table, bags, queries = subject.make().eval().freeze(), ALL_IDS.view(10, 5), torch.randn(3, DIM)
    with there() as device:
        moved = table.to(device)
        rows = moved.lookup(ALL_IDS.to(device)).cpu()
        pooled = {mode: moved.bag(bags.to(device), None, mode).cpu() for mode in ("sum", "mean", "max")}
        found = moved.topk(queries.to(device), 4).ids.cpu() if hasattr(moved, "topk") else None
    torch.testing.assert_close(rows, table.lookup(ALL_IDS), **CLOSE)
    for mode, made in pooled.items():
        torch.testing.assert_close(made, table.bag(bags, None, mode), **CLOSE)
    if found is not None:
        assert torch.equal(found, table.topk(queries, 4).ids)


class Made(TorchDispatchMode):
    """What is made within on a device: the most numbers of a tensor, and the types; views are not made."""

    def __init__(self, device):
        super().__init__()
        self.device, self.most, self.types = device, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if all(each.alias_info is None for each in function._schema.returns):
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device.type:
                    self.most, self.types = max(self.most, tensor.numel()), self.types | {tensor.dtype}
        return out


FROZEN = {
    "one tier": (mgqe.DPQEmbedding, {}),
    "tiers": (mgqe.MGQEmbedding, {"counts": torch.arange(2000) * 7 % 11}),
    "SX": (mgqe.DPQEmbedding, {"quantizer": "sx"}),
}


@on_the_device
@pytest.mark.parametrize(("kind", "arguments"), FROZEN.values(), ids=FROZEN)
def test_freezing_makes_blocks_on_the_device_and_packs_on_the_host(kind, arguments, monkeypatch):
    """Codes of 2,000 rows, 4 a row, are 8,000 numbers; of a block of 32, with its distances to 4 centroids, 512."""
    for name in ("mgqe.nn.freezing.SWEEP_ROWS", "mgqe.nn.rows.checks.SWEEP_ROWS"):
        monkeypatch.setattr(name, 32)
    layer = kind(2000, DIM, num_subspaces=4, num_centroids=4, warmup_steps=0, **arguments)
    layer.start_quantizing()
    with there() as device:
        layer.to(device).eval()
        with Made(device) as made:
            table = layer.freeze()
    assert 32 * DIM <= made.most <= 32 * 4 * 4
    assert torch.int32 in made.types  # codes
    assert torch.uint8 not in made.types  # packed ones
    assert table.nbytes > 2000  # all of them


SOME = torch.arange(0, 40, 3)
SEARCHES = {
    "cosine": {"score": "cosine"},
    "exclude": {"exclude": SOME},
    "exclude per query": {"exclude": torch.tensor([[1, 5], [2, -1], [7, 9]])},
    "exclude lists": {"exclude": [torch.tensor([1, 5]), torch.tensor([2]), torch.arange(0)]},
    "exclude by masks": {"exclude": torch.arange(3 * ROWS).view(3, ROWS) % 4 == 0},
    "candidates": {"candidates": SOME},
    "candidates per query": {"candidates": torch.arange(24).view(3, 8)},
    "candidates by a mask": {"candidates": ALL_IDS % 3 == 0, "exclude": SOME},
    "bias": {"bias": torch.linspace(-1, 1, ROWS)},
}


def moved_to(value, device):
    return [each.to(device) for each in value] if isinstance(value, list) else value.to(device)


@on_the_device
@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
def test_searches_with_all_options_are_those_of_the_cpu(options):
    torch.manual_seed(0)
    layer = mgqe.MGQEmbedding(ROWS, DIM, counts=ALL_IDS * 7 % 11, num_centroids=(5, 4), warmup_steps=0)
    table, queries = layer.eval().freeze(), torch.randn(3, DIM)
    expected = table.topk(queries, 4, **options)
    with there() as device:
        given = {name: value if isinstance(value, str) else moved_to(value, device) for name, value in options.items()}
        scores, ids = (each.cpu() for each in table.to(device).topk(queries.to(device), 4, **given))
    assert torch.equal(ids, expected.ids)
    torch.testing.assert_close(scores, expected.scores, **CLOSE)


@on_the_device
@pytest.mark.parametrize("quantizer", ["vq", "sx"])
def test_revival_and_calibration_are_those_of_the_cpu(quantizer):
    def work(device):
        torch.manual_seed(0)
        layer = mgqe.MGQEmbedding(ROWS, DIM, counts=ALL_IDS * 7 % 11, num_centroids=(5, 4), quantizer=quantizer)
        model = torch.nn.ModuleDict({"item": layer}).to(device)
        batches = [(IDS + n).remainder(ROWS).to(device) for n in range(3)]
        found = mgqe.calibrate(model, batches, lambda m, ids: m["item"](ids).exp().mean(), progress=False)
        layer.start_quantizing()
        with torch.no_grad():
            for book in layer.quantizer.codebooks if quantizer == "vq" else layer.quantizer.keys:
                book[:, 0] = 1e6  # which no row chooses
        layer.revive()
        return found.metrics["item"].matrix.cpu(), [p.detach().cpu() for p in layer.parameters()]

    matrix, parameters = work("cpu")
    with there() as device:
        made, others = work(device)
    torch.testing.assert_close(made, matrix, **CLOSE)
    for mine, theirs in zip(parameters, others, strict=True):
        torch.testing.assert_close(theirs, mine, **CLOSE)


@on_the_device
@pytest.mark.skipif(GPU, reason="counts on the device that is made up; benchmarks/gpu.sh watches a GPU")
@pytest.mark.parametrize("model", [{"model": "gmf"}, {"task": "sequential", "model": "sasrec", "max_length": 5}])
def test_a_step_of_mgqe_train_has_nothing_to_do_with_the_cpu(model, tmp_path, monkeypatch):
    """All of it, the optimiser's step, too."""
    config = tiny_config(write_tiny(tmp_path), embedding="mgqe:D=4,K=4/2", batch_size=100, **model)
    data = RunData.load(config)
    phase, seen = config.phase("full", data.task.selects_by), []
    tables = build_tables(config, data)
    mgqe.start_quantizing(tables)
    with there() as device:
        tables, trainer = tables.to(device), data.task.on(device)
        optimizer, loss = make_optimizer(tables, phase), type(trainer).loss
        run_epoch(tables, trainer, phase, 1, optimizer, mgqe.quantization_loss, device=device)
        with Waits() as waits:

            def watched(*arguments):
                if len(seen) == 0:
                    waits.with_the_cpu.clear()
                seen.append(dict(waits.with_the_cpu))
                return loss(*arguments)

            monkeypatch.setattr(type(trainer), "loss", watched)
            run_epoch(tables, trainer, phase, 2, optimizer, mgqe.quantization_loss, device=device)
    assert len(seen) == data.task.num_batches(100) > 1
    assert seen == [{}] * len(seen)
    assert waits.with_the_cpu.keys() <= {"_local_scalar_dense", "_to_copy"}  # the mean of the losses, at the end


@pytest.mark.skipif(GPU, reason="the tests above run on the GPU")
@pytest.mark.skipif(WITHIN, reason="this is it")
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch knows no devices that Python makes up",
)
@pytest.mark.slow
def test_all_of_it_on_a_made_up_device():
    environment = os.environ | {"MGQE_MADE_UP_DEVICE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
