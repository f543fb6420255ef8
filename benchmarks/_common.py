"""What the benchmarks share: interleaved timing, a table, and JSON with machine and versions.

Absolute times drift with the machine's load and clock; ratios within one run drift much less. So contenders take
turns: in every round each one makes two untimed calls, which refill the caches with its own data and the allocator
with its memory, and then its timed calls, over inputs that change from call to call. The median of these counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mgqe import ops
from mgqe.recsys.train.provenance import commit, machine, version_of

ROOT = Path(__file__).parent.parent
SPEED, QUALITY = (ROOT / "benchmarks" / kind / "results" for kind in ("speed", "quality"))
Contender = Callable[[int], object]


def environment() -> dict[str, Any]:
    """Machine, versions and load: what a reader needs to judge the numbers."""
    return {
        "cpu": machine()["processor"],
        "cpus": os.cpu_count(),
        "load_average": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        # Real-time priority (chrt -f 1) keeps other processes of a busy machine out of the timings.
        "real_time_priority": hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) == os.SCHED_FIFO,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version_of("numpy"),
        "faiss": version_of("faiss-cpu"),
        "fbgemm": version_of("fbgemm-gpu-cpu"),
        "onnxruntime": version_of("onnxruntime"),
        "mgqe": version_of("mgqe"),
        "commit": commit() or "unknown",
        "native_isa": ops.native_isa(),
    }


def interleave(contenders: Mapping[str, Contender], rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds of every timed call; contender f is called as ``f(i)`` with i counting up, to vary its input."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            run(0)
            run(0)
            for i in range(1, calls + 1):
                start = time.perf_counter()
                run(i)
                seconds[name].append(time.perf_counter() - start)
    return seconds


@dataclass(frozen=True)
class Measurement:
    """One contender in one setting; ``ratio`` is its median time over its peer's; ``extra`` goes into the JSON."""

    setting: dict[str, Any]
    name: str
    median_s: float
    best_s: float
    ratio: float
    target: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Whether a stated target was met in this run."""
        if self.target is None:
            return ""
        return f"{'met' if self.ratio <= self.target else 'MISSED'} (at most {self.target:.3g})"


def measure(
    setting: dict[str, Any],
    contenders: Mapping[str, Contender],
    peer: str,
    rounds: int,
    calls: int,
    targets: Mapping[str, float] | None = None,
) -> list[Measurement]:
    """Times the contenders of one setting against ``peer``; ``targets`` are the most their ratio may be."""
    seconds = interleave(contenders, rounds, calls)
    base = statistics.median(seconds[peer])
    return [
        Measurement(
            setting,
            name,
            statistics.median(times),
            min(times),
            statistics.median(times) / base,
            (targets or {}).get(name),
        )
        for name, times in seconds.items()
    ]


def print_table(measurements: list[Measurement], per: int, unit: str) -> None:
    """One block per setting; ``per``: items per call, so that times read as nanoseconds per item."""
    shown: dict[str, Any] | None = None
    width = max(len(m.name) for m in measurements)
    for m in measurements:
        if m.setting != shown:
            shown = m.setting
            print("\n" + ", ".join(f"{key} {value}" for key, value in shown.items()))
        time_each = m.median_s / per * 1e9
        print(f"  {m.name:<{width}}  {time_each:10.1f} ns/{unit}  ratio {m.ratio:7.3f}  {m.verdict}".rstrip())


def save(path: Path, benchmark: str, options: argparse.Namespace, measurements: list[Measurement]) -> None:
    """Writes the results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": benchmark,
        "options": {key: value for key, value in vars(options).items() if key != "out"},
        "environment": environment(),
        "results": [
            {
                **m.setting,
                "name": m.name,
                "median_s": m.median_s,
                "best_s": m.best_s,
                "ratio": round(m.ratio, 4),
                "target": m.target,
                "target_met": None if m.target is None else m.ratio <= m.target,
                **m.extra,
            }
            for m in measurements
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nwritten to {path}", file=sys.stderr)


def read_saved(path: Path, same: Sequence[str], options: argparse.Namespace) -> list[Measurement]:
    """What :func:`save` wrote in the file before, to go on with; nothing if there is no file.

    Raises SystemExit where it was measured with another machine, version, commit, or value of an option in ``same``.
    """
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    now: dict[str, Any] = {**environment(), **{name: vars(options)[name] for name in same}}
    then = {**content["environment"], **content["options"]}
    differing = [name for name, value in now.items() if name != "load_average" and then.get(name) != value]
    if differing:
        listed = ", ".join(f"{name} {then.get(name)!r}, now {now[name]!r}" for name in differing)
        raise SystemExit(f"{path} holds other measurements ({listed}): choose another --out, or remove it")
    measurements = []
    for row in content["results"]:
        names = list(row)
        setting = {name: row[name] for name in names[: names.index("name")]}
        extra = {name: row[name] for name in names[names.index("target_met") + 1 :]}
        of_time = (row[name] for name in ("name", "median_s", "best_s", "ratio", "target"))
        measurements.append(Measurement(setting, *of_time, extra))
    return measurements


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with the lines of the description as they are, and with the defaults of options."""


def argument_parser(description: str, benchmark: str) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=Help)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure")
    parser.add_argument("--rounds", type=int, default=6, help="turns that every contender gets")
    parser.add_argument("--calls", type=int, default=5, help="timed calls per turn")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--out", type=Path, default=SPEED / f"{benchmark}.json", help="where the JSON goes")
    return parser
