"""Training steps on another device: what moves there and back, and that nothing of a step stays on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recsys_data import tiny_config, write_tiny
from torch import nn

from mgqe.recsys.models.mf import MF
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.tasks.sequential import Batch
from mgqe.recsys.train.device import check_device, made_on, on_device
from mgqe.recsys.train.run import train_run

META = torch.device("meta")
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


def test_batches_move_as_a_whole() -> None:
    ids = torch.arange(3)
    assert [part if part is None else part.device for part in on_device((ids, ids, None), META)] == [META, META, None]
    batch = on_device(Batch(ids, ids, None), META)
    assert (batch.items.device, batch.sizes.device, batch.negatives) == (META, META, None)


@pytest.mark.parametrize("loss", ["bce", "softmax", "ce"])
def test_all_of_a_step_is_on_the_device(tiny: Path, loss: str) -> None:
    task = RunData.load(tiny_config(tiny, loss=loss)).task
    sizes = task.split.num_users, task.split.num_items
    model = MF(*(nn.Embedding(size, 8) for size in sizes)).to(META)  # mgqe's own layers refuse ids without values
    batch = next(task.batches(64, "full", 1))  # drawn on the CPU
    with made_on(META):
        assert task.loss(model, on_device(batch, META)).is_meta


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
