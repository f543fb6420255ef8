"""--device of mgqe train, compare and study: it arrives at all steps, and what cannot work is refused first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recsys_data import write_tiny
from typer.testing import CliRunner

from mgqe.cli.app import app
from mgqe.recsys.train import loop
from mgqe.recsys.train.artifacts import CONFIG

SETTINGS = {"dim": 8, "batch_size": 256, "max_epochs": 1, "anneal_epochs": 0, "quantised_epochs": 1}
SETTINGS |= {"eval_negatives": 20}
EMBEDDING = "mgqe:D=4,K=4/2"
THERE = "cpu:0"  # another device than cpu by its name, so that all moves are made
Command = Callable[[str], list[str]]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return CliRunner()


@pytest.fixture(params=["train", "compare", "study"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    """Arguments of a command that trains a full table and a compact one of a tiny set on the named device."""
    data, name = write_tiny(tmp_path), request.param
    if name == "study":
        settings = "".join(f"{key} = {value}\n" for key, value in SETTINGS.items())
        (tmp_path / "study.toml").write_text(
            f'seeds = [1]\n[settings]\n{settings}[pairs.gmf]\nmodel = "gmf"\ndata = "{data}"\n'
            f'[[methods]]\nname = "MGQE"\nbudgets = {{ 60 = ["{EMBEDDING}"] }}\n'
        )
        arguments = [str(tmp_path / "study.toml"), "--jobs", "1"]
    else:
        settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
        arguments = ["--data", str(data), *settings, "--embedding", EMBEDDING]
        arguments += ["--seed", "1"] if name == "train" else ["--embedding", "full", "--seeds", "1", "--jobs", "1"]
    return lambda device: [name, *arguments, "--out", str(tmp_path / "out"), "--device", device]


def test_all_steps_are_made_on_the_device(
    command: Command, runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all phases of all tables; what a step with a device does is in test_device.py."""
    seen, whole = [], loop.run_epoch

    def watched(model: Any, trainer: Any, phase: Any, *arguments: Any) -> float:
        seen.append((phase.name, str(arguments[-1])))
        return whole(model, trainer, phase, *arguments)

    monkeypatch.setattr(loop, "run_epoch", watched)
    result = runner.invoke(app, command(THERE))
    assert result.exit_code == 0, result.output
    assert set(seen) == {("full", THERE), ("quantised", THERE)}
    configs = list((tmp_path / "out").rglob(CONFIG))
    assert {json.loads(path.read_text())["device"] for path in configs} == {THERE}


def refused(command: Command, runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command on a GPU prints; asserts that it was refused before training, and left nothing."""
    monkeypatch.setattr(loop, "run_epoch", lambda *arguments: pytest.fail("trained before it was refused"))
    result = runner.invoke(app, command("cuda"))
    said = " ".join(result.output.split())
    assert result.exit_code == 2, said
    assert not (tmp_path / "out").exists()
    return said


def test_tables_too_large_for_the_card_are_refused_before_training(
    command: Command, runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card of 24 GB of which 10,000 bytes are free, fewer than the rows of 137 ids, their gradients and Adam's."""
    monkeypatch.setattr("mgqe.recsys.train.run.check_device", torch.device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000, 24 * 10**9))
    said = refused(command, runner, tmp_path, monkeypatch)
    assert "--device cuda: training takes 0.00 GB for the tables" in said
    assert "0.00 GB of the GPU's 24.00 GB are free: train with --device cpu, with fewer dimensions" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a GPU here")
def test_a_gpu_that_is_not_there_is_refused_before_training(
    command: Command, runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused(command, runner, tmp_path, monkeypatch)
    assert "--device cuda: torch cannot use it here" in said
    assert "leave it out, or say cpu" in said
