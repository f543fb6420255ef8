"""mgqe.IdMap on large logs: seconds and peak memory of counting, bytes per id, opening, look-ups against their peers.

Each setting first writes a Parquet log in files of ten million interactions under --folder (kept for the next run):
rank floor(D * u^4) of D possible ids, u uniform, so that few ids have most interactions; the id is 64 mixed bits of the
rank, or these as decimal text. Counting, opening and looking up each run in a process of their own, so that peak memory
is theirs: the most that was resident, less what it was after the imports. Cold means that the system was told to forget
the file's pages. Look-ups are timed by the processor's time: a busy machine interrupts long calls more.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks._common import SPEED, environment
from mgqe import IdMap
from mgqe.ids.strings import mix

PIECE = 10_000_000  # interactions a file
SLICE = 1_000_000  # interactions a row group
BATCH = 65_536  # look-ups a call
PEER_MOST = 10_000_000  # ids: a dict of more takes gigabytes


def write_log(folder: Path, interactions: int, possible: int, kind: str, seed: int) -> Path:
    """A folder of Parquet files, written once; each appears whole or not at all."""
    log = folder / f"{kind}-{interactions}-{possible}-{seed}"
    log.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, interactions, PIECE)):
        path = log / f"{number:03}.parquet"
        if path.is_file():
            continue
        generator = np.random.default_rng([seed, number])
        ranks = (possible * generator.random(min(PIECE, interactions - start)) ** 4).astype(np.uint64)
        frame = pl.DataFrame({"item": mix(ranks + np.uint64(1)).view(np.int64)})
        if kind == "string":
            frame = frame.select(pl.col("item").cast(pl.String))
        frame.write_parquet(path.with_suffix(".tmp"), row_group_size=SLICE)
        path.with_suffix(".tmp").rename(path)
    return log


def used() -> float:
    """Peak memory of this process so far, in MB. On Linux ru_maxrss would begin with that of the parent."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def count(log: str, out: str, memory_limit: int) -> dict[str, Any]:
    """Child: count a log and write its map."""
    torch.zeros(1).numpy()
    passes: list[tuple[float, float]] = []
    before, start, cpu = used(), time.perf_counter(), time.process_time()
    found = IdMap.from_log(
        f"{log}/*.parquet",
        "item",
        memory_limit=memory_limit,
        on_pass=lambda done, of: passes.append((time.perf_counter() - start, used())),
    )
    made = time.perf_counter() - start
    nbytes = found.save(out)
    return {
        "ids": len(found),
        "passes": len(passes) - 1,
        "count_s": round(passes[-1][0], 2),
        "map_s": round(made - passes[-1][0], 2),
        "save_s": round(time.perf_counter() - start - made, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "peak_mb_counting": round(passes[-1][1] - before),
        "peak_mb": round(used() - before),
        "file_bytes": nbytes,
        "bytes_an_id": round(nbytes / len(found), 2),
        "head_share_1%": round(found.share(len(found) // 100), 3),
    }


def forget(path: str) -> None:
    """Tell the system to drop the file's pages."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and milliseconds."""
    start = time.perf_counter()
    result = run()
    return result, round(1e3 * (time.perf_counter() - start), 3)


def opening(path: str, log: str) -> dict[str, Any]:
    """Child: open the map, cold and warm, and look the first ids up."""
    some = pl.scan_parquet(f"{log}/000.parquet").head(1000).collect()["item"]
    asked = some.to_numpy() if some.dtype.is_integer() else some.to_list()
    IdMap.load(path).rows(asked[:1])  # the first call of everything
    found: dict[str, Any] = {}
    for name in ("cold", "warm"):
        if name == "cold":
            forget(path)
        before = used()
        ids, found[f"open_{name}_ms"] = timed(lambda: IdMap.load(path))
        _, found[f"first_id_{name}_ms"] = timed(lambda ids=ids: ids.rows(asked[:1]))
        _, found[f"next_1000_ids_{name}_ms"] = timed(lambda ids=ids: ids.rows(asked))
        found[f"peak_mb_{name}"] = round(used() - before, 1)
    return found


def looking_up(path: str, log: str) -> dict[str, Any]:
    """Child: millions of look-ups a second of one processor's time, ids as in the log or all alike."""
    ids = IdMap.load(path)
    generator = np.random.default_rng(5)
    column = pl.read_parquet(f"{log}/000.parquet", columns=["item"], n_rows=20 * BATCH)["item"]
    by_log = [column.slice(i * BATCH, BATCH) for i in range(8)]
    uniform = [pl.Series("item", ids.ids(generator.integers(0, len(ids), BATCH))) for _ in range(8)]
    whole = None
    if len(ids) <= PEER_MOST:
        every = ids.ids(torch.arange(len(ids)))
        whole = pl.DataFrame({"item": every, "row": np.arange(len(ids))})
        known = dict(zip(every if isinstance(every, list) else every.tolist(), range(len(ids))))
    results = {}
    for name, batches in (("as in the log", by_log), ("uniform", uniform)):
        arrays = [b.to_numpy() if b.dtype.is_integer() else b.to_list() for b in batches]
        lists = [b.to_list() for b in batches]
        frames = [b.to_frame() for b in batches]
        runs: dict[str, Callable[[int], object]] = {
            "IdMap.rows": lambda i, arrays=arrays: ids.rows(arrays[i % 8])  # type: ignore[misc]
        }
        if whole is not None:
            runs["dict"] = lambda i, lists=lists: torch.tensor([known[x] for x in lists[i % 8]])  # type: ignore[misc]
            runs["polars join"] = lambda i, frames=frames: frames[i % 8].join(  # type: ignore[misc]
                whole, on="item", how="left", maintain_order="left"
            )
        seconds: dict[str, list[float]] = {key: [] for key in runs}
        for i in range(12):  # in turns, each over a batch that it has not just seen
            for key, run in runs.items():
                start = time.process_time()
                run(i)
                seconds[key].append(time.process_time() - start)
        results[name] = {key: round(BATCH / float(np.median(times)) / 1e6, 3) for key, times in seconds.items()}
    return {"million_look_ups_a_cpu_second": results}


STEPS = {"count": count, "opening": opening, "looking_up": looking_up}


def child(threads: int, step: str, *arguments: Any) -> dict[str, Any]:
    """Run a step in a process of its own."""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "POLARS_MAX_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.speed.idmap", "--child", json.dumps([step, *arguments])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=paths)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the logs and maps; 8 bytes an interaction")
    parser.add_argument("--interactions", type=int, nargs="*", default=[10_000_000, 100_000_000], help="of integer ids")
    parser.add_argument("--text", type=int, nargs="*", default=[10_000_000], help="interactions of string ids")
    parser.add_argument("--memory", type=int, nargs="+", default=[4 << 30], help="memory_limit, bytes")
    parser.add_argument("--threads", type=int, default=1, help="of polars")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", action="store_true", help="keep the results that --out has")
    parser.add_argument("--out", type=Path, default=SPEED / "idmap.json", help="where the JSON goes")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    if "--child" in sys.argv:
        step, *arguments = json.loads(sys.argv[sys.argv.index("--child") + 1])
        torch.set_num_threads(1)
        print(json.dumps(STEPS[step](*arguments)))
        return
    options = parser.parse_args()
    results: list[dict[str, Any]] = json.loads(options.out.read_text())["results"] if options.add else []
    settings = [("int64", n) for n in options.interactions] + [("string", n) for n in options.text]
    for kind, interactions in settings:
        log = write_log(options.folder, interactions, interactions, kind, options.seed)
        size = sum(path.stat().st_size for path in log.iterdir())
        path = str(options.folder / f"{log.name}.safetensors")
        for limit in options.memory:
            row = {"kind": kind, "interactions": interactions, "log_bytes": size, "memory_limit": limit}
            row |= {
                "load_average": round(os.getloadavg()[0], 1),
                **child(options.threads, "count", str(log), path, limit),
            }
            print(json.dumps(row), flush=True)
            results.append(row)
        results[-1] |= child(options.threads, "opening", path, str(log))
        results[-1] |= child(options.threads, "looking_up", path, str(log))
        print(json.dumps(results[-1], indent=1), flush=True)
    content = {
        "benchmark": "idmap",
        "options": {key: value for key, value in vars(options).items() if key not in ("out", "child", "folder", "add")},
        "environment": {**environment(), "polars": pl.__version__},
        "results": results,
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nwritten to {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
