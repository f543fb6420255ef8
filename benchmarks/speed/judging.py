"""HR@20 and NDCG@20 of every user over the whole catalogue: this library's exact top-K against a dense product.

Both are given the users' vectors and what they have had already, which is left out. "mgqe" finds the first 20 in the
codes of the item table, as `table.topk(exclude=)` does. "dense" multiplies with the decoded rows, hides what the users
have had, and takes torch's topk, a batch of users at a time, so that at most --cells scores are in memory. "ranks" is
what `mgqe train` does: it counts the items above each test item, which gives every figure at any depth at once.

Codes, vectors and items are random: the figures mean nothing, and must be the same for all three.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks._common import Measurement, argument_parser, measure, save
from benchmarks.speed._topk import Made, make_table
from mgqe.recsys.tasks.metrics import RankMetric, catalogue_ranks

K = 20
FIGURES = tuple(RankMetric(kind, K) for kind in ("hr", "ndcg"))
DENSE = "dense matmul + topk"


def main() -> None:
    parser = argument_parser(__doc__ or "", "judging")
    parser.set_defaults(threads=[2], rounds=3, calls=1)
    parser.add_argument("--users", type=int, default=50_000, help="users to judge, with one test item each")
    parser.add_argument("--items", type=int, default=60_000, help="rows of the item table")
    parser.add_argument("--dim", type=int, default=64, help="dimensions of a row")
    parser.add_argument("--subspaces", type=int, default=16, help="codes of a row, of 8 bits for a tenth of the items")
    parser.add_argument("--seen", type=int, default=30, help="items that each user has had")
    parser.add_argument("--cells", type=int, default=2**24, help="scores in memory at once, of the dense product")
    options = parser.parse_args()
    measurements = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        measurements += run(options, threads)
    save(options.out, "judging", options, measurements)


def run(options: argparse.Namespace, threads: int) -> list[Measurement]:
    """The three ways of judging at so many threads; SystemExit where their figures differ."""
    head = options.items // 10
    made = make_table((head, options.items - head), (256, 64), options.subspaces, options.dim, options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    queries = torch.randn(options.users, options.dim, generator=generator)
    # Distinct items of each user: as many from a random start, of which the first is the test item.
    start = torch.randint(options.items, (options.users, 1), generator=generator)
    of_user = (start + torch.arange(options.seen + 1)) % options.items
    tests, seen = of_user[:, 0].contiguous(), of_user[:, 1:].contiguous()
    ways = {
        DENSE: partial(by_dense, made, queries, tests, seen, options.cells),
        "mgqe top-K": partial(by_topk, made, queries, tests, seen),
        "ranks, as mgqe train": partial(by_ranks, made, queries, tests, seen),
    }
    figures = {name: way() for name, way in ways.items()}
    for name, found in figures.items():
        print(f"{name}: " + ", ".join(f"{metric} {value:.6f}" for metric, value in zip(FIGURES, found, strict=True)))
        # Scores that differ in their last bits may change places.
        if max(abs(a - b) for a, b in zip(found, figures[DENSE], strict=True)) > 2.0 / options.users:
            raise SystemExit(f"{name} judges otherwise than {DENSE}")
    setting = {"users": options.users, "items": options.items, "dim": options.dim, "threads": threads}
    measurements = measure(
        setting, {name: lambda _, way=way: way() for name, way in ways.items()}, DENSE, options.rounds, options.calls
    )
    for each in measurements:
        print(f"  {each.name:<22} {each.median_s:8.2f} s  ratio {each.ratio:.3f}")
    return measurements


def figures_of(ranks: Tensor) -> list[float]:
    """Of the ranks of the test items, K or more where they are not among the first K."""
    return [metric.figure(ranks) for metric in FIGURES]


def ranks_in(best: Tensor, tests: Tensor) -> Tensor:
    """The rank of each test item (n,) in the first K (n, K), else K."""
    found = best == tests[:, None]
    return torch.where(found.any(1), found.int().argmax(1), K)


def by_topk(made: Made, queries: Tensor, tests: Tensor, seen: Tensor) -> list[float]:
    return figures_of(ranks_in(made.table.topk(queries, K, exclude=seen).ids, tests))


def by_dense(made: Made, queries: Tensor, tests: Tensor, seen: Tensor, cells: int) -> list[float]:
    ranks = []
    for rows in batches(len(queries), max(1, cells // len(made.dense))):
        scores = queries[rows] @ made.dense.T
        scores.scatter_(1, seen[rows], -torch.inf)
        ranks.append(ranks_in(scores.topk(K).indices, tests[rows]))
    return figures_of(torch.cat(ranks))


def by_ranks(made: Made, queries: Tensor, tests: Tensor, seen: Tensor) -> list[float]:
    users, num = torch.arange(len(queries)), len(made.dense)
    offsets = torch.arange(len(queries) + 1) * seen.shape[1]
    return figures_of(
        catalogue_ranks(lambda rows: queries[rows] @ made.dense.T, users, tests, seen.reshape(-1), offsets, num)
    )


def batches(num: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, num, size))


if __name__ == "__main__":
    main()
