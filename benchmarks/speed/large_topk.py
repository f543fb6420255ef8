"""Top-K over a large table in a folder of shards: the share of the machine's bandwidth at which it reads the codes.

The table has the shape that ``budget="5%"`` plans for a million rows of 64 numbers, ids in order of frequency, and
codes drawn at random, in several shards. It is loaded as users load it, mapped. Times of a top-100 are set against a
sum over the same bytes with as many threads, in turns; both find the codes in the page cache, and those of the small
table in the processor's.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import mgqe
from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from benchmarks.speed.budgets import full_rows, planned
from mgqe import CompactTable
from mgqe.table.sharded import INDEX, new_set, prepared_index, publish_index, tier_order, write_shard

READ = "sum over the codes"
TARGET = 1 / 0.6  # the most that a search of one query may take of the time of reading
CHUNK = 1 << 20  # rows written at once


def shaped(path: str | None, seed: int) -> CompactTable:
    """A table of the shape: a saved one, or one that is planned."""
    table = mgqe.load(path) if path else planned(full_rows(1_000_000, 64, seed), "5%").freeze()
    assert isinstance(table, CompactTable)
    return table


def write(folder: Path, like: CompactTable, rows: int, num_shards: int, seed: int) -> None:
    """A table of so many rows, in shards, with the codebooks of another and the same shares of tiers."""
    generator = torch.Generator().manual_seed(seed)
    head = rows * like.config.sizes[0] // like.num_embeddings
    layout = like.config.resized((head, rows - head), None)
    frame = {name: t for name, t in like.to_tensors()[0].items() if not name.startswith("codes")}
    set_name, shards = new_set(), []
    bounds = [rows * number // num_shards for number in range(num_shards + 1)]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        of_head = max(0, min(stop, head) - start)
        sizes = (of_head, stop - start - of_head)

        def chunk(tier: int, count: int) -> Tensor:
            tensor = torch.randint(256, (count, layout.tiers[tier].row_bytes), generator=generator, dtype=torch.uint8)
            used = sum(layout.tiers[tier].code_bits) % 8
            if used:  # spare bits are zero
                tensor[:, -1] &= (1 << used) - 1
            return tensor

        chunks = (chunk(g, min(CHUNK, sizes[g] - first)) for g in tier_order(2) for first in range(0, sizes[g], CHUNK))
        write_shard(folder, set_name, number, layout.code_tensors(sizes), chunks)
        shards.append(sizes)
    with prepared_index(folder, set_name, frame, layout.to_json(), shards) as (temporary, _):
        publish_index(folder, temporary)


def resident_mib() -> dict[str, int]:
    """MiB of this process in memory of its own, and of files that it has mapped (Linux)."""
    status = Path("/proc/self/status")
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
    return {name: int(fields[name].split()[0]) // 1024 for name in ("RssAnon", "RssFile") if name in fields}


def read_all(arrays: list[Tensor]) -> None:
    """Sums of all bytes, eight at a time."""
    for rows in arrays:
        flat = rows.reshape(-1)
        start = -flat.data_ptr() % 8
        flat[start : start + (flat.numel() - start) // 8 * 8].view(torch.int64).sum()


def measured(rows: int, folder: Path, options: argparse.Namespace) -> Iterator[Measurement]:
    """A table of so many rows in a folder, made there if it is missing."""
    if not (folder / INDEX).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, shaped(options.like, options.seed), rows, options.shards, options.seed)
    before, begun = resident_mib(), time.perf_counter()
    table = mgqe.load(folder)
    assert isinstance(table, CompactTable)
    opened = {"open_s": round(time.perf_counter() - begun, 4), "resident_mib": [before, resident_mib()]}
    arrays = [rows for rows in table.snapshot.arrays if rows.shape[0]]
    nbytes = sum(rows.nbytes for rows in arrays)
    print(f"{rows:,} rows, {nbytes:,} bytes of codes in {options.shards} shards: {opened}")
    queries = torch.randn(max(options.queries), 64, generator=torch.Generator().manual_seed(options.seed))
    for threads in options.threads:
        torch.set_num_threads(threads)
        contenders: dict[str, Contender] = {READ: lambda _: read_all(arrays)}
        for count in options.queries:
            some = queries[:count].contiguous()
            contenders[f"top-100, {count} quer{'y' if count == 1 else 'ies'}"] = lambda _, q=some: table.topk(q, 100)
        setting = {"rows": f"{rows:,}", "shards": options.shards, "threads": threads}
        targets = {"top-100, 1 query": TARGET}
        for m in measure(setting, contenders, READ, options.rounds, options.calls, targets):
            print_table([m], rows, "row")
            speed = round(nbytes / m.median_s / 1e9, 2)
            print(f"  {speed} GB/s, {1 / m.ratio:.0%} of reading")
            yield replace(m, extra={"gb_per_s": speed, "bytes": nbytes, **opened})


def main() -> None:
    parser = argument_parser(__doc__ or "", "large-topk")
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 100e6], help="sizes of tables")
    parser.add_argument("--shards", type=int, default=8, help="files of codes")
    parser.add_argument("--queries", type=int, nargs="+", default=[1], help="queries of a search")
    parser.add_argument("--folder", help="of the tables, which are made there if missing; default: a temporary one")
    parser.add_argument("--like", help="a saved table of this budget to take the shape from; default: one is planned")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    results: list[Measurement] = []
    with TemporaryDirectory() as temporary:
        for rows in map(int, options.rows):
            results += measured(rows, Path(options.folder or temporary) / str(rows), options)
    options.like = options.folder = None  # where they were is no result
    save(options.out, "large-topk", options, results)


if __name__ == "__main__":
    main()
