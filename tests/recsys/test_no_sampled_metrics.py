"""eval_negatives=0: no figures among sampled items anywhere, and all others as they are with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from recsys_data import tiny_config, write_tiny
from torch import Tensor
from typer.testing import CliRunner

from mgqe.cli.app import app
from mgqe.recsys.data.interactions import FileIds, Interactions
from mgqe.recsys.data.ncf import PublishedSplit
from mgqe.recsys.tasks.base import Validation
from mgqe.recsys.tasks.ranking import RankingTask
from mgqe.recsys.train.budget import LOG_RANK, SAMPLED, best_of
from mgqe.recsys.train.run import train_run

QUICK = {"max_epochs": 1, "anneal_epochs": 0, "quantised_epochs": 1, "dim": 8, "eval_negatives": 0}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path)


def is_sampled(name: str) -> bool:
    return "full_" not in name


@pytest.mark.parametrize(("task", "model"), [("ranking", "gmf"), ("sequential", "sasrec")])
def test_the_figures_of_the_catalogue_are_those_with_sampled_ones_beside(
    tiny: Path, tmp_path: Path, task: str, model: str
) -> None:
    config = tiny_config(tiny, task=task, model=model, max_epochs=2, anneal_epochs=1)
    with_them = train_run(config, tmp_path / "with")
    without = train_run(replace(config, eval_negatives=0), tmp_path / "without")
    assert (with_them["metric"], without["metric"]) == ("hr@10", "full_hr@10")
    assert without["quality"] == {name: value for name, value in with_them["quality"].items() if not is_sampled(name)}
    assert {"head_full_hr@10", "valid_full_ndcg@10", "popularity_full_hr@10"} <= set(without["quality"])
    assert with_them["quality"]["hr@10"] < 1  # among no items it would be 1
    for record in without["history"]["full"]:
        assert not {"hr@10", "ndcg@10"} & set(record)


def test_published_negatives_are_not_used_either() -> None:
    data = PublishedSplit(
        Interactions(
            torch.tensor([0, 0, 0, 1, 1, 1]),
            torch.tensor([0, 1, 2, 0, 1, 2]),
            torch.tensor([0, 3, 6]),
            FileIds(pl.Series([0, 1])),
            FileIds(pl.Series([0, 1, 2, 3])),
        ),
        torch.tensor([2, 0]),
        torch.tensor([[3], [3]]),
    )
    assert RankingTask.published(data, seed=1, eval_negatives=1).metric == "hr@10"
    task = RankingTask.published(data, seed=1, eval_negatives=0)
    assert task.metric == "full_hr@10"
    assert [part.negatives.shape for part in (task.valid, task.test)] == [(2, 0), (2, 0)]


def test_plans_that_nothing_tells_apart_are_decided_by_their_ranks() -> None:
    def judged(log_rank: float, values: Tensor, **more: float) -> Validation:
        return Validation({LOG_RANK: log_rank, **more}, (values,), {LOG_RANK: values})

    noisy, other = torch.tensor([-1.0, -3.0]).double(), torch.tensor([-3.0, -0.9]).double()
    assert best_of([judged(-2.0, noisy), judged(-1.95, other)], LOG_RANK) == 1  # not the first of the two
    sampled = judged(-2.0, noisy, **{SAMPLED: 0.6}), judged(-1.95, other, **{SAMPLED: 0.5})
    assert best_of(sampled, LOG_RANK) == 0


def test_no_command_shows_them(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    runner, settings = CliRunner(), [f"--set={name}={value}" for name, value in QUICK.items()]
    data, embeddings = ["--data", str(tiny)], ["--embedding", "full", "--embedding", "mgqe:budget=60%"]
    result = runner.invoke(
        app, ["compare", *data, *settings, *embeddings, "--seeds", "1", "--out", str(tmp_path / "c")]
    )
    assert result.exit_code == 0, result.output
    assert "NDCG@10 HR@10 % to full" in " ".join(result.output.split())
    assert "sampled" not in result.output
    out = tmp_path / "c" / "runs"
    run = next(path for path in out.iterdir() if path.name.startswith("full"))
    assert not [name for name in json.loads((run / "metrics.json").read_text())["quality"] if is_sampled(name)]

    declaration = tmp_path / "study.toml"
    lines = "".join(f"{name} = {value}\n" for name, value in QUICK.items())
    pair = f'[pairs.a]\ntitle = "A"\nmodel = "gmf"\ndata = "{tiny}"\n'
    methods = "".join(f'[[methods]]\nname = "{name}"\nbudgets = {{ 60 = ["{name.lower()}:budget=60%"] }}\n'
                      for name in ("MGQE", "DPQ"))  # fmt: skip
    declaration.write_text(f"seeds = [1]\n[settings]\n{lines}{pair}{methods}")
    result = runner.invoke(app, ["study", str(declaration), "--jobs", "1", "--out", str(tmp_path / "study")])
    assert result.exit_code == 0, result.output
    result = runner.invoke(app, ["report", str(tmp_path / "study"), "--json"])
    assert result.exit_code == 0, result.output
    header = json.loads(result.output)["tables"]["pair-a"]["header"]
    assert [name for name in header if "HR@10" in name] == ["valid HR@10, whole catalogue", "HR@10, whole catalogue"]
    assert [name for name in header if "NDCG@10" in name] == ["NDCG@10, whole catalogue"]

    result = runner.invoke(app, ["train", *data, *settings, "--embedding", "full", "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "HR@10, NDCG@10 in the whole catalogue" in result.output
    assert "sampled" not in result.output
    result = runner.invoke(
        app, ["train", *data, *settings, "--select-by", "sampled_hr@10", "--out", str(tmp_path / "r")]
    )
    assert result.exit_code == 2
    assert "got 'sampled_hr@10': all are of the whole catalogue" in result.output
    assert not (tmp_path / "r").exists()
    result = runner.invoke(app, ["train", *data, "--set", "eval_negatives=-1", "--out", str(tmp_path / "r")])
    assert "eval_negatives must be a whole number of 0 or more, got -1" in " ".join(result.output.split())
