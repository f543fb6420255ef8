"""benchmarks/gpu.sh works on small tables and without a GPU, so that a machine with one is not lent in vain."""

from __future__ import annotations

import json
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from paths import ROOT


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.gpu.compare import main

    return main


def test_a_small_run_on_the_cpu(compare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compare.json"
    assert compare(["--small", "--device", "cpu", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    checks = content["checks"]
    assert all(checks[name] == "right" for name in ("codes", "training", "baselines", "torch.compile"))
    by_the_ways_of_a_gpu = ("frozen tables", "start, revival, calibration", "distinct ids", "ids out of range")
    assert all(checks[name] == "right" for name in by_the_ways_of_a_gpu)
    if not torch.cuda.is_available():
        assert content["environment"]["triton_kernels"] == (find_spec("triton") is not None)  # by its interpreter
    assert checks["several processes"] in ("right", "skipped: this torch has no gloo")
    assert content["failed"] == []
    names = {(row["what"].split()[0], row["name"]) for row in content["results"]}
    assert {("training", "mgqe default"), ("training", "mgqe 256/64, distinct ids"), ("an", "mgqe")} <= names
    assert {("look-up", "mgqe of a budget"), ("top-5", "mgqe 256/64")} <= names
    assert content["skipped"]["8 bags of 4 Zipf ids, 3,000 rows: fbgemm int4"] == "fbgemm is compared on GPUs"
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if " ms" in line) <= 80


def test_nothing_begins_when_the_time_is_over(compare, tmp_path: Path) -> None:
    out = tmp_path / "compare.json"
    compare(["--small", "--device", "cpu", "--minutes", "0", "--out", str(out)])
    content = json.loads(out.read_text())
    assert content["results"] == []
    assert "no time left" in content["skipped"].values()


def test_an_error_of_one_contender_is_kept_and_ends_nothing(compare, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu._settings import Run, Sizes

    def broken() -> None:
        raise RuntimeError("no such kernel")

    run = Run(torch.device("cpu"), Sizes.small(), float("inf"))
    run.compare("x", {"peer": lambda: int, "mgqe": broken, "fbgemm": broken}, "peer", {})
    assert [row["name"] for row in run.rows] == ["peer"]
    assert run.skipped == dict.fromkeys(("x: mgqe", "x: fbgemm"), "RuntimeError: no such kernel")
    assert run.failed == ["x: mgqe"]


def test_what_takes_too_long_is_stopped(compare) -> None:
    from benchmarks.gpu.compare import stopped_after

    started = time.monotonic()
    with stopped_after(0.1) as stopped:
        time.sleep(60)
    assert stopped == [True]
    assert time.monotonic() - started < 30
    with stopped_after(60) as stopped:
        pass
    assert stopped == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_says_what_to_do(compare, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare([])
    assert "use device='cpu' (with --small)" in capsys.readouterr().err


def test_operators_and_kernels_are_counted(compare, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton", reason="needs Triton, which runs on CPUs by its interpreter: pip install triton")
    from benchmarks.gpu.operators import main

    main()
    counts = {line[:28].strip(): line[28:].split() for line in capsys.readouterr().out.splitlines()[1:]}
    launched = {name: int(operators) + int(kernels) for name, (operators, kernels, _) in counts.items()}
    assert int(counts["mgqe, default"][1]) > 0
    # So many launches more than nn.Embedding has a step of two tiers: docs/gpu.md.
    assert launched["mgqe, 16 and 8 centroids"] - launched["nn.Embedding"] <= 11
    assert launched["mgqe, sx"] - launched["nn.Embedding"] <= 38
    # Bags: checks and offsets, and two kernels.
    assert [launched[name] for name in ("bags of dpq", "bags of mgqe, default")] == [6, 6]


def test_the_script_is_sound_shell() -> None:
    subprocess.run(["sh", "-n", str(ROOT / "benchmarks" / "gpu.sh")], check=True)
