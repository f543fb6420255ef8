"""What `mgqe train` takes for a log of 30 million interactions: memory, and seconds of each epoch.

The log is a Parquet file of made-up interactions in order of time, of 1,000,000 users and 300,000 items, few of which
have most of them. Users and items belong to groups, and four in five interactions stay within the group, so that there
is something to learn. The command runs in a process of its own, whose largest memory is read at its end.

python -m benchmarks.quality.large_log --work FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks._common import QUALITY, environment

GROUPS = 100
CHUNK = 1_000_000
SKEW = 3.0  # a number in [0, 1) to this power, times how many there are: the first tenth has almost half


def write_log(path: Path, users: int, items: int, interactions: int, seed: int) -> None:
    """A Parquet file of `user`, `item` and `time`, a part at a time."""
    generator = np.random.default_rng(seed)
    parts = path.with_suffix(".parts")
    parts.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, interactions, CHUNK)):
        size = min(CHUNK, interactions - start)
        user = (users * generator.random(size) ** 1.5).astype(np.int32)
        any_item = (items * generator.random(size) ** SKEW).astype(np.int32)
        own = np.minimum(any_item // GROUPS * GROUPS + user % GROUPS, items - 1)
        item = np.where(generator.random(size) < 0.8, own, any_item).astype(np.int32)
        when = np.arange(start, start + size, dtype=np.int64)
        pl.DataFrame({"user": user, "item": item, "time": when}).write_parquet(parts / f"{number:03}.parquet")
    parts.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=300_000)
    parser.add_argument("--interactions", type=int, default=30_000_000)
    parser.add_argument("--work", type=Path, required=True, help="folder for the log (0.5 GB) and the run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the log")
    parser.add_argument("--out", type=Path, default=QUALITY / "large-log.json", help="where the JSON goes")
    parser.add_argument("--train", nargs="*", default=[], help="further options of mgqe train")
    options = parser.parse_args()
    log = options.work / "log.parquet"
    if not log.exists():
        write_log(log, options.users, options.items, options.interactions, options.seed)
    command = [
        *(sys.executable, "-m", "mgqe.cli", "train", "--data", str(log), "--model", "gmf", "--budget", "5%"),
        *("--set", "max_epochs=2", "--set", "anneal_epochs=1", "--set", "quantised_epochs=1"),
        *("--out", str(options.work / "run"), "--overwrite", *options.train),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(options.threads)})
    seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    metrics = json.loads((options.work / "run" / "metrics.json").read_text())
    shown = {key: metrics[key] for key in ("data_summary", "quality", "seconds_per_epoch", "embedding_bytes")}
    about = {"users": options.users, "items": options.items, "interactions": options.interactions}
    result = {**about, "threads": options.threads, "seconds": round(seconds), "peak_bytes": peak, **shown}
    print(f"peak memory {peak / 1e9:.1f} GB, {seconds:,.0f} s in all")
    options.out.write_text(json.dumps({"environment": environment(), "result": result}, indent=1) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
