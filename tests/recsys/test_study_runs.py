"""A declared study, run: resumed where it stopped, failures recorded, tables and pictures at the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recsys_data import write_tiny
from typer.testing import CliRunner

from mgqe.cli.app import app
from mgqe.recsys.study.declaration import read_declaration
from mgqe.recsys.study.execute import Event
from mgqe.recsys.study.records import read_results
from mgqe.recsys.study.runs import RESULTS, Pace, default_jobs, pending_runs, run_study

SETTINGS = """
[settings]
dim = 8
batch_size = 256
max_epochs = 1
anneal_epochs = 1
quantised_epochs = 1
eval_negatives = 20
"""


def declare(folder: Path, methods: str, seeds: str = "[1, 2]") -> Path:
    data = write_tiny(folder)
    path = folder / "study.toml"
    pair = f'[pairs.gmf]\ntitle = "GMF, tiny"\nmodel = "gmf"\ndata = "{data}"\n'
    path.write_text(f"seeds = {seeds}\n{SETTINGS}\n{pair}\n{methods}")
    return path


METHODS = """
[[methods]]
name = "MGQE"
budgets = { 60 = ["mgqe:D=4,K=4/2"] }
[[methods]]
name = "DPQ"
budgets = { 60 = ["dpq:D=4,K=4"] }
[[methods]]
name = "scalar"
budgets = { 60 = ["scalar:bits=4"] }
[[ablations]]
name = "centroids"
seeds = 1
embeddings = { 2 = "mgqe:D=4,K=2/2", 4 = "mgqe:D=4,K=4/4" }
"""


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return CliRunner()


def test_a_study_from_declaration_to_report(runner: CliRunner, tmp_path: Path) -> None:
    declaration, out = declare(tmp_path, METHODS), tmp_path / "out"
    result = runner.invoke(app, ["study", str(declaration), "--out", str(out), "--jobs", "1"])
    assert result.exit_code == 0, result.output
    assert "0 runs are done, 10 to do" in result.output
    records = read_results(out / RESULTS).records
    assert len(records) == 10
    first = records[0]
    assert {record["status"] for record in records} == {"done"}
    assert {"commit", "versions", "machine", "embedding_bytes_by_part", "peak_memory_bytes", "seed"} <= set(first)
    assert {"hr@10", "valid_hr@10", "head_hr@10", "tail_hr@10"} <= set(first["quality"])
    # A second time there is nothing to do; with another seed only that one is run.
    result = runner.invoke(app, ["study", str(declaration), "--out", str(out)])
    assert "10 runs are done, 0 to do" in result.output
    declaration.write_text(declaration.read_text().replace("seeds = [1, 2]", "seeds = [1, 2, 3]"))
    result = runner.invoke(app, ["study", str(declaration), "--out", str(out), "--dry"])
    assert "10 runs are done, 4 to do" in result.output
    # The folder alone is enough for the report.
    page = tmp_path / "page.md"
    # Of an older report: a table, and one of which there is nothing to say any more.
    page.write_text(
        "before\n<!-- pair-gmf -->\nold\n<!-- /pair-gmf -->\n<!-- failed -->\nold\n<!-- /failed -->\nafter\n"
    )
    result = runner.invoke(app, ["report", str(out), "--into", str(page)])
    assert result.exit_code == 0, result.output
    for text in ("MGQE less the full tables", "less DPQ", "GMF, tiny", "centroids: GMF, tiny", "perplexity"):
        assert text in result.output
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| 60% | MGQE | `mgqe:D=4,K=4/2` |" in text
    pictures = sorted(path.name for path in (out / "pictures").iterdir())
    assert pictures == ["study-ablations.png", "study-codebooks.png", "study-size-quality.png", "study-training.png"]


def test_one_method_alone(runner: CliRunner, tmp_path: Path) -> None:
    declaration = declare(tmp_path, METHODS)
    runs = pending_runs(read_declaration(declaration), tmp_path, methods=["scalar"])
    assert [run.name for _, run in runs.pending] == [
        f"{name}, seed {seed}" for seed in (1, 2) for name in ("full", "scalar:bits=4")
    ]
    result = runner.invoke(app, ["study", str(declaration), "--dry", "--method", "skalar"])
    assert result.exit_code == 2
    assert "no method 'skalar' (did you mean 'scalar'?): expected 'MGQE', 'DPQ', 'scalar'" in result.output


CANDIDATES = """
[[methods]]
name = "scalar"
budgets = { 60 = ["scalar:bits=4", "scalar:bits=2", "scalar:bits=8"], 90 = ["scalar:bits=3"] }
"""


def test_further_seeds_are_for_the_candidate_that_validation_prefers(runner: CliRunner, tmp_path: Path) -> None:
    declaration = declare(tmp_path, CANDIDATES)
    declaration.write_text("candidate_seeds = 1\n" + declaration.read_text())
    result = runner.invoke(app, ["study", str(declaration), "--dry"])
    assert "0 runs are done, 7 to do" in result.output
    assert (
        "\n3 are of further seeds of methods with several candidates: of these, the one that validation"
        in result.output
    )
    assert runner.invoke(app, ["study", str(declaration), "--jobs", "1"]).exit_code == 0
    records = {(record["seed"], record["embedding"]): record for record in read_results(tmp_path / RESULTS).records}
    assert len(records) == 5 + 3
    fitting = ["scalar:bits=4", "scalar:bits=2"]  # eight bits are more than 60%
    best = max(fitting, key=lambda name: records[1, name]["quality"]["valid_full_ndcg@10"])
    assert {name for seed, name in records if seed == 2} == {"full", best, "scalar:bits=3"}
    again = pending_runs(read_declaration(declaration), tmp_path)
    assert (len(again.pending), len(again.recorded), len(again.waiting)) == (0, 8, 2)
    every = declaration.read_text().removeprefix("candidate_seeds = 1\n")
    declaration.write_text(every)
    assert len(pending_runs(read_declaration(declaration), tmp_path).pending) == 2


def test_variants_of_the_full_tables_get_further_seeds(runner: CliRunner, tmp_path: Path) -> None:
    """Their files are larger than 100% by a header."""
    block = '[[methods]]\nname = "full, longer"\nbudgets = { 100 = ["full@max_epochs=2", "full@max_epochs=3"] }\n'
    declaration = declare(tmp_path, block)
    declaration.write_text("candidate_seeds = 1\n" + declaration.read_text())
    assert runner.invoke(app, ["study", str(declaration), "--jobs", "1"]).exit_code == 0
    records = read_results(tmp_path / RESULTS).records
    assert len({record["embedding"] for record in records if record["seed"] == 1}) == 3
    assert len({record["embedding"] for record in records if record["seed"] == 2}) == 2


def test_what_is_lost_from_the_file_is_taken_from_the_run(runner: CliRunner, tmp_path: Path) -> None:
    declaration, out = declare(tmp_path, "", seeds="[1]"), tmp_path / "out"
    assert runner.invoke(app, ["study", str(declaration), "--out", str(out), "--jobs", "1"]).exit_code == 0
    whole = (out / RESULTS).read_bytes()
    (out / RESULTS).write_bytes(whole[: len(whole) // 2])
    (metrics,) = (out / "runs/gmf").glob("full-seed1-*/metrics.json")
    before = metrics.stat().st_mtime_ns
    result = runner.invoke(app, ["study", str(declaration), "--out", str(out), "--jobs", "1"])
    assert "line 1 is not whole" in result.output
    assert (out / RESULTS).read_bytes() == whole
    assert metrics.stat().st_mtime_ns == before


def test_budgets_alone_and_one_that_nothing_fits(runner: CliRunner, tmp_path: Path) -> None:
    block = '[[methods]]\nname = "{0}"\nbudgets = {{ 90 = ["{1}:budget=90%"], 2 = ["{1}:budget=2%"] }}\n'
    names = {"scalar": "scalar", "small d": "full", "additive codes": "additive"}
    listed = "".join(block.format(name, method) for name, method in names.items())
    declaration, out = declare(tmp_path, listed, "[1]"), tmp_path / "out"
    result = runner.invoke(app, ["study", str(declaration), "--out", str(out), "--jobs", "1"])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert re.search(r"to be recorded as failed: embedding scalar:budget=2%: 8\d bytes are left for user, item", said)
    assert "4 runs done, 3 failed" in result.output
    records = {record["embedding"]: record for record in read_results(out / RESULTS).records}
    for method in names.values():
        failed, done = records[f"{method}:budget=2%"], records[f"{method}:budget=90%"]
        assert "of which the least is" in failed["reason"]
        assert done["chosen"].startswith(f"{method}:")
        assert done["embedding_bytes"] <= 0.9 * done["full_embedding_bytes"]
    result = runner.invoke(app, ["report", str(out)])
    assert result.exit_code == 0, result.output
    for text in ("small d", "additive:budget=90%", "Runs that failed", "of which the least is"):
        assert text in result.output


def test_a_failed_run_is_recorded_and_the_others_go_on(runner: CliRunner, tmp_path: Path) -> None:
    diverging = 'budgets = { 60 = ["full:d=4@learning_rate=1e30", "full:d=2"] }'
    declaration, out = declare(tmp_path, f'[[methods]]\nname = "small d"\n{diverging}\n', "[1]"), tmp_path / "out"
    result = runner.invoke(app, ["study", str(declaration), "--out", str(out), "--jobs", "1"])
    assert result.exit_code == 0, result.output
    assert "2 runs done, 1 failed" in result.output
    records = {record["embedding"]: record for record in read_results(out / RESULTS).records}
    failed = records["full:d=4@learning_rate=1e30"]
    assert failed["status"] == "failed"
    assert "diverged" in failed["reason"]
    assert records["full:d=2"]["status"] == "done"
    # Not tried again unless asked to be.
    result = runner.invoke(app, ["study", str(declaration), "--out", str(out), "--dry"])
    assert "3 runs are done, 0 to do (1 failed before)" in result.output
    result = runner.invoke(app, ["study", str(declaration), "--out", str(out), "--dry", "--retry"])
    assert "2 runs are done, 1 to do" in result.output
    result = runner.invoke(app, ["report", str(out)])
    assert "Runs that failed" in result.output
    assert "diverged" in result.output


def test_a_missing_file_is_said_before_anything_is_trained(runner: CliRunner, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('[pairs.a]\nmodel = "gmf"\ndata = "planted"\n[pairs.b]\nmodel = "wide_deep"\ndata = "frappe"\n')
    result = runner.invoke(app, ["study", str(path), "--out", str(tmp_path / "out"), "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    flat = " ".join(result.output.split())
    for part in ("frappe/frappe.csv", "http", "sha256"):
        assert part in flat
    assert not (tmp_path / "out").exists()
    assert runner.invoke(app, ["study", str(path), "--pair", "c"]).exit_code == 2
    assert runner.invoke(app, ["study", str(path), "--seeds", "one"]).exit_code == 2


def test_a_killed_study_goes_on(tmp_path: Path) -> None:
    declaration, out = declare(tmp_path, METHODS, "[1]"), tmp_path / "out"
    command = [sys.executable, "-m", "mgqe.cli", "study", str(declaration), "--out", str(out), "--jobs", "1"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    while not (out / RESULTS).exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    study = read_declaration(declaration)
    done = read_results(out / RESULTS).records
    assert 1 <= len(done) < 6
    runs = pending_runs(study, out)
    assert len(runs.pending) + len(runs.recorded) == 6
    assert len(runs.recorded) == len(done)
    ended: list[Event] = []
    pace = Pace(runs.pending, jobs=2)
    assert pace.seconds_left() is None
    pace.learn(done)
    assert pace.seconds_left() == pytest.approx(done[0]["seconds"] * len(runs.pending) / 2, rel=0.2) or len(done) > 1
    records = run_study(runs, out, 1, lambda event: ended.append(event) if event.metrics else None)
    for event in ended:
        pace.end(event, study.pairs["gmf"])
    assert pace.seconds_left() == 0.0
    assert len(records) == len(ended) == len(runs.pending)
    assert len({json.dumps(record["key"]) for record in read_results(out / RESULTS).records}) == 6
    with pytest.raises(ValueError, match="--jobs must be 1 or more"):
        run_study(runs, out, 0)
    assert default_jobs() >= 1
    assert default_jobs(threads=10**6) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc who is whose child")
def test_a_killed_studys_workers_end_too(tmp_path: Path) -> None:
    declaration, out = declare(tmp_path, METHODS, "[1, 2]"), tmp_path / "out"
    command = [sys.executable, "-m", "mgqe.cli", "study", str(declaration), "--out", str(out), "--jobs", "2"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    while not (out / RESULTS).exists() and process.poll() is None:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def test_a_folder_of_train_is_refused(tmp_path: Path) -> None:
    study = read_declaration(declare(tmp_path, METHODS))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a run of mgqe train: choose another --out"):
        pending_runs(study, tmp_path / "run")
