"""``python -m reliability.kill NAME``: see ``--help``."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: this process forks
os.environ.setdefault("POLARS_MAX_THREADS", "1")

import argparse
import itertools
import mmap
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import torch

from reliability.kill.process import run_and_kill
from reliability.kill.runs import RUNS, contents, prepare, run_command, write_log
from reliability.kill.writers import WRITERS
from reliability.record import about_this_run, write_record

KILLS = {"train": 100, "compare": 100, "study": 100, "torchrec": 300}  # default number of kills; else 1000


def kill_writer(name: str, count: int, rng: Random, folder: Path) -> dict[str, Any]:
    """Kill a writer at random moments.

    AssertionError if there is no whole version after a kill, or if files are left over after the next write.
    """
    writer = WRITERS[name]()
    target = folder / "target"
    writer.prepare(target)
    names = writer.names(target)
    parent = os.getpid()  # the child ends when its parent has ended
    done = mmap.mmap(-1, 8)  # the number of versions that the child has written completely

    def write_on() -> None:
        for number in itertools.takewhile(lambda _: os.getppid() == parent, itertools.count(1)):
            writer.write(target, number)
            done[:8] = number.to_bytes(8, "little")

    start = time.perf_counter()
    for number in (1, 2, 0):
        writer.write(target, number)
    once = (time.perf_counter() - start) / 3
    left = 0
    if name == "append":
        writer.check(target, 3)
    for kill in range(count):
        done[:8] = bytes(8)
        run_and_kill(write_on, rng.uniform(0, 5 * once))
        writer.check(target, int.from_bytes(done[:8], "little"))
        left += writer.names(target) != names
        writer.write(target, 0)
        writer.check(target, 1 if name == "append" else 0)
        after = writer.names(target)
        assert after == names, f"kill {kill}: files left behind: {sorted(set(after) - set(names)) or after}"
    return {"what": writer.calls, "kills": count, "unfinished": left}


def kill_run(name: str, count: int, rng: Random, folder: Path) -> dict[str, Any]:
    """Kill a command at random moments and start it again until it ends.

    AssertionError unless it then has the same files, bit for bit, as an undisturbed run.
    """
    prepare()
    run_and_kill(lambda: write_log(folder), None)
    whole = folder / "whole"
    arguments = RUNS[name](folder, whole)
    run_and_kill(lambda: run_command(arguments), None)
    start = time.perf_counter()
    run_and_kill(lambda: run_command(RUNS[name](folder, folder / "again")), None)
    seconds = time.perf_counter() - start
    expected = contents(whole)
    compare(contents(folder / "again"), expected, "two runs that were left alone")
    kills = 0
    for run in itertools.count(1):
        out = folder / f"killed-{run}"
        while run_and_kill(lambda: run_command(RUNS[name](folder, out)), rng.uniform(0, seconds)):  # noqa: B023
            kills += 1
        compare(contents(out), expected, f"run {run} and one that was left alone")
        if kills >= count:
            return {"what": f"mgqe {name}", "kills": kills, "runs": run}
    raise AssertionError


def compare(actual: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    """AssertionError, with their names, for files that are missing on one side or differ."""
    more = sorted(actual.keys() ^ expected.keys())
    assert not more, f"{what}: only one has {', '.join(more)}"
    differing = [name for name in expected if actual[name] != expected[name]]
    assert not differing, f"{what} differ in {', '.join(differing)}"


def main() -> int:
    """The exit status."""
    names = [*RUNS, *WRITERS]
    parser = argparse.ArgumentParser(
        prog="python -m reliability.kill",
        description="Kill a writer with SIGKILL at random moments. Exit status 1 if the old or the new thing is not "
        "whole, a resumed run is not bit-identical, or files stay behind after the next save.",
    )
    parser.add_argument("name", nargs="*", help=f"what to kill: {', '.join(names)} (default: all of them)")
    parser.add_argument("--count", type=int, help="how often (default: 1000 writers, 100 runs)")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/kill"), help="where figures go (default: runs/kill)")
    options = parser.parse_args()
    if unknown := [name for name in options.name if name not in names]:
        parser.error(f"no {unknown[0]!r}: expected some of {', '.join(names)}")
    torch.set_num_threads(1)
    failed = False
    for name in options.name or names:
        if name == "torchrec" and find_spec("torchrec") is None:
            print("torchrec: skipped, it is not installed here (docs/torchrec.md)")
            continue
        count, rng = options.count or KILLS.get(name, 1000), Random(f"{options.seed} {name}")
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mgqe-kill-") as folder:
            try:
                figures = (kill_run if name in RUNS else kill_writer)(name, count, rng, Path(folder))
            except AssertionError as error:
                print(f"{name}: FAILED: {error}")
                failed = True
                continue
        figures = {**figures, "seed": options.seed, "seconds": time.monotonic() - start}
        print(f"{name}: {figures['kills']:,} kills in {figures['seconds']:.0f} s, nothing torn or lost", flush=True)
        write_record(options.out / f"kill-{name}.json", {"kill": {**about_this_run(), **figures}})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
