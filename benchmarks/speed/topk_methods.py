"""Where each way of searching is the fastest: scoring every row, the byte filter, decoded blocks times queries.

``table.topk`` chooses by a rough model of what a row costs (choose() in topk.cpp); its numbers come from here. The
peer of every row of the table is the choice that "auto" makes: ratios below 1 show where it chose badly.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks._common import Measurement, argument_parser, measure, save
from mgqe import CompactTable, Tiers, ops

METHODS = ("scan", "filter", "blocks")
LAYOUTS = {"D=8 K=256": (8, 256), "D=16 K=256": (16, 256), "D=32 K=256": (32, 256), "D=64 K=256": (64, 256)}
LAYOUTS |= {"D=32 K=64": (32, 64), "D=16 K=16": (16, 16), "D=8 K=1000": (8, 1000)}


def random_table(rows: int, num_subspaces: int, num_centroids: int, seed: int) -> CompactTable:
    """64 dimensions, one tier."""
    made = torch.Generator().manual_seed(seed)
    codes = torch.randint(num_centroids, (rows, num_subspaces), generator=made, dtype=torch.int32)
    book = torch.randn(num_subspaces, num_centroids, 64 // num_subspaces, generator=made)
    return CompactTable.from_codes(Tiers.from_sizes([rows]), [codes], [book], [0], [num_centroids])


def search(prepared: ops.PreparedLookup, queries: torch.Tensor, isa: str, method: str, i: int) -> Any:
    ops.set_native_isa(isa)
    return ops.topk(prepared, ops.TopKJob(queries + 1e-3 * i, 100), method)


def main() -> None:
    parser = argument_parser(__doc__.splitlines()[0], "topk-methods")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 4, 16, 32, 128])
    parser.set_defaults(threads=[1], rounds=2, calls=2)
    options = parser.parse_args()
    measurements: list[Measurement] = []
    torch.set_num_threads(options.threads[0])
    for isa in ("avx512", "avx2", "neon", "scalar"):
        try:
            ops.set_native_isa(isa)
        except ValueError:
            continue
        for layout, (subspaces, centroids) in LAYOUTS.items():
            table = random_table(options.rows, subspaces, centroids, options.seed)
            for count in options.queries:
                queries = torch.randn(count, table.embedding_dim, generator=torch.Generator().manual_seed(1))
                setting = {"isa": isa, "layout": layout, "queries": count, "rows": options.rows}
                contenders = {m: partial(search, table.snapshot.lookup, queries, isa, m) for m in ("auto", *METHODS)}
                found = measure(setting, contenders, "auto", options.rounds, options.calls)
                each = {m.name: m.median_s / count / options.rows * 1e9 for m in found}
                print(isa, layout, f"{count} queries:", {name: f"{ns:.2f} ns" for name, ns in each.items()})
                measurements += found
    ops.set_native_isa("auto")
    save(options.out, "topk_methods", options, measurements)


if __name__ == "__main__":
    main()
