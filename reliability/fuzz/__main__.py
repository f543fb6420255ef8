"""``python -m reliability.fuzz``: see ``--help``."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: this process forks
os.environ.setdefault("POLARS_MAX_THREADS", "1")

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import torch

from reliability.fuzz.build import build
from reliability.fuzz.outcome import write_files
from reliability.fuzz.run import Fuzzer, Result, case_of
from reliability.fuzz.tally import Tally, text_table
from reliability.record import about_this_run, write_record

MAX_LISTED = 10  # faults listed at the end
PROGRESS_SECONDS = 30.0  # between two lines of progress


def parse_options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m reliability.fuzz",
        description="Damage small artefacts of every kind at random, load them and use all of them. Exit status 1 if a "
        "damaged file with checksums gave other results in silence, or an error did not name the file, or a process "
        "crashed, hung or ran out of memory.",
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--files", type=int, help="how many cases, instead of how long")
    parser.add_argument("--seed", type=int, default=0, help="decides every case (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--number", type=int, help="try this case alone, here, and keep its files under --out")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="where bad cases go (default: runs/fuzz)")
    parser.add_argument("--record", type=Path, help="where the counts go (default: OUT/fuzz-SEED-FIRST.json)")
    return parser.parse_args()


def scratch() -> Path | None:
    """A folder in memory; None if the system has none."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else None


def main() -> int:
    """The exit status."""
    options = parse_options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=scratch(), prefix="mgqe-fuzz-") as name:
        folder = Path(name)
        (folder / "built").mkdir()
        artefacts = build(folder / "built")
        tally = Tally()
        fuzzer = Fuzzer(artefacts, options.seed, folder, lambda result: on_result(fuzzer, tally, result, options.out))
        if options.number is not None:
            return try_alone(fuzzer, options.number, options.out)
        run(fuzzer, tally, options)
    for by in (0, 1):
        print("\n" + text_table(*tally.rows(by)))
    print(f"\n{tally.counts.total():,} files; {tally.failures:,} faults")
    for result in tally.bad[:MAX_LISTED]:
        print(f"{describe(result)}\n  again: {repeat(fuzzer.seed, result.number)}")
    return 1 if tally.failures else 0


def run(fuzzer: Fuzzer, tally: Tally, options: argparse.Namespace) -> None:
    """Try cases for as long as the options say, and write the counts now and then and at the end."""
    record = options.record or options.out / f"fuzz-{options.seed}-{options.first}.json"
    start = last_write = time.monotonic()

    def write() -> None:
        tried, seconds = tally.counts.total(), time.monotonic() - start
        about = {**about_this_run(), "seed": options.seed, "first": options.first, "files": tried, "seconds": seconds}
        write_record(record, {"fuzz": about, "counts": tally.record()})
        print(f"{tried:,} files in {seconds:.0f} s, {tally.failures:,} faults; {record}", flush=True)

    def more(number: int) -> bool:
        nonlocal last_write
        now = time.monotonic()
        if now - last_write > PROGRESS_SECONDS:
            last_write = now
            write()
        if options.files is not None:
            return bool(number < options.first + options.files)
        return bool(now - start < 60 * options.minutes)

    fuzzer.run(options.jobs, options.first, more)
    write()


def on_result(fuzzer: Fuzzer, tally: Tally, result: Result, out: Path) -> None:
    """Count a result, and keep the files of a fault."""
    if tally.add(result):
        keep(fuzzer, result, out)
        print(describe(result), flush=True)


def keep(fuzzer: Fuzzer, result: Result, out: Path) -> Path:
    """Write the files of a case and the command that repeats it."""
    target = out / f"{fuzzer.seed}-{result.number}"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_files(target, case_of(fuzzer.artefacts, fuzzer.seed, result.number).files)
    (out / f"{target.name}.txt").write_text(f"{describe(result)}\n{repeat(fuzzer.seed, result.number)}\n")
    return target


def describe(result: Result) -> str:
    """A case in one line."""
    outcome = result.outcome
    return f"{result.number}: {outcome.name}: {result.kind} {result.name}, {result.mutation}: {outcome.message[:300]}"


def repeat(seed: int, number: int) -> str:
    """The command that repeats a case."""
    return f"python -m reliability.fuzz --seed {seed} --number {number}"


def try_alone(fuzzer: Fuzzer, number: int, out: Path) -> int:
    """Try one case in this process, which ends if the case crashes."""
    fuzzer.learn()
    case = case_of(fuzzer.artefacts, fuzzer.seed, number)
    print(f"{case.artefact.kind} {case.artefact.name}: {case.mutation}", flush=True)
    for name in sorted({*case.files, *case.artefact.files}):
        old, new = case.artefact.files.get(name), case.files.get(name)
        if old != new:
            print(f"  {name}: {'-' if old is None else len(old)} -> {'-' if new is None else len(new)} bytes")
    result = fuzzer.try_one(number, fuzzer.folder / "alone")
    print(f"{result.outcome.name}: {result.outcome.message}\nfiles in {keep(fuzzer, result, out)}")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
