"""Look-ups and bags of Zipf ids against those of uniform ids, of the tables that budgets make, in turns.

Tables and ids are those of :mod:`benchmarks.speed.budgets`. Zipf ids have most of their rows in the caches, and mix
tiers. So a table should take no longer for them than for uniform ids, which come almost all from the last tier.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from benchmarks.speed.budgets import BUDGETS, full_rows, planned
from benchmarks.speed.decode import zipf_ids

BAG = 20  # ids


def measured(options: argparse.Namespace) -> Iterator[Measurement]:
    """Each table's times of both kinds of ids."""
    n, d = options.rows, options.dim
    generator = np.random.default_rng(options.seed)
    rows = full_rows(n, d, options.seed)
    full, bags = torch.nn.Embedding.from_pretrained(rows), torch.nn.EmbeddingBag.from_pretrained(rows, mode="sum")
    tables = {budget: planned(rows, budget, freeze=True).freeze() for budget in options.budgets}
    ids: dict[str, list[torch.Tensor]] = {"uniform": [], "Zipf": []}
    for _ in range(options.calls + 1):
        ids["uniform"].append(torch.from_numpy(generator.integers(n, size=options.ids // BAG * BAG)))
        ids["Zipf"].append(zipf_ids(generator, n, options.ids // BAG * BAG, 1.05))
    contenders = {"full table": (full, bags)}
    contenders |= {name: (table.lookup, lambda ids, t=table: t.bag(ids, mode="sum")) for name, table in tables.items()}
    bagged = {kind: [each.view(-1, BAG) for each in of_kind] for kind, of_kind in ids.items()}
    for what, place, given in (("look-up", 0, ids), (f"bags of {BAG}", 1, bagged)):
        for name, functions in contenders.items():
            timed: dict[str, Contender] = {
                kind: lambda i, f=functions[place], x=of_kind: f(x[i]) for kind, of_kind in given.items()
            }
            setting = {"what": what, "rows": n, "dim": d, "table": name}
            results = measure(setting, timed, "uniform", options.rounds, options.calls)
            print_table(results, options.ids, "id")
            yield from results


def main() -> None:
    parser = argument_parser(__doc__ or "", "zipf")
    parser.set_defaults(threads=[1])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the tables")
    parser.add_argument("--dim", type=int, default=64, help="numbers of a row")
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), help="shares of the full table's bytes")
    parser.add_argument("--ids", type=int, default=65_536, help="of a call")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    save(options.out, "zipf", options, list(measured(options)))


if __name__ == "__main__":
    main()
