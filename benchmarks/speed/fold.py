"""Look-ups of tables from budgets whose matrix a linear layer has taken over, against the same tables with it.

Tables and ids are those of :mod:`benchmarks.speed.budgets`. Times are of look-ups and sums alone, and of look-ups with
the linear layer behind them, which has as many outputs as a vector has numbers.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

import mgqe
from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from benchmarks.speed.budgets import full_rows, planned
from benchmarks.speed.decode import zipf_ids

BAG = 20  # ids


def measured(rows: Tensor, budget: str, options: argparse.Namespace) -> Iterator[Measurement]:
    """Of one budget."""
    n, d = rows.shape
    generator = np.random.default_rng(options.seed)
    table = planned(rows, budget, freeze=True).freeze()
    linear, rest = nn.Linear(d, d), nn.Linear(d, d)
    turned, bag = mgqe.CompactEmbedding(table), mgqe.CompactEmbeddingBag(table, mode="sum")
    folded, folded_bag = mgqe.fold_matrix(turned, rest), mgqe.fold_matrix(bag, copy.deepcopy(linear))
    full, full_bag = nn.Embedding.from_pretrained(rows), nn.EmbeddingBag.from_pretrained(rows, mode="sum")
    for kind in ("Zipf", "uniform"):
        ids = [
            zipf_ids(generator, n, options.ids, 1.05)
            if kind == "Zipf"
            else torch.from_numpy(generator.integers(n, size=options.ids))
            for _ in range(options.calls + 1)
        ]
        bags = [each[: len(each) // BAG * BAG].view(-1, BAG) for each in ids]
        for what, contenders, given in (
            ("look-up", {"nn.Embedding": full, "table": turned, "matrix folded": folded}, ids),
            ("look-up and linear layer", {
                "nn.Embedding": nn.Sequential(full, linear), "table": nn.Sequential(turned, linear),
                "matrix folded": nn.Sequential(folded, rest),
            }, ids),
            ("bags of 20", {"nn.Embedding": full_bag, "table": bag, "matrix folded": folded_bag}, bags),
        ):  # fmt: skip
            timed: dict[str, Contender] = {name: lambda i, f=f, x=given: f(x[i]) for name, f in contenders.items()}
            setting = {"what": what, "budget": budget, "rows": n, "dim": d, "ids": kind}
            results = measure(setting, timed, "nn.Embedding", options.rounds, options.calls)
            print_table(results, options.ids, "id")
            yield from results


def main() -> None:
    parser = argument_parser(__doc__ or "", "fold")
    parser.set_defaults(threads=[1])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the tables")
    parser.add_argument("--dim", type=int, default=64, help="numbers of a row")
    parser.add_argument("--budgets", nargs="+", default=["10%", "5%", "2%"], help="shares of the full table's bytes")
    parser.add_argument("--ids", type=int, default=65_536, help="of a call")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    rows = full_rows(options.rows, options.dim, options.seed)
    save(options.out, "fold", options, [m for budget in options.budgets for m in measured(rows, budget, options)])


if __name__ == "__main__":
    main()
