"""Training steps on another device: what moves there and back, and that nothing of a step stays on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recsys_data import tiny_config, write_tiny
from torch.utils._pytree import tree_leaves
from waits import Waits

import mgqe
from mgqe.checks.waiting import as_on_gpu
from mgqe.recsys.data.moving import on_device
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.tasks.sequential import Batch, Positions
from mgqe.recsys.train.device import check_device, check_room, made_on, moved
from mgqe.recsys.train.loop import make_optimizer, run_epoch
from mgqe.recsys.train.run import build_tables, train_run

META = torch.device("meta")
THERE = torch.device("cpu:0")  # another device than cpu by its name, so that all moves are made
SHORT = {"max_epochs": 1, "anneal_epochs": 1, "quantised_epochs": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data"))


def test_names_of_devices(tiny: Path) -> None:
    assert check_device("cpu") == torch.device("cpu")
    assert check_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="--device gpu: expected a device of torch such as cpu, cuda"):
        tiny_config(tiny, device="gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds one here")
def test_a_device_that_is_not_there_is_refused_first(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--device cuda: torch cannot use it here .*: leave it out, or say cpu"):
        train_run(tiny_config(tiny, device="cuda"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


MODELS = {
    "mf, bce": {"model": "mf"},
    "gmf, softmax": {"model": "gmf", "loss": "softmax"},
    "mf, ce": {"model": "mf", "loss": "ce"},
    "neumf": {"model": "neumf"},
    "sasrec, bce": {"task": "sequential", "model": "sasrec", "max_length": 5, "dropout": 0.2},
    "sasrec, softmax, all windows": {
        "task": "sequential", "model": "sasrec", "max_length": 3, "loss": "softmax", "windows": "all"
    },
    "sasrec, ce": {"task": "sequential", "model": "sasrec", "max_length": 5, "loss": "ce"},
    "wide_deep": {"task": "ctr", "model": "wide_deep"},
}  # fmt: skip
each_model = pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)


def tensors_of(batch: object) -> list[torch.Tensor]:
    leaves: list[torch.Tensor] = tree_leaves(vars(batch) if isinstance(batch, Batch) else batch)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


@each_model
def test_batches_of_a_device_are_those_of_the_cpu(tiny: Path, changes: dict[str, object]) -> None:
    task = RunData.load(tiny_config(tiny, **changes)).task
    here, there = (list(each.batches(100, "full", 1)) for each in (task, task.on(THERE)))
    assert len(here) == len(there) == task.num_batches(100)
    for mine, theirs in zip(here, there, strict=True):
        pairs = list(zip(tensors_of(mine), tensors_of(theirs), strict=True))
        assert len(pairs) >= 2
        assert all(torch.equal(*pair) for pair in pairs)


class Copies(Waits):
    """Also counts copies from one device to another."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function.overloadpacket.__name__ == "_to_copy" and (kwargs or {}).get("device") is not None:
            self.counts["copy"] += 1
        return super().__torch_dispatch__(function, types, args, kwargs)


@each_model
@pytest.mark.parametrize("embedding", ["full", "mgqe:D=4,K=4/2"])
def test_steps_copy_nothing_and_wait_for_nothing(
    tiny: Path, embedding: str, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an epoch draws may be copied, and wait, before its first step; the mean of its losses is read at its end."""
    monkeypatch.setenv("MGQE_TRITON", "0")
    config = tiny_config(tiny, embedding=embedding, batch_size=100, **changes)
    data = RunData.load(config)
    phase = config.phase("full", data.task.selects_by)
    model, trainer = build_tables(config, data), data.task.on(THERE)
    mgqe.start_quantizing(model)
    optimizer, loss, steps = make_optimizer(model, phase), type(trainer).loss, []

    def first_of(*arguments: Any) -> torch.Tensor:
        steps.append(0) if steps else (steps.append(0), copies.counts.clear())
        return loss(*arguments)

    with as_on_gpu():
        run_epoch(model, trainer, phase, 1, optimizer, mgqe.quantization_loss, device=THERE)
        monkeypatch.setattr(type(trainer), "loss", first_of)
        with Copies() as copies:
            run_epoch(model, trainer, phase, 2, optimizer, mgqe.quantization_loss, device=THERE)
    assert len(steps) == data.task.num_batches(100) > 1
    assert copies.counts == {"_local_scalar_dense": 1}


def test_tables_that_do_not_fit_are_refused_first(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tiny, embedding="mgqe:D=4,K=4/2")
    data = RunData.load(config)
    full = build_tables(config.warm_up(), data, warm_up=True)
    # 60 users and 77 items of 8 dimensions, 4 bytes, and a weight and a bias, four times; of each of 416 training pairs
    # two ids, twice, and four negatives with their users; a bit per user and item, in bytes, and a count per user.
    needed = 4 * 4 * (137 * 8 + 8 + 1) + 416 * 8 * (4 + 2 * 4) + 60 * 10 + 60 * 8
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        if fits:
            check_room(torch.device("cuda"), [full], data.task)
        else:
            with pytest.raises(
                ValueError,
                match=r"--device cuda: training takes 0.00 GB .*activations of a step.* of the GPU's 1.00 GB are free",
            ):
                check_room(torch.device("cuda"), [full], data.task)
    check_room(torch.device("cpu"), [full], data.task)
    monkeypatch.setattr("mgqe.recsys.train.run.check_device", torch.device)
    with pytest.raises(ValueError, match="train with --device cpu, with fewer dimensions"):
        train_run(tiny_config(tiny, device="cuda"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_finds_no_room_says_what_to_do() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    refused = pytest.raises(torch.OutOfMemoryError, match=r"a step of training.*CUDA out of memory.*--set batch_size=")
    with refused, moved(model, optimizer, THERE):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_batches_move_as_a_whole() -> None:
    ids = torch.arange(3)
    assert [part if part is None else part.device for part in on_device((ids, ids, None), META)] == [META, META, None]
    batch = on_device(Batch(ids, ids, None, Positions.of(torch.tensor([2, 3, 4]))), META)
    assert (batch.items.device, batch.sizes.device, batch.negatives) == (META, META, None)
    histories = batch.positions.histories
    moved = [batch.positions.inputs, histories.remaining, histories.packed_order, *histories.groups[0]]
    assert all(part.device == META for part in moved)


@each_model
def test_all_of_a_step_is_on_the_device(
    tiny: Path, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`meta` stands in for a GPU: a tensor of the CPU in between would be an error, or be seen."""
    monkeypatch.setenv("MGQE_TRITON", "0")  # whose interpreter computes, for which meta has no numbers
    config = tiny_config(tiny, **changes)
    data = RunData.load(config)
    model = build_tables(config, data).to(META)
    batch = on_device(next(data.task.batches(64, "full", 1)), META)  # drawn on the CPU
    with as_on_gpu(), made_on(META), Waits() as waits:
        loss = data.task.loss(model, batch)
        loss.backward()
    assert loss.is_meta
    assert waits.with_the_cpu == {}


@pytest.mark.parametrize(
    "changes",
    [{"embedding": "mgqe:D=4,K=4/2"}, {"task": "sequential", "model": "sasrec", "max_length": 5, "dropout": 0.2}],
)
def test_the_way_there_and_back_changes_nothing(tiny: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    # cpu:0 is another device than cpu by its name, so that all moves are made.
    figures = [
        train_run(tiny_config(tiny, device=device, **SHORT, **changes), tmp_path / device.replace(":", ""))["quality"]
        for device in ("cpu", "cpu:0")
    ]
    assert figures[0] == figures[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")
@pytest.mark.parametrize(
    "changes",
    [{"embedding": "mgqe:D=4,K=4/2"}, {"embedding": "mgqe:budget=50%"}, {"task": "sequential", "model": "sasrec"}],
)
def test_a_run_on_a_gpu(tiny: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    there = train_run(tiny_config(tiny, device="cuda", **SHORT, **changes), tmp_path / "there")
    here = train_run(tiny_config(tiny, **SHORT, **changes), tmp_path / "here")
    assert there["history"]["full"][1]["loss"] == pytest.approx(here["history"]["full"][1]["loss"], rel=1e-2)
