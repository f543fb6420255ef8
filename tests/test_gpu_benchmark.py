"""benchmarks/gpu.sh works on small tables and without a GPU, so that a machine with one is not lent in vain."""

from __future__ import annotations

import json
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func
from paths import ROOT
from torch._dynamo.backends.common import aot_autograd


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
    assert ("compiled", "mgqe 256/64, compiled") in names
    # Everything that issues and docs/gpu.md aim at, each with how it turned out; nothing is judged on the CPU.
    aims = {(row["what"].split()[0], row["name"]): row["target"] for row in content["aims"]}
    both = ("mgqe 256/64", "mgqe of a budget")
    expected = {(what, name): aim for what, aim in (("look-up", 0.6), ("8", 0.7), ("memory", 1.01)) for name in both}
    steps = ("mgqe 256/64", "mgqe 256/64, bfloat16 rows", "mgqe default")
    expected |= {("training", name): 1.3 for name in steps} | {("compiled", "mgqe 256/64, compiled"): 1.3}
    assert aims == expected | {("top-5", "mgqe 256/64"): 0.3}
    if not torch.cuda.is_available():
        assert all(row["target_met"] is None for row in content["aims"])
    lines = capsys.readouterr().out.splitlines()
    assert sum("at most" in line for line in lines) == len(aims)
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


def test_ratios_are_judged_by_their_aims(compare, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a GPU: at the aim it is met, above it is not, and what was not measured is told apart."""
    from benchmarks.gpu._settings import Run, Sizes, against_aims, aim_line, table_line
    from benchmarks.gpu._speed import memory_row

    run = Run(torch.device("cpu"), Sizes.small(), float("inf"))
    run.aims = {("step", "mgqe"): 1.3, ("step", "other"): 1.3, ("memory", "mgqe"): 1.01, ("step", "skipped"): 1.3}
    timed = {"what": "step", "median_s": 0.013, "peak_bytes": 2**21, "target": 1.3}
    run.rows = [
        {**timed, "name": "mgqe", "ratio": 1.3, "target_met": True},
        {**timed, "name": "other", "ratio": 1.31, "target_met": False},
        memory_row("memory", "mgqe", 1000, 1011),
    ]
    assert [row["target_met"] for row in against_aims(run)] == [True, False, False, None]
    assert memory_row("memory", "mgqe", 1000, 1010)["target_met"] is True
    lines = [aim_line(row) for row in against_aims(run)]
    assert [" ".join(line.split()) for line in lines] == [
        "1.300 at most 1.3 met mgqe, step",
        "1.310 at most 1.3 MISSED other, step",
        "1.011 at most 1.01 MISSED mgqe, memory",
        "- at most 1.3 not measured on a GPU skipped, step",
    ]
    assert table_line(run.rows[1]).split() == ["other", "13.000", "ms", "1.310", "2", "MiB", "MISSED", "(1.3)"]


def test_a_compiler_that_gives_other_steps_is_told(compare) -> None:
    """Its loss and its gradients are compared with the eager step's; a compiler may be wrong in one of them alone."""
    from benchmarks.gpu._checks import compiled_is_eager
    from benchmarks.gpu._settings import Run, Sizes

    def compiler(scale: float):
        """Leaves operators as they are, and multiplies the first of the results: the loss, or a gradient."""

        def compiled(module: torch.fx.GraphModule, inputs: object):
            def call(*given: torch.Tensor):
                results = list(module(*given))
                first = next(at for at, one in enumerate(results) if one is not None and one.is_floating_point())
                results[first] = results[first] * scale
                return results

            return make_boxed_func(call)

        return compiled

    run = Run(torch.device("cpu"), Sizes.small(), float("inf"))
    compiled_is_eager(run, "even", aot_autograd(fw_compiler=compiler(1.0), bw_compiler=compiler(1.0)))
    with pytest.raises(AssertionError, match="the loss of even"):
        compiled_is_eager(run, "even", aot_autograd(fw_compiler=compiler(1.01), bw_compiler=compiler(1.0)))
    with pytest.raises(AssertionError, match=r"the gradient of \S+ of even"):
        compiled_is_eager(run, "even", aot_autograd(fw_compiler=compiler(1.0), bw_compiler=compiler(1.01)))


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
