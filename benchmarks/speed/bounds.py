"""What tables of budgets cannot take less time than: their parts alone, beside nn.Embedding and nn.EmbeddingBag.

Each part is torch's, in one run with the whole: rows are written (look-ups of float32 end there), codes are read, sums
are multiplied with a matrix, and rows that fit the second-level cache are added up, as many as bags have.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from benchmarks.speed.budgets import BUDGETS, full_rows, planned
from benchmarks.speed.decode import zipf_ids
from mgqe import CompactTable, ops

LOOKUP, BAG = "nn.Embedding", "nn.EmbeddingBag"
IDS, BAGS, LENGTH = 65_536, 8192, 20
CACHED = 4096  # rows: 1 MB of them


def read_codes(table: CompactTable, ids: list[Tensor]) -> Contender:
    """Copies the codes of ids, all from the largest tier."""
    codes = max(table.snapshot.lookup.table.codes, key=len)
    wrapped = [each % len(codes) for each in ids]
    return lambda i: codes.index_select(0, wrapped[i])


def over(f: Callable[[Tensor], Tensor], batches: list[Tensor]) -> Contender:
    return lambda i: f(batches[i])


def main() -> None:
    parser = argument_parser(__doc__ or "", "bounds")
    parser.set_defaults(threads=[1])
    parser.add_argument("--rows", type=int, default=1_000_000, help="size of the table")
    parser.add_argument("--dim", type=int, default=64, help="dimensions per row")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    n, d = options.rows, options.dim
    rows = full_rows(n, d, options.seed)
    tables = {budget: planned(rows, budget, freeze=True).freeze() for budget in BUDGETS}
    full, pooled = torch.nn.Embedding.from_pretrained(rows), torch.nn.EmbeddingBag.from_pretrained(rows, mode="sum")
    cached = torch.nn.EmbeddingBag.from_pretrained(rows[:CACHED].clone(), mode="sum")
    generator = np.random.default_rng(options.seed)
    batches = [zipf_ids(generator, n, IDS, 1.05) for _ in range(options.calls + 1)]
    bags = [zipf_ids(generator, n, BAGS * LENGTH, 1.05) for _ in range(options.calls + 1)]
    offsets = torch.arange(0, BAGS * LENGTH, LENGTH)
    sums, matrix = torch.randn(BAGS, d), torch.randn(d, d)
    few = [each % CACHED for each in bags]
    lookups: dict[str, Contender] = {LOOKUP: over(full, batches)}
    lookups |= {budget: over(table.lookup, batches) for budget, table in tables.items()}
    lookups |= {f"codes of {budget} read": read_codes(table, batches) for budget, table in tables.items()}
    lookups["rows written"] = lambda i: torch.full((IDS, d), float(i))
    sizes: dict[str, Contender] = {BAG: over(lambda ids: pooled(ids, offsets), bags)}
    sizes |= {
        budget: over(lambda ids, p=table.snapshot.lookup: ops.bag(p, ids, offsets), bags)  # type: ignore[misc]
        for budget, table in tables.items()
    }
    sizes |= {f"codes of {budget} read": read_codes(table, bags) for budget, table in tables.items()}
    sizes["sums multiplied"] = lambda i: sums @ matrix
    sizes["cached rows added"] = over(lambda ids: cached(ids, offsets), few)
    results: list[Measurement] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        of_both = ((f"look-up of {IDS:,}", lookups, LOOKUP, IDS), (f"bags of {LENGTH}", sizes, BAG, BAGS * LENGTH))
        for what, contenders, peer, per in of_both:
            setting = {"what": what, "rows": f"{n:,}", "dim": d, "ids": "Zipf", "threads": threads}
            new = measure(setting, contenders, peer, options.rounds, options.calls)
            print_table(new, per, "id")
            results += new
    save(options.out, "bounds", options, results)


if __name__ == "__main__":
    main()
