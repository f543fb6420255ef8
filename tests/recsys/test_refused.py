"""Settings that cannot work raise an error before training; centroids that a table cannot use are cut."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recsys_data import TINY, tiny_config, write_tiny
from typer.testing import CliRunner

from mgqe.baselines import PQEmbedding
from mgqe.cli.app import app
from mgqe.files.destination import check_file, check_folder
from mgqe.recsys.data.interactions import FileIds, load_interactions
from mgqe.recsys.data.sampling import SeenItems, evaluation_negatives
from mgqe.recsys.models.embeddings import Spec, build, cut_to_tiers
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train import loop
from mgqe.recsys.train.run import check_run, train_run

QUICK = ["--set", "max_epochs=1", "--set", "anneal_epochs=0", "--set", "quantised_epochs=1", "--set", "dim=8"]
QUICK += ["--set", "eval_negatives=20", "--seed", "3"]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return CliRunner()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data"))


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if an epoch is trained."""

    def train(*arguments: object) -> float:
        pytest.fail("trained before it was refused")

    monkeypatch.setattr(loop, "run_epoch", train)


REFUSED = {
    "subspaces that do not divide d": ["--embedding", "mgqe:D=3,K=4/2"],
    "a field that is not there": ["--embedding", "mgqe:D=4,K=4/2,items.K=2"],
    "a word for a number": ["--embedding", "mgqe:K=many"],
    "a fraction for a whole number": ["--embedding", "hash:hashes=1.5"],
    "a word for yes or no": ["--embedding", "mgqe:share_codebook=perhaps"],
    "a number for yes or no": ["--embedding", "mgqe:share_codebook=3"],
    "not a number": ["--embedding", "mgqe:commitment=nan"],
    "a seed that is a word": ["--embedding", "pq:seed=x"],
    "fractions that do not sum to 1": ["--embedding", "mgqe:fractions=0.5/0.2"],
    "as many centroids as no table has tiers": ["--embedding", "mgqe:K=4/4/4"],
    "one centroid": ["--embedding", "dpq:K=1"],
    "a type of centroids": ["--embedding", "pq:centroids=int4"],
    "a quantiser": ["--embedding", "dpq:quantizer=vx"],
    "a budget below the least": ["--embedding", "mgqe:budget=1%"],
    "a budget above the table": ["--embedding", "mgqe:budget=100_000_000"],
    "a budget that is none": ["--embedding", "mgqe:budget=little"],
    "a budget with what it chooses": ["--embedding", "mgqe:budget=50%,K=4"],
    "a rank above d": ["--embedding", "lowrank:r=9"],
    "bits of a scalar": ["--embedding", "scalar:bits=9"],
    "rows, which are the loop's": ["--embedding", "mgqe:rows=cached"],
    "padding, which is the loop's": ["--embedding", "mgqe:padding_idx=0"],
    "heads that do not divide d": ["--model", "sasrec", "--set", "num_heads=3"],
    "more negatives than there are items": ["--set", "eval_negatives=79"],
    "a split without times": ["--split", "time:20%"],
    "a split of no kind": ["--split", "half"],
    "a file of tests that is not there": ["--test", "none.csv"],
    "a context column that is not there": ["--model", "wide_deep", "--set", "context_columns=weather"],
}


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_run_trains_nothing_and_leaves_nothing(
    runner: CliRunner, tiny: Path, tmp_path: Path, case: str
) -> None:
    out = tmp_path / "deep" / "out"
    result = runner.invoke(app, ["train", "--data", str(tiny), "--out", str(out), *QUICK, *REFUSED[case]])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_the_corrected_command_runs(runner: CliRunner, tiny: Path, tmp_path: Path) -> None:
    command = ["train", "--data", str(tiny), "--out", str(tmp_path / "out"), *QUICK]
    assert runner.invoke(app, [*command, "--embedding", "mgqe:D=3,K=4/2"]).exit_code == 2
    result = runner.invoke(app, [*command, "--embedding", "mgqe:D=4,K=4/2"])
    assert result.exit_code == 0, result.output


def test_a_refused_run_that_starts_afresh_removes_nothing(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny, max_epochs=1, anneal_epochs=0)
    train_run(config, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="not divisible"):
        train_run(replace(config, embedding="mgqe:D=3"), tmp_path, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_run_that_diverges_at_once_can_be_corrected_as_it_says(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny, embedding="full", max_epochs=2, anneal_epochs=0)
    with pytest.raises(ValueError, match="--set learning_rate"):
        train_run(replace(config, learning_rate=1e30), tmp_path / "a" / "out")
    assert list(tmp_path.iterdir()) == []
    assert train_run(config, tmp_path / "a" / "out")["epochs"]["full"] >= 1


def test_what_has_trained_is_kept_when_a_run_fails(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("mgqe.recsys.train.run.ship", fail)
    config = tiny_config(tiny, max_epochs=1, anneal_epochs=0)
    with pytest.raises(OSError, match="disk full"):
        train_run(config, tmp_path / "out")
    assert list((tmp_path / "out").glob("phase-full-*/last.pt"))
    monkeypatch.undo()
    assert train_run(config, tmp_path / "out")["quality"]


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("command", ["train", "compare", "study"])
def test_a_folder_that_cannot_be_written_is_refused_first(
    runner: CliRunner, tiny: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").write_text("a letter")
    (tmp_path / "study.toml").write_text(f'[pairs.gmf]\nmodel = "gmf"\ndata = "{tiny}"\n')
    arguments = [str(tmp_path / "study.toml")] if command == "study" else ["--data", str(tiny)]
    result = runner.invoke(app, [command, *arguments, "--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
    assert f"--out: {tmp_path / 'file'} is no folder" in " ".join(result.output.split())


def test_folders_and_files_are_checked_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(tmp_path / "a" / "b")
    check_file(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="there is no folder"):
        check_file(tmp_path / "none" / "file")
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        check_file(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=f"nothing can be written in {tmp_path}"):
        check_folder(tmp_path / "a" / "b")


@pytest.mark.usefixtures("untrained")
def test_a_study_is_refused_before_it_is_begun(runner: CliRunner, tiny: Path, tmp_path: Path) -> None:
    settings = "dim = 8, eval_negatives = 20"
    methods = '[[methods]]\nname = "m"\nbudgets = { 50 = ["mgqe:D=4,K=4/2", "mgqe:D=3"] }\n'
    declaration = tmp_path / "study.toml"
    declaration.write_text(
        f'seeds = [1]\n[pairs.gmf]\nmodel = "gmf"\ndata = "{tiny}"\nsettings = {{ {settings} }}\n{methods}'
    )
    command = ["study", str(declaration), "--out", str(tmp_path / "out")]
    for more, message in (
        ([], "mgqe:D=3 with gmf on"),
        (["--jobs", "-1"], "--jobs must be 1 or more, got -1"),
        (["--seeds", "9"], "--seeds: no pair has seed 9: expected 1"),
        (["--pair", "ncf"], "no pair 'ncf'"),
    ):
        result = runner.invoke(app, [*command, *more])
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())
        assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("untrained")
def test_a_comparison_checks_the_settings_that_one_embedding_has(runner: CliRunner, tiny: Path, tmp_path: Path) -> None:
    quick = QUICK[: QUICK.index("--seed")]
    command = ["compare", "--data", str(tiny), "--out", str(tmp_path / "out"), *quick, "--embedding", "full"]
    for more, message in (
        (["--embedding", "full:d=4@eval_negatives=79"], "--set eval_negatives="),
        (["--jobs", "0"], "--jobs must be 1 or more"),
        (["--embedding", "mgqe:K=x"], "K must be a whole number"),
    ):
        result = runner.invoke(app, [*command, *more])
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())
        assert not (tmp_path / "out").exists()


def test_a_comparison_meets_no_other_run_half_way(
    runner: CliRunner, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["compare", "--data", str(tiny), "--out", str(tmp_path), *QUICK[: QUICK.index("--seed")], "--seeds", "1"]
    assert runner.invoke(app, [*command, "--embedding", "full"]).exit_code == 0
    monkeypatch.setattr(loop, "run_epoch", lambda *arguments: pytest.fail("trained before it was refused"))
    more = ["--embedding", "full:d=4", "--embedding", "full", "--set", "negatives=2"]
    result = runner.invoke(app, [*command, *more])
    assert result.exit_code == 2
    assert "full-seed1 holds another run (negatives 4, now 2)" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("text", "ids", "expected", "note"),
    [
        ("mgqe:D=16,K=64/16", 595, (32, 16), "K=64/16 is cut to 32/16, since its tiers have 60/535 ids"),
        ("mgqe:D=8,K=64/32", 400, (32, 32), "K=64/32 is cut to 32/32, since its tiers have 40/360 ids"),
        ("mgqe", 400, (2,), ""),  # planned when it is trained; one bit stands for what is not known yet
        ("mgqe:fractions=0.1/0.9,centroids=int8", 400, (32, 64), "K=256/64 is cut to 32/64"),
        ("mgqe:D=8,K=64/32", 640, (64, 32), ""),
        ("dpq:K=256", 100, (64,), "K=256 is cut to 64, since its tiers have 100 ids"),
        ("pq:item.K=300,K=3", 200, (128,), "K=300 is cut to 128"),
        ("mgqe:D=8/4,K=64,capacity=subspaces", 400, (32, 32), "K=64/64 is cut to 32/32"),
    ],
)
def test_what_a_small_table_cannot_use_is_cut(text: str, ids: int, expected: tuple[int, ...], note: str) -> None:
    counts = torch.arange(ids, 0, -1)
    spec, said = cut_to_tiers(Spec.parse(text), "item", ids, 16, counts)
    assert note in said
    assert bool(note) == bool(said)
    module = build(spec, "item", ids, 16, counts, 0.1, 7)
    assert module.capacity.num_centroids == expected
    assert spec.keywords("user") == Spec.parse(text).keywords("user")  # the other table keeps its own


@pytest.mark.parametrize("text", ["mgqe:D=3,K=64/32", "mgqe:K=1/64", "mgqe:K=64/32/16", "mgqe:K=70000"])
def test_what_fits_no_table_is_refused_all_the_same(text: str) -> None:
    counts = torch.ones(90_000 if "70000" in text else 400)
    spec, _ = cut_to_tiers(Spec.parse(text), "item", len(counts), 16, counts)
    with pytest.raises(ValueError, match="item table of"):
        build(spec, "item", len(counts), 16, counts, 0.1, 7)


def test_a_run_says_what_it_cuts(runner: CliRunner, tiny: Path, tmp_path: Path) -> None:
    command = ["train", "--data", str(tiny), "--out", str(tmp_path / "out"), *QUICK, "--embedding", "mgqe:D=4,K=64/32"]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "item table: K=64/32 is cut to 8/32, since its tiers have 8/" in result.output
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["cut"].keys() == {"user", "item"}
    assert metrics["embedding"] == "mgqe:D=4,K=64/32"
    config = tiny_config(tiny, embedding="mgqe:D=4,K=64/32")
    assert len(check_run(config, RunData.load(config))) == 2
    assert check_run(replace(config, embedding="mgqe:D=4,K=4/2"), RunData.load(config)) == []


def test_options_of_plan_and_ids_are_checked_before_files_are_read(runner: CliRunner, tmp_path: Path) -> None:
    log = tmp_path / "none.csv"  # reading it would be an error of its own
    plan, ids = ["plan", "--counts", str(log), "--dim", "8"], ["ids", str(log), "--column", "a"]
    for command, message in (
        ([*plan, "--budget", "little"], "--budget little: a budget is"),
        ([*plan, "--budget", "5%", "--field", "city"], "--field must be item or user"),
        ([*plan, "--budget", "5%", "--max-tiers", "4"], "max_tiers must be 1, 2 or 3"),
        ([*plan, "--budget", "5%", "--max-centroids", "1"], "max_centroids must be"),
        ([*plan, "--budget", "5%", "--counts-power", "nan"], "counts_power must be"),
        ([*ids, "--out", str(tmp_path)], "is a folder: name a file in it"),
        ([*ids, "--out", str(tmp_path / "none" / "ids")], "there is no folder"),
        ([*ids, "--out", str(tmp_path / "ids"), "--memory", "0"], "--memory"),
        ([*ids, "--out", str(tmp_path / "ids"), "--min-count", "0"], "min_count must be"),
    ):
        result = runner.invoke(app, command)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())


NO_BUDGETS = ("lots", "0", "0%", "100%", "-5%", "nan", "nan%", "1.0", "inf", "5%%", "5 percent", "")


@pytest.mark.parametrize("budget", NO_BUDGETS)
@pytest.mark.parametrize("command", ["train", "compare", "compress", "plan"])
def test_what_is_no_budget_is_refused_before_data_are_read(
    runner: CliRunner, tmp_path: Path, command: str, budget: str
) -> None:
    none = str(tmp_path / "none.npy")  # reading it would be an error of its own
    inputs = {"compress": [none], "plan": ["--weight", none]}.get(command, ["--data", none])
    out = [] if command == "plan" else ["--out", str(tmp_path / "out")]
    result = runner.invoke(app, [command, *inputs, *out, "--budget", budget])
    assert result.exit_code == 2, result.output
    assert f"--budget {budget}: a budget is" in result.output.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("budget", ["lots", "0%", "-5%", "1.0"])
def test_what_is_no_budget_of_an_embedding_is_refused_when_it_is_read(budget: str) -> None:
    for name, key in (("mgqe", "budget"), ("dpq", "budget"), ("pq", "budget"), ("mgqe", "item.budget")):
        with pytest.raises(ValueError, match=f"{key}={budget}: a budget is"):
            Spec.parse(f"{name}:{key}={budget}")


def test_too_few_items_name_the_user_and_the_option(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("".join(f"anna film{at}\n" for at in range(12)) + "".join(f"bert film{at}\n" for at in range(40)))
    data = load_interactions(path, "pairs")
    seen = SeenItems(data.users, data.items, 2, 40, user_ids=data.user_ids)
    with pytest.raises(ValueError, match=r"user 'anna' lacks only 28 of 40 items.*--set eval_negatives=28"):
        evaluation_negatives(torch.tensor([0]), seen, 99, 0)
    with pytest.raises(ValueError, match=r"user 'bert' lacks only 0 of 40 items.*leave the user out of the data"):
        evaluation_negatives(torch.tensor([0, 1]), seen, 20, 0)
    with pytest.raises(ValueError, match=r"user 'anna' lacks only 28 .*--set negatives=28"):
        evaluation_negatives(torch.tensor([0]), seen, 99, 0, option="negatives")
    for task, model in (("ranking", "gmf"), ("sequential", "sasrec"), ("ctr", "wide_deep")):
        few = replace(TINY, data=str(path), task=task, model=model, negatives=2, eval_negatives=2)
        with pytest.raises(ValueError, match="user 'bert' lacks only 0 of 40"):
            RunData.load(few)
    assert isinstance(data.user_ids, FileIds)


def test_a_seed_of_pq_is_checked_at_once() -> None:
    with pytest.raises(ValueError, match="seed must be a whole number from 0"):
        PQEmbedding(10, 4, seed=2**64)


def test_a_metric_that_does_not_exist_is_said_before_an_epoch(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny)
    data = RunData.load(config)
    from mgqe.recsys.train.run import build_tables

    with pytest.raises(ValueError, match=r"no validation figure 'recall@7': expected hr@10, ndcg@10"):
        loop.run_phase(build_tables(config, data), data.task, config.phase("full", "recall@7"), tmp_path, print)
    assert list(tmp_path.iterdir()) == []
