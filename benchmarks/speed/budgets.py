"""The tables that ``budget=`` makes: look-ups, bags, top-100, freezing, loading and a training step, against full ones.

Rows are Gaussian in axes turned at random, the variance of the k-th axis falling as 1 / k, and ids are in frequency
order, with counts of a power law. Tables are planned and frozen as ``MGQEmbedding.from_pretrained(rows, counts=counts,
budget=...)`` does. Peers: torch's modules and int8 and int4 row-wise bags, fbgemm's and faiss's where these are
installed, and matmul + topk in float32. The recall of top-100 is against the full rows. What look-ups were expected to
take is beside what they take.

A table size, a number of threads and a section (lookup, search, step) at a time are measured and saved. Results that
the file has already are kept and not measured again, if they are of the same commit, versions and options; ``--again``
forgets them. Most targets are for 1,000,000 x 64, which is measured in four times as many rounds. From 10 million rows
on there are look-ups alone, unless ``--sections`` says otherwise; rows of more than 64 numbers, which take 5 GB and
more, are left out there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import mgqe
from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, read_saved, save
from benchmarks.speed._budget_peers import row_wise_bags, searches
from benchmarks.speed.decode import zipf_ids
from mgqe import CompactTable, MGQEmbedding, ops
from mgqe.codec.planning.speed import Frequencies, lookup_share

BUDGETS = ("20%", "10%", "5%", "2%")
DEFAULT = "no budget"  # the layer that is planned with the bytes of the even shape
LOOKUP, BAG, TOPK, STEP = "nn.Embedding", "nn.EmbeddingBag", "fp32 matmul + topk", "nn.Embedding, SparseAdam"
HEADLINE, HEADLINE_ROUNDS = (1_000_000, 64), 4  # the size that targets are for, and how many times the rounds it has
OUTPUT_NUMBERS = 4_194_304  # that a look-up writes at most, 16 MiB: malloc asks the system anew for each 32 MiB
LARGE, LARGE_NUMBERS = 10_000_000, 640_000_000  # rows with look-ups alone, and numbers of a table at most
# The most that a budget's time may be of the peer's, with one thread: 1M rows of 64 numbers, and uniform ids of 10M.
TARGETS = {
    "look-up": dict(zip(BUDGETS, (0.5, 0.8, 1.2, 0.9), strict=True)),
    "bags of 20": dict(zip(BUDGETS, (0.6, 1.0, 1.4, 1.0), strict=True)),
    "top-100, 1 query": dict(zip(BUDGETS, (0.15, 0.06, 0.04, 0.02), strict=True)),
    "top-100, 32 queries": dict.fromkeys(BUDGETS, 0.1),
    "training step": dict.fromkeys((*BUDGETS, DEFAULT), 1.3),
}
LARGE_TARGETS = dict(zip(BUDGETS, (0.4, 0.5, 0.9, 0.7), strict=True))
FREEZE_SECONDS = 3.0  # at most, of 1M rows of 64 numbers


def targets_of(what: str, ids: str, n: int, d: int, threads: int) -> dict[str, float]:
    """The stated ones of a setting; none of most."""
    if (n, d, threads) == (1_000_000, 64, 1):
        return TARGETS[what]
    if (what, ids, n, d, threads) == ("look-up", "uniform", LARGE, 64, 1):
        return LARGE_TARGETS
    return {}


def full_rows(n: int, d: int, seed: int) -> Tensor:
    """Rows (n, d), the variance of whose axes falls as 1 / k."""
    generator = torch.Generator().manual_seed(seed)
    axes, _ = torch.linalg.qr(torch.randn(d, d, generator=generator))
    axes = torch.arange(1, d + 1)[:, None] ** -0.5 * axes
    rows = torch.empty(n, d)
    for part in rows.split(1 << 18):
        torch.matmul(torch.randn(part.shape, generator=generator), axes, out=part)
    return rows


def counts_of(n: int) -> Tensor:
    """How often each id occurs, the most frequent first."""
    return (10.0 * n * torch.arange(1, n + 1, dtype=torch.float64) ** -1.05).long() + 1


def planned(rows: Tensor, budget: str | None, **options: object) -> MGQEmbedding:
    """A layer that plans as a user's does; without a budget the default one."""
    return MGQEmbedding.from_pretrained(rows, counts=counts_of(len(rows)), budget=budget, **options)  # type: ignore[arg-type]


class Setting:
    """Tables of one size, made when the first of them is measured, and the measurements."""

    def __init__(self, n: int, d: int, options: argparse.Namespace) -> None:
        self.options, self.n, self.d = options, n, d
        self.generator = np.random.default_rng(options.seed)
        self.about: dict[str, dict[str, object]] = {}

    @cached_property
    def rows(self) -> Tensor:
        """The full table."""
        return full_rows(self.n, self.d, self.options.seed)

    @cached_property
    def tables(self) -> dict[str, CompactTable]:
        """Budget -> its table, made with all threads."""
        tables, threads = {}, torch.get_num_threads()
        torch.set_num_threads(max(self.options.threads))
        for budget in self.options.budgets:
            layer = planned(self.rows, budget, freeze=True)  # which copies no rows
            start = time.perf_counter()
            tables[budget] = layer.freeze()
            frozen = time.perf_counter() - start
            about = {"freeze_s": round(frozen, 3), **self._shape(tables[budget]), **_load(tables[budget])}
            if (self.n, self.d) == (1_000_000, 64):
                about["freeze_target_s"] = FREEZE_SECONDS
            self.about[budget] = about
            print(f"{self.n:,} x {self.d}, {budget}: {about}", flush=True)
        torch.set_num_threads(threads)
        return tables

    def _shape(self, table: CompactTable) -> dict[str, object]:
        layout = table.snapshot.layout
        bits = [sum(tier.code_bits) for tier in layout.tiers]
        return {"share": round(table.nbytes / self.rows.nbytes, 4), "subspaces": len(layout.widths),
                "coordinates": layout.num_coordinates, "tiers": list(layout.sizes), "bits": bits}  # fmt: skip

    def measured(
        self, what: str, functions: dict[str, Contender], peer: str, per: int, ids: str | None = None
    ) -> list[Measurement]:
        """All contenders in turns."""
        setting: dict[str, object] = {"what": what, "rows": f"{self.n:,}", "dim": self.d}
        setting |= {} if ids is None else {"ids": ids}
        setting["threads"] = threads = torch.get_num_threads()
        targets = targets_of(what, ids or "", self.n, self.d, threads)
        rounds = self.options.rounds * (HEADLINE_ROUNDS if (self.n, self.d) == HEADLINE else 1)
        results = measure(setting, functions, peer, rounds, self.options.calls, targets)
        print_table(results, per, "query" if ids is None else "id")
        expected = self.expected(ids) if what == "look-up" and threads == 1 and ids is not None else {}
        for name, share in expected.items():
            print(f"  expected of {name}: {share:.2f}")
        more = {name: {"expected": share} for name, share in expected.items()}
        return [
            replace(each, extra={**each.extra, **self.about.get(each.name, {}), **more.get(each.name, {})})
            for each in results
        ]

    def expected(self, distribution: str) -> dict[str, float]:
        """Budget -> the share of nn.Embedding's time that look-ups were expected to take."""
        asked = Frequencies.of(self.n, counts_of(self.n) if distribution == "Zipf" else None)
        shares = {}
        for budget, table in self.tables.items():
            transform = table.snapshot.transform
            turned = transform is not None and transform.turns
            shares[budget] = round(lookup_share(table.config, asked, turned), 4)
        return shares

    def ids(self, distribution: str, count: int) -> list[Tensor]:
        """One batch for each timed call, and one more."""
        if distribution == "Zipf":
            return [zipf_ids(self.generator, self.n, count, 1.05) for _ in range(self.options.calls + 1)]
        return [torch.from_numpy(self.generator.integers(self.n, size=count)) for _ in range(self.options.calls + 1)]

    # ---- what is measured ------------------------------------------------------------------------------------

    def lookup(self) -> Iterator[list[Measurement]]:
        """Many ids at once, and pooled ones."""
        full = torch.nn.Embedding.from_pretrained(self.rows)
        bags = torch.nn.EmbeddingBag.from_pretrained(self.rows, mode="sum")
        packed = dict(row_wise_bags(self.rows))
        count = min(self.options.ids, OUTPUT_NUMBERS // self.d)
        single, offsets = torch.arange(count + 1), torch.arange(0, 20 * self.options.bags + 1, 20)
        for distribution in ("Zipf", "uniform"):
            ids = self.ids(distribution, count)
            functions: dict[str, Contender] = {LOOKUP: lambda i, b=ids: full(b[i])}
            functions |= {name: lambda i, t=t, b=ids: t.lookup(b[i]) for name, t in self.tables.items()}
            functions |= {name: _pooled(bag, ids, single) for name, bag in packed.items()}
            yield self.measured("look-up", functions, LOOKUP, count, distribution)
            many = self.ids(distribution, 20 * self.options.bags)
            functions = {BAG: lambda i, b=many: bags(b[i], offsets[:-1])}
            functions |= {
                name: lambda i, p=t.snapshot.lookup, b=many: ops.bag(p, b[i], offsets[:-1])
                for name, t in self.tables.items()
            }
            functions |= {name: _pooled(bag, many, offsets) for name, bag in packed.items()}
            yield self.measured("bags of 20", functions, BAG, 20 * self.options.bags, distribution)

    def search(self) -> Iterator[list[Measurement]]:
        """The 100 rows of highest inner product."""
        queries = torch.randn(32, self.d, generator=torch.Generator().manual_seed(self.options.seed + 1))
        exact = (queries @ self.rows.T).topk(100).indices
        functions: dict[str, Callable[[Tensor], Tensor]] = {TOPK: lambda q: (q @ self.rows.T).topk(100).indices}
        functions |= {name: lambda q, t=t: t.topk(q, 100)[1] for name, t in self.tables.items()}
        functions |= self.indexes
        for name, find in functions.items():
            answers = find(queries)
            shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(answers, exact, strict=True)]
            self.about.setdefault(name, {})["recall@100 of the full rows"] = round(statistics.mean(shared) / 100, 4)
        for count in (1, 32):
            some = queries[:count].contiguous()
            contenders: dict[str, Contender] = {name: lambda i, f=f, q=some: f(q) for name, f in functions.items()}
            what = f"top-100, {count} quer{'y' if count == 1 else 'ies'}"
            yield self.measured(what, contenders, TOPK, count)

    @cached_property
    def indexes(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """faiss's."""
        return dict(searches(self.rows))

    def step(self) -> Iterator[list[Measurement]]:
        """A training step of 4,096 Zipf ids."""
        ids = self.ids("Zipf", 4096)
        functions: dict[str, Contender] = {STEP: training_step(torch.nn.Embedding(self.n, self.d, sparse=True), ids)}
        for name in (*self.options.budgets, DEFAULT):
            layer = planned(self.rows, None if name == DEFAULT else name, sparse=True)
            layer.start_quantizing()
            functions[name] = training_step(layer, ids)
        yield self.measured("training step", functions, STEP, 4096, "Zipf")


SECTIONS = {  # -> what is measured in each
    "lookup": {"look-up", "bags of 20"},
    "search": {"top-100, 1 query", "top-100, 32 queries"},
    "step": {"training step"},
}


def _pooled(bag: Callable[[Tensor, Tensor], Tensor], ids: list[Tensor], ends: Tensor) -> Contender:
    """ends: where bags begin, and where the last one ends, which fbgemm needs to know and torch does not."""
    offsets = ends if isinstance(bag, torch.nn.Module) else ends[:-1]
    return lambda i: bag(ids[i], offsets)


def _load(table: CompactTable) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        mgqe.save(table, path)
        start = time.perf_counter()
        mgqe.load(path)
        return {"load_s": round(time.perf_counter() - start, 4), "file": os.path.getsize(path)}


def training_step(layer: torch.nn.Module, ids: list[Tensor]) -> Contender:
    """A step with SparseAdam that draws the vectors of ids to zero."""
    optimizer = torch.optim.SparseAdam(list(layer.parameters()), lr=1e-3)
    layer.train()

    def run(i: int) -> None:
        with torch.enable_grad():
            loss = layer(ids[i]).square().mean()
            if isinstance(layer, MGQEmbedding):
                loss = loss + mgqe.quantization_loss(layer)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def sizes(options: argparse.Namespace) -> Iterator[tuple[int, int, list[str]]]:
    """(rows, dimensions, sections) to be measured."""
    for n in options.rows:
        for d in options.dims:
            if n < LARGE:
                yield n, d, options.sections or list(SECTIONS)
            elif n * d <= LARGE_NUMBERS:
                yield n, d, options.sections or ["lookup"]


def main() -> None:
    parser = argument_parser(__doc__ or "", "budgets")
    parser.set_defaults(rounds=3, calls=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000], help="sizes of tables")
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64, 128], help="dimensions per row")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), help="what is measured; default: see above")
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), help="shares of the full table's bytes")
    parser.add_argument("--ids", type=int, default=65_536, help="ids of a look-up; fewer of wide rows")
    parser.add_argument("--bags", type=int, default=8192, help="bags of a pooled look-up, of 20 ids each")
    parser.add_argument("--isa", default="auto", choices=["auto", "avx512", "avx2", "neon", "scalar"], help="force one")
    parser.add_argument("--again", action="store_true", help="forget what the file has")
    options = parser.parse_args()
    ops.set_native_isa(options.isa)
    torch.set_grad_enabled(False)
    same = ("budgets", "ids", "bags", "isa", "rounds", "calls", "seed")
    results = [] if options.again else read_saved(options.out, same, options)
    for n, d, sections in sizes(options):
        setting = Setting(n, d, options)
        for threads in options.threads:
            torch.set_num_threads(threads)
            for section in sections:

                def is_mine(
                    m: Measurement, key: object = (f"{n:,}", d, threads), whats: set[str] = SECTIONS[section]
                ) -> bool:
                    return (m.setting["rows"], m.setting["dim"], m.setting["threads"]) == key and m.setting[
                        "what"
                    ] in whats

                if any(map(is_mine, results)):
                    continue
                new = [each for measurements in getattr(setting, section)() for each in measurements]
                results = [m for m in results if not is_mine(m)] + new
                save(options.out, "budgets", options, results)


if __name__ == "__main__":
    main()
