"""Runs: what they write, that they are exact, and that they go on after a kill."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from recsys_data import tiny_config, write_tiny

import mgqe
from mgqe.files import consistent
from mgqe.files.atomic import fill_file
from mgqe.files.weights import read_weights, save_weights
from mgqe.recsys.data.datasets import DATA_DIR_VARIABLE
from mgqe.recsys.data.interactions import FileIds
from mgqe.recsys.tasks.base import Validation
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train import loop
from mgqe.recsys.train.artifacts import load_run
from mgqe.recsys.train.checkpoint import best_path, load_state, save_epoch
from mgqe.recsys.train.config import TrainConfig, warm_up_key
from mgqe.recsys.train.loop import EpochReport, PhaseConfig
from mgqe.recsys.train.run import build_tables, train_run

QUANTISED = "mgqe:D=4,K=4/2"
FILES = {
    "config.json", "metrics.json", "model.safetensors", "user.mgqe.safetensors", "item.mgqe.safetensors",
    "user_ids.parquet", "item_ids.parquet", "user", "item", ".lock",
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data"))


def bits(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in sorted(FILES) if name.endswith(".safetensors")}


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in two runs of the same configuration."""
    history = {
        phase: [{k: v for k, v in record.items() if "seconds" not in k} for record in records]
        for phase, records in metrics["history"].items()
    }
    return {"history": history, **{k: metrics[k] for k in ("quality", "embedding_bytes", "best_epoch", "epochs")}}


@pytest.mark.parametrize("embedding", ["full", "full:d=4", QUANTISED, "pq:D=4,K=4", "scalar:bits=4", "lowrank:r=2"])
def test_a_run(tiny: Path, tmp_path: Path, embedding: str) -> None:
    reports: list[EpochReport] = []
    out = tmp_path / "out"
    metrics = train_run(tiny_config(tiny, embedding=embedding), out, on_epoch=reports.append)
    assert {path.name for path in out.iterdir()} == FILES
    assert metrics == json.loads((out / "metrics.json").read_text())
    tables = {name: mgqe.load(out / f"{name}.mgqe.safetensors") for name in ("user", "item")}
    sizes = {name: (out / f"{name}.mgqe.safetensors").stat().st_size for name in tables}
    assert metrics["embedding_bytes_by_table"] == sizes
    assert metrics["embedding_bytes"] == sum(sizes.values())
    users, items = (len(FileIds.load(out / f"{name}_ids.parquet")) for name in ("user", "item"))
    assert (tables["user"].num_embeddings, tables["item"].num_embeddings) == (users, items)
    assert metrics["full_embedding_bytes"] == (users + items) * 8 * 4
    quality = metrics["quality"]
    parts = ("", "full_", "valid_", "valid_full_", "head_", "tail_", "head_full_", "tail_full_")
    parts += ("popularity_full_", "popularity_valid_full_")
    assert set(quality) == {f"{part}{m}@10" for part in parts for m in ("hr", "ndcg")}
    assert all(0 <= value <= 1 for value in quality.values())
    assert metrics["data_summary"]["interactions"] == len(tiny.read_text().splitlines())
    for name in ("seed", "commit", "versions", "machine", "config", "seconds_per_epoch", "epochs", "best_epoch"):
        assert name in metrics
    assert reports[-1].record is not None


def test_the_figures_are_of_the_files(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny, embedding=QUANTISED)
    metrics = train_run(config, tmp_path / "out")
    task = RunData.load(config).task
    assert task.evaluate(load_run(tmp_path / "out")) == metrics["quality"]
    # Centroids are float32, so the files judge as the trained layers did at the best epoch.
    best = metrics["history"]["quantised"][metrics["best_epoch"]["quantised"]]
    assert best["hr@10"] == metrics["quality"]["valid_hr@10"]


def test_training_learns(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny, max_epochs=15, patience=15)
    metrics = train_run(config, tmp_path / "out")
    losses = [record["loss"] for record in metrics["history"]["full"][1:]]
    assert losses[-1] < 0.9 * losses[0]
    assert metrics["quality"]["valid_hr@10"] > metrics["history"]["full"][0]["hr@10"]


class Scripted:
    """A task of one batch, whose validation says what is written here, epoch by epoch."""

    seed = 0

    def __init__(self, epochs: list[list[float]]) -> None:
        self.epochs = iter([torch.tensor(values).double() for values in epochs])

    def num_batches(self, batch_size: int) -> int:
        return 1

    def batches(self, batch_size: int, phase: str, epoch: int) -> list[None]:
        return [None]

    def loss(self, model: torch.nn.Module, batch: None) -> torch.Tensor:
        return model.weight.sum()  # type: ignore[union-attr, operator]

    def validation(self, model: torch.nn.Module) -> Validation:
        values = next(self.epochs)
        return Validation({"full_ndcg@10": float(values.mean())}, (values,))


@pytest.mark.parametrize(("beyond_error", "best"), [(True, 0), (False, 1)])
def test_an_epoch_replaces_the_start_only_beyond_the_standard_error(
    tmp_path: Path, beyond_error: bool, best: int
) -> None:
    """Differences of 1, 0, 0, 0 have the mean 1/4, and the standard error 1/4 as well."""
    phase = PhaseConfig("quantised", 1, 0.1, 0.0, 1, 5, 0.1, beyond_error=beyond_error)
    task = Scripted([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]])
    assert loop.run_phase(torch.nn.Linear(1, 1), task, phase, tmp_path, lambda report: None).best_epoch == best


def test_after_an_epoch_beyond_the_error_any_gain_counts(tmp_path: Path) -> None:
    phase = PhaseConfig("quantised", 1, 0.1, 0.0, 3, 5, 0.1, beyond_error=True)
    task = Scripted([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0], [1.0, 2.0, 1.0, 2.0], [1.0, 2.0, 1.0, 2.1]])
    assert loop.run_phase(torch.nn.Linear(1, 1), task, phase, tmp_path, lambda report: None).best_epoch == 3


def test_patience_is_for_gains_over_trained_epochs_not_over_the_start(tmp_path: Path) -> None:
    phase = PhaseConfig("quantised", 1, 0.1, 0.0, 9, 2, 0.1, beyond_error=True)
    task = Scripted([[5.0], [1.0], [2.0], [3.0], [3.0], [2.0], [9.0]])
    ended = loop.run_phase(torch.nn.Linear(1, 1), task, phase, tmp_path, lambda report: None)
    assert (ended.best_epoch, len(ended.history) - 1) == (0, 5)  # two epochs after the third
    task = Scripted([[5.0], [1.0], [2.0], [3.0], [3.0], [6.0], [5.0], [5.0]])
    ended = loop.run_phase(torch.nn.Linear(1, 1), task, phase, tmp_path / "more", lambda report: None)
    assert (ended.best_epoch, len(ended.history) - 1) == (5, 7)


class FirstEpoch(Scripted):
    """A loss that reaches the weights in the first epoch alone, as rows that are seldom used."""

    def num_batches(self, batch_size: int) -> int:
        return 200

    def batches(self, batch_size: int, phase: str, epoch: int) -> list[Any]:
        return [float(epoch == 1)] * 200

    def loss(self, model: torch.nn.Module, batch: float) -> torch.Tensor:
        return batch * model.weight.sin().sum()  # type: ignore[operator, union-attr]


@pytest.mark.parametrize(("tiny", "some"), [(0.0, True), (loop.TINY, False)])
def test_unused_rows_do_not_become_subnormal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: float, some: bool
) -> None:
    """Intel's processors take over ten times as long for steps with subnormal numbers."""
    monkeypatch.setattr(loop, "TINY", tiny)
    phase = PhaseConfig("full", 1, 1e-3, 0.0, 12, 9, 1e-3)
    model = torch.nn.Linear(4, 4, bias=False)
    task = FirstEpoch([[float(epoch)] for epoch in range(13)])  # so that the last epoch is kept
    state = loop.run_phase(model, task, phase, tmp_path, lambda report: None).optimizer["state"][0]
    values = torch.stack([model.weight.detach(), state["exp_avg"], state["exp_avg_sq"]])
    assert bool(((values != 0) & (values.abs() < torch.finfo(torch.float32).tiny)).any()) == some


def test_the_third_phase_is_kept_beyond_the_error_alone_and_selects_by_the_whole_catalogue() -> None:
    for config in (TrainConfig(), TrainConfig(task="sequential", model="sasrec")):
        phases = {name: config.with_third_phase(True).phase(name) for name in ("full", "annealed", "quantised")}
        assert [phase.beyond_error for phase in phases.values()] == [False, False, True]
        assert {phase.select_by for phase in phases.values()} == {"full_ndcg@10"}


@pytest.mark.parametrize("embedding", ["full", QUANTISED, "dpq:D=4,K=4,quantizer=sx"])
def test_equal_seeds_give_equal_bits(tiny: Path, tmp_path: Path, embedding: str) -> None:
    config = tiny_config(tiny, embedding=embedding, dropout=0.1)
    first = train_run(config, tmp_path / "a")
    torch.manual_seed(123)  # what came before must not matter
    second = train_run(config, tmp_path / "b")
    assert without_times(first) == without_times(second)
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    third = train_run(replace(config, seed=4), tmp_path / "c")
    assert without_times(third) != without_times(first)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("embedding", ["full", QUANTISED, "cce:columns=2,K=4,clusterings=2", "additive:M=2,K=4"])
def test_resumed_equals_uninterrupted(tiny: Path, tmp_path: Path, embedding: str) -> None:
    config = tiny_config(tiny, embedding=embedding, dropout=0.1)
    whole = train_run(config, tmp_path / "whole")
    out = tmp_path / "killed"
    killed = 0
    for attempt in range(20):
        seen = 0

        def die(report: EpochReport) -> None:
            nonlocal seen
            seen += report.record is not None
            if report.record is not None and seen == 1:  # after each epoch that this attempt ran
                raise Killed

        try:
            resumed = train_run(config, out, on_epoch=die)
            break
        except Killed:
            killed += 1
            torch.manual_seed(attempt)
    assert killed == sum(whole["epochs"].values())
    assert without_times(resumed) == without_times(whole)
    assert bits(out) == bits(tmp_path / "whole")


def test_killed_while_saving(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tiny, embedding=QUANTISED)
    whole = train_run(config, tmp_path / "whole")
    steps = {"save": 0, "replace": 0, "link": 0}
    real = {"save": torch.save, "replace": os.replace, "link": os.link}
    for target in [(name, at) for name in steps for at in (2, 4)]:
        steps.update(dict.fromkeys(steps, 0))

        def wrapped(name: str, target: tuple[str, int] = target) -> Any:
            def act(*arguments: Any, **options: Any) -> Any:
                steps[name] += 1
                if (name, steps[name]) == target:
                    raise Killed
                return real[name](*arguments, **options)

            return act

        out = tmp_path / f"{target[0]}{target[1]}"
        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", wrapped("save"))
            patch.setattr(os, "replace", wrapped("replace"))
            patch.setattr(os, "link", wrapped("link"))
            with pytest.raises(Killed):
                train_run(config, out)
        assert without_times(train_run(config, out)) == without_times(whole)
        assert bits(out) == bits(tmp_path / "whole")


def test_what_phase_3_alone_depends_on_leaves_the_others_shared(tiny: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    for at, rate in enumerate((None, 0.5)):
        train_run(
            tiny_config(tiny, embedding=QUANTISED, centroid_learning_rate=rate), tmp_path / str(at), False, shared
        )
    assert len(list(shared.glob("phase-*"))) == 2


def test_a_shared_warm_up_changes_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = ["full", QUANTISED, "pq:D=4,K=4", "dpq:D=4,K=4"]
    alone = {
        spec: train_run(tiny_config(tiny, embedding=spec), tmp_path / f"alone{at}") for at, spec in enumerate(specs)
    }
    epochs: list[str] = []
    real = loop.run_epoch
    monkeypatch.setattr(loop, "run_epoch", lambda *a: epochs.append(a[2].name) or real(*a))
    for at, spec in enumerate(specs):
        shared = train_run(tiny_config(tiny, embedding=spec), tmp_path / f"{at}", warm_ups=tmp_path / "warm-ups")
        assert without_times(shared) == without_times(alone[spec])
        assert bits(tmp_path / f"{at}") == bits(tmp_path / f"alone{at}")
    assert epochs.count("full") == alone["full"]["epochs"]["full"]  # trained once


def test_warm_up_key(tiny: Path) -> None:
    config = tiny_config(tiny)
    key = warm_up_key(config, "x")
    for same in ({"embedding": QUANTISED}, {"embedding": "pq"}, {"centroid_learning_rate": 0.1}, {"data_dir": "/x"}):
        assert warm_up_key(replace(config, **same), "x") == key
    assert warm_up_key(replace(config, embedding="full:d=4"), "x") == warm_up_key(replace(config, dim=4), "x")
    for other in ({"seed": 8}, {"dim": 4}, {"learning_rate": 0.1}, {"embedding": "lowrank:r=2"}, {"dropout": 0.1}):
        assert warm_up_key(replace(config, **other), "x") != key
    fixed = replace(config, embedding=QUANTISED, warm_up_epochs=2)
    assert warm_up_key(fixed, "x") != key
    assert warm_up_key(replace(config, warm_up_epochs=2), "x") == warm_up_key(fixed, "x")
    assert warm_up_key(config, "y") != key


def test_warm_up_epochs(tiny: Path, tmp_path: Path) -> None:
    for epochs in (0, 2):
        metrics = train_run(tiny_config(tiny, embedding=QUANTISED, warm_up_epochs=epochs), tmp_path / str(epochs))
        assert metrics["epochs"]["full"] == epochs


def test_finished_runs_are_kept(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tiny)
    first = train_run(config, tmp_path)
    monkeypatch.setattr(loop, "run_epoch", lambda *a: pytest.fail("trained again"))
    assert train_run(config, tmp_path) == first
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"holds another run \(seed 3, now 4\).*--overwrite"):
        train_run(replace(config, seed=4), tmp_path)
    assert train_run(replace(config, seed=4), tmp_path, overwrite=True)["seed"] == 4


def test_a_folder_of_something_else_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        train_run(tiny_config(tiny), tmp_path)
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        train_run(tiny_config(tiny), tmp_path, overwrite=True)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_divergence_is_said(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mgqe.recsys.tasks.ranking import RankingTask

    monkeypatch.setattr(RankingTask, "loss", lambda self, model, batch: model(*batch[:2]).sum() * math.nan)
    with pytest.raises(ValueError, match=r"diverged in epoch 1.*lower the learning rate"):
        train_run(tiny_config(tiny), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim must be a whole number of 1 or more"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"model": "svd"}, "no model 'svd'"),
        ({"task": "sequential"}, "--task"),
        ({"embedding": "nothing"}, "no embedding 'nothing'"),
        ({"warm_up_epochs": -1}, "warm_up_epochs"),
    ],
)
def test_bad_configurations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)


def test_options_of_fields_that_are_not_there(tiny: Path) -> None:
    config = tiny_config(tiny, embedding="mgqe:D=4,K=4/2,items.K=8/4")
    with pytest.raises(ValueError, match=r"expected item., user. before a key, got 'items' \(did you mean 'item'"):
        build_tables(config, RunData.load(config))


def test_too_few_items_for_the_negatives(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fewer negatives \(--set eval_negatives=\d+, or 0: no sampled metrics\)"):
        train_run(tiny_config(tiny, eval_negatives=99), tmp_path / "out")


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    save_epoch(tmp_path, {"best_epoch": 0, "model": torch.zeros(1000)}, is_best=True)
    assert load_state(best_path(tmp_path, 0)) is not None
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:600])
    with pytest.raises(ValueError, match=r"last.pt is damaged .*--overwrite"):
        load_state(tmp_path / "last.pt")


def test_atomic_write_leaves_the_old_file(tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(28, "disk full")

    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        fill_file(tmp_path / "file", fail)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


@pytest.mark.slow
@pytest.mark.skipif(DATA_DIR_VARIABLE not in os.environ, reason=f"{DATA_DIR_VARIABLE} names no folder of data sets")
def test_real_data_trains(tmp_path: Path) -> None:
    config = TrainConfig(data="ml-100k", embedding="mgqe:D=16,K=64/16", max_epochs=8, batch_size=1024)
    metrics = train_run(config, tmp_path / "out")
    assert metrics["quality"]["hr@10"] > 0.4


@pytest.mark.parametrize(("positives", "steps"), [(100, 1), (20_000, 79), (184_000, 90), (600_000, 74)])
def test_small_data_sets_take_smaller_steps(positives: int, steps: int, tiny: Path) -> None:
    task = RunData.load(tiny_config(tiny)).task
    split = replace(task.split, train_users=torch.zeros(positives, dtype=torch.int64))
    assert replace(task, split=split).num_batches(8192) == steps


def test_items_that_look_alike_draw(tiny: Path) -> None:
    """A model whose items are all the same has no hits, whatever the order of a matrix product's additions."""
    config = tiny_config(tiny)
    data = RunData.load(config)
    model = build_tables(config, data).eval()
    with torch.no_grad():
        model.item.weight.copy_(torch.randn(8).expand_as(model.item.weight))
    figures = data.task.evaluate(model)
    assert {value for name, value in figures.items() if not name.startswith("popularity_")} == {0.0}


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    train_run(tiny_config(tiny, max_epochs=1, anneal_epochs=1), out)
    return out


def rewritten(path: Path, change: Any) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


DAMAGE = {
    "another setting": ("config.json", lambda path: rewritten(path, lambda c: {**c, "dropout": 0.5})),
    "an unknown setting": ("config.json", lambda path: rewritten(path, lambda c: {**c, "dropuot": 0.5})),
    "a list": ("config.json", lambda path: rewritten(path, list)),
    "cut short": ("config.json", lambda path: path.write_bytes(path.read_bytes()[:50])),
    "no ids": ("item_ids.parquet", Path.unlink),
    "other ids": ("user_ids.parquet", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"2")),
    "no table": ("item.mgqe.safetensors", Path.unlink),
    "another table": (
        "item.mgqe.safetensors",
        lambda path: path.write_bytes(path.with_name("user.mgqe.safetensors").read_bytes()),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_refused_and_the_file_is_named(
    finished: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consistent, "ATTEMPTS", 0)
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    name, do = DAMAGE[damage]
    do(out / name)
    with pytest.raises((ValueError, OSError), match=name):
        load_run(out)


def test_runs_whose_model_file_says_nothing_of_the_others_are_still_loaded(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consistent, "ATTEMPTS", 0)
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    own, _ = read_weights(out / "model.safetensors")
    save_weights(own, out / "model.safetensors")
    assert load_run(out).state_dict().keys() == load_run(finished).state_dict().keys()
    rewritten(out / "config.json", lambda c: {**c, "embedding": ["full"]})
    with pytest.raises(ValueError, match=r"config\.json: not the configuration of a run: "):
        load_run(out)
    rewritten(out / "config.json", lambda c: {**c, "embedding": "full", "dim": 4})
    with pytest.raises(ValueError, match=r"config\.json says embeddings of 4 dimensions, and no table"):
        load_run(out)
