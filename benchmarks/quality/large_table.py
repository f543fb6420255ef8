"""A vocabulary of any size on one machine, from a log on disk to top-K: memory over time, quality, times.

The log is generated once, as Parquet (_planted.py says what is planted in it). A method then runs in a
process of its own: ids are counted by streaming the log, tiers made, the table trained for one pass through the log,
frozen straight into its file, opened again, and asked. Quality is the AUC of a million held-out interactions, from the
frozen table where there is one (part 2 of the log; the learning rate and init_std were chosen on part 1 at a million
ids). Memory is the process's resident set, read twice a second; training memory is what parameters, buffers and the
optimiser's state hold, counted tensor by tensor.

    python -m benchmarks.quality.large_table --ids 100e6 --interactions 100e6 --log LOGS \
        --method cached --method hash=cached

`hash=NAME` is a hashed full table (float32 rows shared by ids) with the training memory of the method NAME, which must
have run before; `full` is a full float32 table. All rows train with RowwiseAdagrad.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

import mgqe
from benchmarks._common import QUALITY, environment
from benchmarks.quality._planted import PlantedLog
from mgqe.baselines import HashEmbedding
from mgqe.nn.rows import CachedRows, SketchRows

DIM, BATCH, FILE_ROWS, HELD = 64, 8_192, 1 << 21, 1_000_000
NEVER = 2**62


class Clicks(nn.Module):
    """sigmoid(<row of the id, row of the context>)."""

    def __init__(self, table: nn.Module, contexts: int) -> None:
        super().__init__()
        self.table = table
        self.context = nn.Embedding(contexts, DIM)
        nn.init.normal_(self.context.weight, std=0.1)

    def forward(self, ids: Tensor, contexts: Tensor) -> Tensor:
        return (self.table(ids) * self.context(contexts)).sum(1)


class Memory(threading.Thread):
    """The resident set over time, and which phase it was."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.begun, self.phase, self.samples = time.perf_counter(), "start", []
        self.seconds: dict[str, float] = {}
        self._since = self.begun

    def run(self) -> None:
        while True:
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            kib = {name: int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon", "RssFile")}
            self.samples.append((round(time.perf_counter() - self.begun, 1), self.phase, *kib.values()))
            time.sleep(0.5)

    def enter(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[self.phase] = round(now - self._since, 1)
        print(f"  {self.phase:10} {now - self._since:8.1f} s", flush=True)
        self.phase, self._since = phase, now


def write_log(log: PlantedLog, interactions: int, folder: Path) -> list[Path]:
    """The training part as Parquet files, once."""
    parts = range(0, interactions, FILE_ROWS)
    paths = [folder / f"log-{log.num_ids}-{log.seed}-{start // FILE_ROWS:04d}.parquet" for start in parts]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        for path, (ids, contexts, clicks) in zip(paths, log.batches(interactions, FILE_ROWS, 0), strict=True):
            frame = pl.DataFrame(
                {"id": ids.int().numpy(), "context": contexts.short().numpy(), "click": clicks.bool().numpy()}
            )
            frame.write_parquet(path)
    return paths


def batches(paths: list[Path]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches in the order of the log, one file in memory at a time."""
    for path in paths:
        frame = pl.read_parquet(path)
        columns = [torch.from_numpy(frame[name].to_numpy().copy()) for name in ("id", "context", "click")]
        for ids, contexts, clicks in zip(*(torch.split(column, BATCH) for column in columns), strict=True):
            yield ids.long(), contexts.long(), clicks.float()


def auc(scores: Tensor, clicks: Tensor) -> float:
    """The chance that a click scores above a non-click (ties are not expected among floats)."""
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[scores.argsort()] = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    good = float(clicks.sum())
    return (float(ranks[clicks > 0].sum()) - good * (good + 1) / 2) / (good * (len(scores) - good))


def quality(model: Clicks, look_up: Any, log: PlantedLog, counts: Tensor) -> dict[str, float]:
    """AUC of held-out interactions: of all, of ids seen 100 times or more in training, and 1 to 9 times."""
    scores, clicks, seen = [], [], []
    with torch.no_grad():
        for ids, contexts, clicked in log.batches(HELD, BATCH, 2):
            scores.append((look_up(ids) * model.context(contexts)).sum(1))
            clicks.append(clicked)
            seen.append(counts[ids])
    score, click, times = torch.cat(scores), torch.cat(clicks), torch.cat(seen)
    often, seldom = times >= 100, (times > 0) & (times < 10)
    return {
        "auc": auc(score, click),
        "auc_seen_100_times": auc(score[often], click[often]),
        "auc_seen_1_to_9_times": auc(score[seldom], click[seldom]),
    }


def make_table(method: str, n: int, tiers: mgqe.Tiers, training_bytes: int, options: argparse.Namespace) -> nn.Module:
    """The table of a method, its rows drawn from N(0, init_std)."""
    head = tiers.sizes[0]
    shape: dict[str, Any] = {
        "num_subspaces": options.subspaces,
        "num_centroids": tuple(options.centroids),
        "tiers": tiers,
        "sparse": True,
        "warmup_steps": NEVER,
    }
    cache = max(65_536, n // 25)
    with torch.no_grad():
        if method == "full":
            table: nn.Module = nn.Embedding(n, DIM, sparse=True, _weight=torch.empty(n, DIM))
            table.weight.normal_(std=options.init_std)  # type: ignore[operator,union-attr]
            return table
        if method.startswith("hash="):
            table = HashEmbedding(n, DIM, num_buckets=training_bytes // (4 * DIM + 4), sparse=True)
            table.weight.normal_(std=options.init_std)  # type: ignore[operator,union-attr]
            return table
        rows: Any = {
            "float32": "float32",
            "bfloat16": "bfloat16",
            "cached": CachedRows(head_rows=head, cache_rows=cache),
            "sketch": SketchRows(buckets=max(256, n // 25), interval=max(1, options.interactions // BATCH // 10)),
        }[method]
        table = mgqe.MGQEmbedding(n, DIM, rows=rows, **shape)
        table.raw_weight.normal_(std=options.init_std)
        if method == "sketch":
            table.store.centroids.normal_(std=options.init_std)  # type: ignore[union-attr]
    return table


def held_bytes(table: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of what training holds for a table."""
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    return {
        "parameters": sum(p.nbytes for p in table.parameters()),
        "buffers": sum(b.nbytes for b in table.buffers()),
        "optimiser": sum(v.nbytes for v in state),
    }


def run(method: str, options: argparse.Namespace, training_bytes: int, send: Any) -> None:
    """One method, from the log to top-K; sends its record."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    n, interactions = options.ids, options.interactions
    log = PlantedLog(n, seed=options.seed)
    memory = Memory()
    memory.start()
    memory.enter("log")
    paths = write_log(log, interactions, options.log)
    memory.enter("count")
    counts = mgqe.count_ids([str(path) for path in paths], n, column="id").int()
    memory.enter("tiers")
    tiers = mgqe.Tiers.from_counts(counts, fractions=options.fractions)
    memory.enter("make")
    table = make_table(method, n, tiers, training_bytes, options)
    model = Clicks(table, log.num_contexts)
    optimizer = mgqe.RowwiseAdagrad(table.parameters(), lr=options.lr)
    dense = torch.optim.Adam(model.context.parameters(), lr=2e-3)
    memory.enter("train")
    quantised = isinstance(table, mgqe.MGQEmbedding)
    warm = int(options.warm_up * interactions / BATCH)
    begun = time.perf_counter()
    for steps, (ids, contexts, clicks) in enumerate(batches(paths)):
        if quantised and steps == warm:
            memory.enter("codebooks")
            mgqe.start_quantizing(table)
            memory.enter("train on")
        loss = nn.functional.binary_cross_entropy_with_logits(model(ids, contexts), clicks)
        total = loss + mgqe.quantization_loss(table) if quantised else loss
        optimizer.zero_grad()
        dense.zero_grad()
        total.backward()
        optimizer.step()
        dense.step()
        if steps % 1000 == 999:
            rate = (steps + 1) * BATCH / (time.perf_counter() - begun)
            print(f"    {(steps + 1) * BATCH / 1e6:6.1f}M interactions, {rate / 1e3:.0f}k a second", flush=True)
    trained = time.perf_counter() - begun
    held = held_bytes(table, optimizer)
    record: dict[str, Any] = {
        "method": method,
        "ids": n,
        "interactions": interactions,
        "ids_in_log": int((counts > 0).sum()),
        "training_bytes": held,
        "training_bytes_a_row": round(sum(held.values()) / n, 1),
        "interactions_a_second": round(interactions / trained),
    }
    model.eval()
    if quantised:
        memory.enter("freeze")
        path = options.log / f"table-{method}-{n}.safetensors"
        record["file_bytes"] = mgqe.freeze_to(table, path)
        record["emptied"] = getattr(table.store, "emptied", None)
        memory.enter("judge")
        record["quality_in_training_mode"] = quality(model, table, log, counts)
        model.table, table = nn.Identity(), nn.Identity()
        optimizer.state.clear()
        optimizer.param_groups.clear()
        memory.enter("serve")
        loaded = mgqe.load(path)
        record["quality"] = quality(model, loaded.lookup, log, counts)
        record.update(ask(path, options))
    else:
        memory.enter("judge")
        record["quality"] = quality(model, table, log, counts)
    memory.enter("end")
    record["seconds"] = memory.seconds
    step = max(1, len(memory.samples) // 600)
    record["memory_kib"] = memory.samples[::step]
    record["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    send.send(record)


def ask(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Opening a table, and a top-100 over all of it against reading its codes once."""
    torch.set_num_threads(options.threads)
    found: dict[str, list[float]] = {"open": [], "top100": [], "read": []}
    for _ in range(7):
        begun = time.perf_counter()
        table: Any = mgqe.load(path)
        found["open"].append(time.perf_counter() - begun)
    queries = torch.randn(6, DIM, generator=torch.Generator().manual_seed(options.seed))
    table.topk(queries[5:], 100)  # pages in
    codes = [t for name, t in table.to_tensors()[0].items() if name.startswith("codes")]
    for i in range(5):
        begun = time.perf_counter()
        table.topk(queries[i : i + 1], 100)
        found["top100"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for tensor in codes:
            flat = tensor.reshape(-1)
            flat[: flat.numel() // 8 * 8].view(torch.int64).sum()
        found["read"].append(time.perf_counter() - begun)
    opened, top, read = (statistics.median(found[name]) for name in ("open", "top100", "read"))
    return {
        "open_ms": round(opened * 1e3, 1),
        "first_open_ms": round(found["open"][0] * 1e3, 1),
        "top100_s": round(top, 4),
        "read_codes_s": round(read, 4),
        "share_of_reading": round(read / top, 3),
        "asked_with_threads": options.threads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=float, default=1e6)
    parser.add_argument("--interactions", type=float, default=4e6)
    parser.add_argument("--log", type=Path, required=True, help="folder for the log and the tables")
    parser.add_argument("--method", action="append", help="full, float32, bfloat16, cached, sketch, hash=NAME")
    parser.add_argument("--subspaces", type=int, default=32)
    parser.add_argument("--centroids", type=int, nargs="+", default=[256, 64])
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.01, 0.99])
    parser.add_argument("--init-std", type=float, default=0.02)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--warm-up", type=float, default=0.7, help="share of the interactions")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ask", action="store_true", help="only open and ask the tables of an earlier run again")
    parser.add_argument("--out", type=Path, help="default: benchmarks/quality/results/large-table-IDS.json")
    options = parser.parse_args()
    options.ids, options.interactions = int(options.ids), int(options.interactions)
    out = options.out or QUALITY / f"large-table-{options.ids}.json"
    records = json.loads(out.read_text())["records"] if out.exists() else []
    context = multiprocessing.get_context("spawn")
    for method in options.method or ["cached"]:
        print(method, flush=True)
        if options.ask:
            record = next(r for r in records if r["method"] == method)
            record |= ask(options.log / f"table-{method}-{options.ids}.safetensors", options)
            out.write_text(json.dumps({**json.loads(out.read_text()), "records": records}) + "\n")
            print(
                {k: v for k, v in record.items() if k in ("open_ms", "first_open_ms", "top100_s", "share_of_reading")}
            )
            continue
        peer = next((r for r in records if r["method"] == method.partition("=")[2]), None)
        if method.startswith("hash=") and peer is None:
            parser.error(f"--method {method}: no record of {method.partition('=')[2]} in {out}")
        receive, send = context.Pipe(duplex=False)
        size = sum(peer["training_bytes"].values()) if peer else 0
        process = context.Process(target=run, args=(method, options, size, send))
        process.start()
        send.close()
        try:
            record = receive.recv()
        except EOFError:
            raise SystemExit(f"{method} ended without a result") from None
        process.join()
        shape = f"D = {options.subspaces}, K = {'/'.join(map(str, options.centroids))}"
        record |= {"shape": shape, "environment": environment()}
        records = [r for r in records if r["method"] != method] + [record]
        given = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k not in ("log", "out")}
        out.write_text(json.dumps({"benchmark": "large_table", "options": given, "records": records}) + "\n")
        shown = {k: v for k, v in record.items() if k not in ("memory_kib", "environment")}
        print(json.dumps(shown, indent=1), flush=True)


if __name__ == "__main__":
    main()
