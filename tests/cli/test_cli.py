"""The command line, through typer's runner and as a process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import GOLDEN
from recsys_data import TINY, write_tiny
from typer.testing import CliRunner

import mgqe
from mgqe import cli
from mgqe.cli.app import COMMANDS, app
from mgqe.recsys.study.comparison import Comparison
from mgqe.recsys.study.execute import Event
from mgqe.recsys.study.records import read_results
from mgqe.recsys.study.runs import pending_runs, run_study
from mgqe.recsys.train.run import train_run

SETTINGS = [
    f"--set={field.name}={getattr(TINY, field.name)}"
    for field in fields(TINY)
    if getattr(TINY, field.name) != field.default and field.name not in ("embedding", "seed")
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data"))


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("MGQE_DATA_DIR", raising=False)
    return CliRunner()


def flat(text: str) -> str:
    return " ".join(text.split())


def test_help_teaches(runner: CliRunner) -> None:
    text = flat(runner.invoke(app, ["--help"]).output)
    assert all(name in text for name in ("train", "compare", "inspect", "mgqe train --out run"))
    text = flat(runner.invoke(app, ["train", "--help"]).output)
    for part in ("Examples", "--data clicks.csv", "planted", "scalar:bits=4", "MGQE_DATA_DIR", "learning_rate="):
        assert part in text
    text = flat(runner.invoke(app, ["compare", "--help"]).output)
    assert "--seeds 1,2,3 --jobs 2" in text


@pytest.mark.parametrize(
    ("words", "offered"), [("mgqe comp", {"compress", "compare"}), ("mgqe compress --qu", {"--queries", "--quote"})]
)
def test_shells_complete_commands_and_options(runner: CliRunner, words: str, offered: set[str]) -> None:
    env = {"_MGQE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert set(runner.invoke(app, [], env=env, prog_name="mgqe").output.split()) == offered


def test_help_is_whole_at_80_columns(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in COMMANDS:
        lines = runner.invoke(app, [command, "-h"]).output.splitlines()
        assert max(map(len, lines)) <= 80, command
        assert not [line for line in lines if "…" in line], command


def test_train_and_inspect(runner: CliRunner, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["train", "--data", str(tiny), "--embedding", "mgqe:D=4,K=4/2", "--out", str(out), *SETTINGS]
    result = runner.invoke(app, [*command, "--task", "ranking", "--model", "gmf", "--seed", "3"])
    assert result.exit_code == 0, result.output
    metrics = json.loads((out / "metrics.json").read_text())
    assert f"{metrics['quality']['hr@10']:.4f}" in result.output
    asked = ["topk", str(out / "item"), "--users", str(out / "user"), "--query-id", "7", "-k", "3", "--json"]
    found = json.loads(runner.invoke(app, asked).output)
    assert found[0]["query"] == 7
    assert (
        found[0]["ids"] == mgqe.Collection.load(out / "item").topk(mgqe.Collection.load(out / "user").lookup(7), 3).ids
    )
    again = runner.invoke(app, [*command, "--seed", "3"])
    assert again.exit_code == 0
    assert "holds this run already" in flat(again.output)
    other = runner.invoke(app, [*command, "--seed", "4"])
    assert other.exit_code == 2
    assert "seed 3, now 4" in flat(other.output)
    file = out / "item.mgqe.safetensors"
    result = runner.invoke(app, ["inspect", str(file)])
    assert result.exit_code == 0, result.output
    for part in ("CompactTable", "codes", "centroids", "tier_map", "header", f"{file.stat().st_size:,}", "perplexity"):
        assert part in result.output
    assert re.search(
        r"look-up \d\.\d of nn\.Embedding's time, estimated, for ids that are alike frequent", result.output
    )
    mgqe.append(file, torch.zeros(1, mgqe.load(file).embedding_dim))
    result = runner.invoke(app, ["inspect", str(file)])
    appended, record = sorted(out.glob("item.mgqe.safetensors.append-*"))
    assert "with ids appended in 1 file beside it" in flat(result.output)
    assert f"{sum(path.stat().st_size for path in (file, appended, record)):,}" in result.output


def test_figures_that_are_asked_for_are_printed_and_choose(runner: CliRunner, tiny: Path, tmp_path: Path) -> None:
    command = ["train", "--data", str(tiny), "--embedding", "full", "--out", str(tmp_path / "out"), *SETTINGS]
    result = runner.invoke(app, [*command, "--metrics", "recall@3,mrr@5", "--select-by", "mrr@4"])
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    asked, popular = (
        "  ".join(f"{metrics['quality'][f'{prefix}full_{name}']:.4f}" for name in ("recall@3", "mrr@5", "mrr@4"))
        for prefix in ("", "popularity_")
    )
    shown = rf"recall@3, mrr@5, mrr@4 in the whole catalogue\s+{asked}\s+a list of the most frequent items instead\s+"
    assert re.search(shown + popular, result.output)
    history = metrics["history"]["full"]
    assert history[metrics["best_epoch"]["full"]]["full_mrr@4"] == max(record["full_mrr@4"] for record in history)
    refused = runner.invoke(app, [*command, "--select-by", "map@5"])
    assert refused.exit_code == 2
    assert "expected a figure such as" in flat(refused.output)


def test_inspect_a_mixed_table(runner: CliRunner) -> None:
    path = GOLDEN / "mixed-three-tiers-int8-matrix.safetensors"
    result = runner.invoke(app, ["inspect", str(path)])
    assert result.exit_code == 0, result.output
    parts = {line.split()[0]: line.split()[1] for line in result.output.splitlines() if len(line.split()) > 1}
    assert (parts["mean"], parts["matrix"], parts["matrix_scales"]) == ("24", "30", "20")
    assert "2 to 5" in result.output  # bits of the first tier's codes
    assert "0 to 1" in result.output  # of the last one's


def test_inspect_other_tables(runner: CliRunner, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["train", "--data", str(tiny), "--embedding", "scalar:bits=4", "--out", str(out), *SETTINGS]
    assert runner.invoke(app, command).exit_code == 0
    result = runner.invoke(app, ["inspect", str(out / "user.mgqe.safetensors")])
    assert result.exit_code == 0
    assert "ScalarTable" in result.output


def test_inspect_draws_the_bits(runner: CliRunner, tmp_path: Path) -> None:
    counts = torch.arange(400, 0, -1)
    mgqe.save(mgqe.MGQEmbedding(400, 16, counts=counts, budget=4_000).freeze(), tmp_path / "table")
    picture = tmp_path / "pictures" / "bits.png"
    result = runner.invoke(app, ["inspect", str(tmp_path / "table"), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in flat(result.output)
    mgqe.save(mgqe.baselines.FullTable(torch.zeros(3, 4)), tmp_path / "full")
    result = runner.invoke(app, ["inspect", str(tmp_path / "full"), "--plot", str(picture)])
    assert result.exit_code == 2
    assert "got FullTable" in flat(result.output)


def test_compare(runner: CliRunner, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    command = ["compare", "--data", str(tiny), "--out", str(out), "--seeds", "1,2", *SETTINGS]
    embeddings = ["--embedding", "full", "--embedding", "mgqe:D=4,K=4/2@quantised_epochs=1"]
    result = runner.invoke(app, [*command, *embeddings])
    assert result.exit_code == 0, result.output
    records = read_results(out / "results.jsonl").records
    assert [(record["embedding"], record["seed"]) for record in records] == [
        ("full", 1),
        ("full", 2),
        ("mgqe:D=4,K=4/2@quantised_epochs=1", 1),
        ("mgqe:D=4,K=4/2@quantised_epochs=1", 2),
    ]
    assert sum(line.startswith(("full ", "mgqe:D")) for line in result.stdout.splitlines()) == 4  # of two tables
    said = flat(result.output)
    assert "60 of 60 users judged" in said
    assert "full, seed 1: first phase, epoch 1 of at most" in said  # the output is no terminal
    assert (out / "size_quality.png").is_file()
    assert "% to full" in result.output
    assert re.search(r"full, seed [12]: the model ranks no better than the most frequent items do", said)
    # More of the same: what is there is kept.
    before = (out / "runs/full-seed1/metrics.json").stat().st_mtime_ns
    result = runner.invoke(app, [*command, *embeddings, "--embedding", "pq:D=4,K=4"])
    assert result.exit_code == 0, result.output
    assert "4 of 6 runs were finished before" in flat(result.output)
    assert (out / "runs/full-seed1/metrics.json").stat().st_mtime_ns == before
    assert len(read_results(out / "results.jsonl").records) == 6
    result = runner.invoke(app, [*command, "--embedding", "full"])
    first = [line.split()[0] for line in result.stdout.splitlines() if line.startswith(("full ", "mgqe:D", "pq:"))]
    # A long name goes on in the next line where figures are wide.
    assert [name[:16] for name in first] == ["full", "mgqe:D=4,K=4/2@q", "pq:D=4,K=4"] * 2
    # There is no declaration of which `mgqe report` could make tables.
    assert f"the same mgqe compare, with --out {out}, shows the results" in flat(
        runner.invoke(app, ["inspect", str(out)]).output
    )
    result = runner.invoke(app, ["report", str(out)])
    assert (result.exit_code, f"{out} is of mgqe compare" in flat(result.output)) == (2, True)


def test_parallel_runs_give_the_same(tiny: Path, tmp_path: Path) -> None:
    figures = []
    for jobs in (1, 2):
        study = Comparison.of(replace(TINY, data=str(tiny), max_epochs=1), ("full", "full:d=4"), (1,))
        events: list[Event] = []
        out = tmp_path / str(jobs)
        records = run_study(pending_runs(study, out), out, jobs, on_event=events.append)
        figures.append({record["embedding"]: record["quality"] for record in records})
        assert any(event.report is not None for event in events)
    assert figures[0] == figures[1]


def test_a_failed_run_does_not_stop_the_others(tiny: Path, tmp_path: Path) -> None:
    study = Comparison.of(replace(TINY, data=str(tiny), max_epochs=1), ("full", "full:d=4"), (1,))
    (tmp_path / "runs/full-seed1").mkdir(parents=True)
    (tmp_path / "runs/full-seed1/letter.txt").write_text("dear")
    events: list[Event] = []
    records = run_study(pending_runs(study, tmp_path), tmp_path, 1, on_event=events.append)
    assert [record["status"] for record in records] == ["failed", "done"]
    assert [event.run.name for event in events if event.error] == ["full, seed 1"]


@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_layout_of_a_file_reaches_training(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    seen = []
    monkeypatch.setattr("mgqe.cli.train.train_run", lambda config, *_, **__: seen.append(config))
    monkeypatch.setattr("mgqe.cli.compare.check_pending", lambda runs: seen.append(runs.pending[0][1].config))
    layout = ["--data", "x.dat", "--separator", "::", "--no-quote", "--no-header", "--user-column", "1"]
    runner.invoke(app, [command, *layout, "--item-column", "2", "--out", str(tmp_path / "out")])
    found = seen[0]
    assert (found.separator, found.quote, found.header, found.user_column) == ("::", "", False, "1")


def test_what_is_preferred_reaches_training(runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("mgqe.cli.train.train_run", lambda config, *_, **__: seen.append(config.embedding))
    monkeypatch.setattr(
        "mgqe.cli.compare.check_pending", lambda runs: seen.extend(run.config.embedding for _, run in runs.pending)
    )
    out = ["--out", str(tmp_path / "out")]
    runner.invoke(app, ["train", "--prefer", "size", *out])
    runner.invoke(app, ["train", "--prefer", "speed", "--budget", "5%", "--embedding", "dpq", *out])
    runner.invoke(app, ["train", "--prefer", "size", "--embedding", "mgqe:budget=5%", *out])
    assert seen == ["mgqe:budget=10%,prefer=size", "dpq:budget=5%,prefer=speed", "mgqe:budget=5%,prefer=size"]
    seen.clear()
    runner.invoke(app, ["compare", "--prefer", "size", "--budget", "5%", "--embedding", "full", "--seeds", "1", *out])
    assert seen == ["full", "mgqe:budget=5%,prefer=size", "dpq:budget=5%,prefer=size"]
    seen.clear()
    runner.invoke(app, ["train", "--prefer-tail", *out])
    runner.invoke(app, ["compare", "--prefer-tail", "--budget", "5%", "--embedding", "full", "--seeds", "1", *out])
    assert seen == ["mgqe:budget=10%,prefer_tail=true", "full", "mgqe:budget=5%,prefer_tail=true", "dpq:budget=5%"]


def test_settings_of_a_layout_are_read_as_a_study_writes_them() -> None:
    written = ["separator=\t", "quote=", "header=False"]
    found = TINY.with_settings(written)
    assert (found.separator, found.quote, found.header) == ("\t", "", False)
    assert TINY.with_settings(["header=true"]).header is True
    with pytest.raises(ValueError, match="setting header: expected bool, got 'maybe'"):
        TINY.with_settings(["header=maybe"])


BAD = {
    "no such data": (["train", "--data", "movielens"], "no data set 'movielens'"),
    "no such file": (["train", "--data", "none.csv"], "none.csv does not exist"),
    "no data directory": (["train", "--data", "ml-1m"], "needs a data directory"),
    "no such embedding": (["train", "--embedding", "mgq"], "no embedding 'mgq' (did you mean 'mgqe'?)"),
    "no such model": (["train", "--model", "svd"], "no model 'svd'"),
    "no such setting": (["train", "--set", "rate=1"], "expected NAME=VALUE with NAME one of task"),
    "setting of the wrong type": (["train", "--set", "dim=many"], "setting dim: expected int, got 'many'"),
    "no such preference": (["train", "--prefer", "fast"], "prefer must be one of ('speed', 'size'), got 'fast'"),
    "two preferences": (["train", "--embedding", "mgqe:prefer=size", "--prefer", "size"], "has prefer= already"),
    "no tail to prefer": (["train", "--embedding", "dpq", "--prefer-tail"], "no option 'prefer_tail'"),
    "two tails": (["train", "--embedding", "mgqe:prefer_tail=true", "--prefer-tail"], "leave --prefer-tail out"),
    "no budget to prefer the tail in": (["compare", "--embedding", "mgqe", "--prefer-tail"], "give --budget"),
    "nothing to prefer": (["compare", "--embedding", "mgqe", "--prefer", "size"], "give --budget"),
    "seeds": (["compare", "--seeds", "one"], "--seeds: expected whole numbers"),
    "seed twice": (["compare", "--seeds", "1,1"], "expected each seed once"),
    "embedding twice": (["compare", "--embedding", "full", "--embedding", "full"], "expected each embedding once"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_one_line(runner: CliRunner, tmp_path: Path, case: str) -> None:
    arguments, message = BAD[case]
    result = runner.invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_mistakes_in_a_comparison_come_before_training(runner: CliRunner, tiny: Path, tmp_path: Path) -> None:
    command = ["compare", "--data", str(tiny), "--out", str(tmp_path / "out"), *SETTINGS]
    result = runner.invoke(app, [*command, "--embedding", "full", "--embedding", "mgqe:D=3"])
    assert result.exit_code == 2
    assert "mgqe:D=3, user table" in result.output
    assert not (tmp_path / "out").exists()


def test_inspect_of_something_else(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a table")
    for path in (tmp_path / "file", tmp_path / "none"):
        result = runner.invoke(app, ["inspect", str(path)])
        assert result.exit_code == 2
        assert str(path) in result.output


def test_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mgqe.cli.NEEDED", ("no_such_package",))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert capsys.readouterr().err.strip().endswith("needs no_such_package; run: pip install 'mgqe[cli]'")


def test_a_command_needs_its_own_packages_alone(tiny: Path, tmp_path: Path) -> None:
    """Neither polars nor matplotlib is there: train says so, and what reads no logs and draws nothing works."""
    out = tmp_path / "out"
    mgqe.save(mgqe.MGQEmbedding(100, 8, counts=torch.arange(100, 0, -1), num_centroids=4).freeze(), out)
    np.save(tmp_path / "items.npy", np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32))
    np.save(tmp_path / "counts.npy", np.arange(300))
    (tmp_path / "names.txt").write_text("".join(f"shoe-{n}\n" for n in range(300)))
    items = str(tmp_path / "items")
    known = ["--ids", str(tmp_path / "names.txt"), "--counts", str(tmp_path / "counts.npy")]
    needs = "needs polars"
    calls: list[tuple[list[str], int, str]] = [
        (["--help"], 0, "Not available"),
        (["inspect", str(out)], 0, "a table, CompactTable"),
        (["verify", str(out)], 0, "nothing is damaged"),
        (["compress", f"{items}.npy", *known, "--budget", "60%", "--no-check"], 0, "written to"),
        (["neighbours", items, "shoe-3"], 0, "rank"),
        (["inspect", items], 0, "a collection"),
        (["verify", items], 0, "nothing is damaged"),
        (["convert", str(out), "--out", str(tmp_path / "again")], 0, "in the present version"),
        (["plan", "--rows=100", "--dim=8", "--budget=50%"], 0, "100 ids x 8"),
        (["train", "--out", str(out)], 1, needs),
        (["ids", "log.csv", "--column", "a"], 1, needs),
        (["compare"], 1, needs),
        (["study", "x"], 1, "pip install 'mgqe[recsys]'"),
        (["inspect", str(out), "--plot", "x.png"], 1, "needs matplotlib; run: pip install 'mgqe[recsys]'"),
        (["plan", "--counts", "planted", "--dim=8", "--budget=50%"], 1, "polars"),
    ]
    hide = "import json, sys; sys.modules.update(polars=None, matplotlib=None)\n"
    hide += "from typer.testing import CliRunner; from mgqe.cli.app import app\n"
    hide += "answers = [CliRunner().invoke(app, call) for call in json.loads(sys.argv[1])]\n"
    hide += "print(json.dumps([(answer.exit_code, answer.output) for answer in answers]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "COLUMNS": "200"}
    command = [sys.executable, "-c", hide, json.dumps([arguments for arguments, _, _ in calls])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for (arguments, code, words), (exit_code, text) in zip(calls, json.loads(done.stdout), strict=True):
        assert (exit_code, words in flat(text)) == (code, True), (arguments, text)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_closed_pipe_is_silent(tmp_path: Path, as_json: bool) -> None:
    """As after `| head -1`: the reader has gone before all is written."""
    rows = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    mgqe.Collection(mgqe.compress_table(torch.from_numpy(rows), "60%")).save(tmp_path / "items")
    np.save(tmp_path / "queries.npy", rows)  # 300 answers, more than a pipe holds
    arguments = ["topk", str(tmp_path / "items"), "--queries", str(tmp_path / "queries.npy"), "-k", "50"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-m", "mgqe.cli", *arguments, *["--json"][:as_json]]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


def test_kill_and_go_on(tiny: Path, tmp_path: Path) -> None:
    """A process killed by the system mid-training leaves what an uninterrupted run can be continued from."""
    config = replace(TINY, data=str(tiny), embedding="mgqe:D=4,K=4/2", max_epochs=40, patience=40)
    settings = ["--seed=3", *SETTINGS, "--set=max_epochs=40", "--set=patience=40"]
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "mgqe.cli", "train", "--data", str(tiny), "--embedding", config.embedding]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    process = subprocess.Popen([*command, *settings, "--out", str(out)], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("phase-full-*/last.pt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert (out / "config.json").exists()
    assert not (out / "metrics.json").exists()
    train_run(config, out)
    train_run(config, tmp_path / "whole")
    for name in ("user.mgqe.safetensors", "item.mgqe.safetensors", "model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
