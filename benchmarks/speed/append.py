"""Ids added after training: what appending costs, in memory and to a file, and what look-ups pay for it afterwards."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import mgqe
from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from mgqe import CompactTable, Tiers

D, DIM, COUNTS = 8, 64, (256, 64)
PEER = "save the whole table"


def make(n: int, shuffled: bool) -> CompactTable:
    """A table of two tiers, a tenth and the rest, with random codes."""
    made = torch.Generator().manual_seed(0)
    sizes = (n // 10, n - n // 10)
    tiers = Tiers.from_sizes(sizes)
    if shuffled:
        tier_of = torch.repeat_interleave(torch.arange(2, dtype=torch.uint8), torch.tensor(sizes))
        tiers = Tiers(sizes, tier_of[torch.randperm(n, generator=made)])
    codes = [torch.randint(0, k, (size, D), generator=made) for size, k in zip(sizes, COUNTS, strict=True)]
    return CompactTable.from_codes(tiers, codes, [torch.randn(D, 256, DIM // D, generator=made)], (0, 0), COUNTS)


def once(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of calls that each leave something behind, so that they cannot take turns with others."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def costs(rows: int, vectors: dict[int, Tensor]) -> list[Measurement]:
    """Changes of a table in memory and of its file, against writing the whole file again."""
    seconds: dict[str, list[float]] = {}
    table = make(rows, shuffled=True)
    for n, repeats in ((1, 500), (1000, 50), (100_000, 3)):
        seconds[f"append {n} in memory"] = once(lambda n=n: table.append(vectors[n]), repeats)
    ids = torch.randperm(rows)[:1000]
    seconds["update 1"] = once(lambda: table.update(ids[:1], vectors[1]), 5)
    seconds["update 1000"] = once(lambda: table.update(ids, vectors[1000]), 5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        whole = make(rows, shuffled=True)
        seconds[PEER] = once(lambda: mgqe.save(whole, path), 5)
        seconds["load"] = once(lambda: mgqe.load(path), 5)
        for n, repeats in ((1, 50), (1000, 20), (100_000, 3)):
            seconds[f"append {n} to the file"] = once(lambda n=n: mgqe.append(path, vectors[n]), repeats)
        seconds["load it and 73 appended files"] = once(lambda: mgqe.load(path), 5)
    base = statistics.median(seconds[PEER])
    return [
        Measurement({"rows": rows, "what": "changes"}, name, median, min(times), median / base)
        for name, times in seconds.items()
        for median in [statistics.median(times)]
    ]


def look_ups(options: argparse.Namespace, vectors: dict[int, Tensor]) -> list[Measurement]:
    """Of ids of the base and of appended ones, after 100,000 ids were appended in so many ranges."""
    found: list[Measurement] = []
    for shuffled in (False, True):
        tables = {"as made": make(options.rows, shuffled)}
        for ranges in (1, 10, 100):
            grown = tables[f"{ranges} appended ranges"] = make(options.rows, shuffled)
            for i, part in enumerate(vectors[100_000].chunk(ranges)):
                grown.append(part, 1 - i % 2)
        for batch in (1, 65_536):
            calls = 500 if batch == 1 else 1
            batches = [torch.randint(0, options.rows, (batch,)) for _ in range(options.calls + 1)]
            contenders: dict[str, Contender] = {
                name: lambda i, t=t, b=batches, c=calls: [t.lookup(b[i]) for _ in range(c)]
                for name, t in tables.items()
            }
            setting = {"rows": options.rows, "map": shuffled, "ids": batch, "calls": calls}
            found += measure(setting, contenders, "as made", options.rounds, options.calls)
    return found


def main() -> None:
    parser = argument_parser(__doc__ or "", "append")
    parser.add_argument("--rows", type=int, default=1_000_000, help="ids of the table as made")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    vectors = {n: torch.randn(n, DIM) for n in (1, 1000, 100_000)}
    results = costs(options.rows, vectors) + look_ups(options, vectors)
    print_table(results, 1, "call")
    save(options.out, "append", options, results)


if __name__ == "__main__":
    main()
