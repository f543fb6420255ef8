"""Look-ups and searches in tables of the shapes that a study's runs have, against the full tables.

For each pair of the study and each embedding that has a record, a table of its shape with random values is made: by the
options that its budget chose, or, where tables are planned, by the tiers, codes, coordinates and bytes that the record
of the first seed has. It is the table of items, which is also searched where the pair ranks, or else the largest table.
Ids follow a power law, and the frequent ones lie anywhere. Peers are nn.Embedding of the full rows, and their float32
product with the query and torch's topk. All contenders of a pair take turns in one run.

The file is STUDY/speed.json, which `mgqe report STUDY` shows beside the bytes. Tables that offer no search of their own
have no time for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import Contender, Measurement, argument_parser, measure, save
from benchmarks.quality._study_tables import ITEMS, measured_table, rows_of, table_like
from benchmarks.speed.decode import zipf_ids
from mgqe.recsys.study.analysis import StudyResults
from mgqe.recsys.study.declaration import FILE, FULL, read_declaration
from mgqe.recsys.study.records import read_results
from mgqe.recsys.study.runs import RESULTS
from mgqe.recsys.study.speed import LOOKUP, SEARCH, SPEED
from mgqe.table.base import FrozenTable

K = 100


@torch.no_grad()
def main() -> None:
    parser = argument_parser(__doc__ or "", "study-speed")
    parser.add_argument("study", type=Path, help="a study's folder, with its declaration and its records")
    parser.add_argument("--pair", nargs="+", help="only these; default: all that have records")
    parser.add_argument("--ids", type=int, default=65_536, help="ids of a look-up")
    parser.set_defaults(threads=[1], out=None)
    options = parser.parse_args()
    options.out = options.out or options.study / SPEED
    declaration = read_declaration(options.study / FILE)
    results = StudyResults(declaration, read_results(options.study / RESULTS).records)
    torch.set_num_threads(options.threads[0])
    measurements = [
        each
        for pair in results.pairs()
        if pair in (options.pair or [pair])
        for each in measured(results, pair, options)
    ]
    options.study = str(options.study)
    save(options.out, "study-speed", options, measurements)


def measured(study: StudyResults, pair: str, options: argparse.Namespace) -> Iterator[Measurement]:
    """All embeddings of a pair."""
    groups, full = study.groups(pair), next(iter(study.full(pair).by_seed.values()))
    dim, path = study.declaration.pairs[pair].config.dim, measured_table(full)
    rows = rows_of(full, path, dim)
    generator = np.random.default_rng(options.seed)
    frequent = torch.from_numpy(generator.permutation(rows))
    tables: dict[str, FrozenTable] = {}
    for group in groups:
        record = group.by_seed[min(group.by_seed)]
        tables[group.embedding] = table_like(record, path, rows, dim, frequent, options.seed)
    dense = torch.nn.Embedding.from_pretrained(torch.randn(rows, dim))
    ids = [frequent[zipf_ids(generator, rows, options.ids, 1.05)] for _ in range(options.calls + 1)]
    queries = {
        width: torch.randn(options.calls + 1, width) for width in {table.embedding_dim for table in tables.values()}
    }
    contenders: dict[str, dict[str, Contender]] = {
        LOOKUP: {name: partial(_look_up, table, ids) for name, table in tables.items()}
        | {FULL: lambda i: dense(ids[i])}
    }
    if path == ITEMS and study.full(pair).metric != "auc":
        contenders[SEARCH] = {
            name: partial(_search, table, queries[table.embedding_dim])
            for name, table in tables.items()
            if hasattr(table, "topk")
        } | {FULL: lambda i: (queries[dim][i : i + 1] @ dense.weight.T).topk(min(K, rows))}
    for what, of_kind in contenders.items():
        setting = {"pair": pair, "what": what, "table": path, "rows": rows, "dim": dim, "threads": options.threads[0]}
        found = measure(setting, of_kind, FULL, options.rounds, options.calls)
        for each in found:
            print(
                f"{pair}: {what:<8} {each.name:<40} {1e6 * each.median_s:10.1f} us  ratio {each.ratio:.3f}", flush=True
            )
        yield from found


def _look_up(table: FrozenTable, ids: list[Tensor], call: int) -> Tensor:
    return table.lookup(ids[call])


def _search(table: FrozenTable, queries: Tensor, call: int) -> object:
    return table.topk(queries[call : call + 1], min(K, table.num_embeddings))  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
