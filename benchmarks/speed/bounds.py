"""What tables of budgets cannot take less time than: parts of the work alone, in one run with the whole and its peer.

A whole that has a target names its parts. Parts that come one after another, as those of a step and the operators of a
graph, add up; elsewhere the longest part is the bound. Parts are torch's (products of matrices, steps of SparseAdam),
ONNX Runtime's operators, or loops in C++: the lines that hold the codes of ids are read, and as many rows written, all
codes are read once (_limits.cpp), or all that no kernel does without is done in one loop (_fused.py). Sections:

    lookup    65,536 ids, Zipf and uniform
    large     the same of 10,000,000 rows, uniform, with codes drawn at random
    bag       8,192 bags of 20 ids, Zipf and uniform
    step      a training step of 4,096 Zipf ids, and sixteen of the warm-up, of which one gathers gradients
    search    top-100 of one query and of 32
    stream    top-100 of one query in 10,000,000 rows of 5%, with two threads, against reading the codes
    pq        the same against faiss IndexPQ, 16 and 32 bytes per row
    freeze    making a table
    onnx      a look-up of 65,536 ids in ONNX Runtime
    avx2      look-ups, bags and searches without AVX-512

python -m benchmarks.speed.bounds [--sections NAME ...]

Sections that the file has already are kept, if they are of the same commit, versions and options.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import mgqe
from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, read_saved, save
from benchmarks.speed import _fused
from benchmarks.speed._bound_parts import (
    all_reader,
    as_many_products,
    centroids_stepped,
    codes_finder,
    errors_added,
    largest_codes,
    levels_searched,
    line_reader,
    many_steps,
    over,
    row_writer,
    turned,
)
from benchmarks.speed.budgets import BUDGETS, FREEZE_SECONDS, LARGE_TARGETS, TARGETS, full_rows, planned, training_step
from benchmarks.speed.decode import zipf_ids
from benchmarks.speed.large_topk import TARGET as STREAM_TARGET
from benchmarks.speed.large_topk import write
from mgqe import CompactTable, Tiers, ops
from mgqe.nn.metric import RARELY

IDS, BAGS, LENGTH, K = 65_536, 8192, 20, 100
TIMES_LARGE = 10  # of the rows of other sections
TRAINED = 4096  # ids of a training step
FREEZE_THREADS = STREAM_THREADS = 2
NEVER = 2**62  # warm-up steps
FULL = "the full table"
ALL_WORK = "all work in one loop"
READ_AND_WRITTEN = "lines of the {} table read, rows of float32 written"
WARM_UP = f"{RARELY} steps of the warm-up, Zipf ids"
PQ_TARGETS = {16: 0.1, 32: 0.2}  # codes -> share of IndexPQ's time
ONNX_TARGET = 2.0
AVX2_FACTOR = 2.0  # of the targets with AVX-512
Parts = Mapping[str, Sequence[str]]  # whole -> its parts


class Bounds:
    """Tables, made when the first section needs them, and the sections."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.n, self.d = options, options.rows, options.dim
        self.generator = np.random.default_rng(options.seed)

    @cached_property
    def rows(self) -> Tensor:
        """The full table."""
        return full_rows(self.n, self.d, self.options.seed)

    @cached_property
    def tables(self) -> dict[str, CompactTable]:
        """Budget -> its table."""
        return {budget: planned(self.rows, budget).freeze() for budget in BUDGETS}

    @cached_property
    def query(self) -> Tensor:
        """One."""
        return torch.randn(1, self.d, generator=torch.Generator().manual_seed(self.options.seed + 1))

    def zipf(self, count: int) -> list[Tensor]:
        """A batch for each timed call, and one more."""
        return [zipf_ids(self.generator, self.n, count, 1.05) for _ in range(self.options.calls + 1)]

    def uniform(self, count: int) -> list[Tensor]:
        """The same, of all ids alike."""
        return [torch.from_numpy(self.generator.integers(self.n, size=count)) for _ in range(self.options.calls + 1)]

    def measured(
        self, what: str, contenders: dict[str, Contender], per: int, targets: Mapping[str, float], parts: Parts,
        overlap: bool = True, rows: int | None = None,
    ) -> list[Measurement]:  # fmt: skip
        """All in turns; the first is the peer. ``overlap``: whether parts may."""
        setting = {"what": what, "rows": rows or self.n, "dim": self.d, "ids": per, "threads": torch.get_num_threads()}
        peer = next(iter(contenders))
        results = measure(setting, contenders, peer, self.options.rounds, self.options.calls, targets)
        results = [
            replace(m, extra={"parts": list(parts[m.name]), "overlap": overlap}) if m.name in parts else m
            for m in results
        ]
        print_table(results, per, "id")
        ratios = {m.name: m.ratio for m in results}
        for name, of_name in parts.items():
            print(f"  {name}: at least {(max if overlap else sum)(ratios[part] for part in of_name):.3f}")
        return results

    # ---- sections --------------------------------------------------------------------------------------------

    def lookup(self) -> Iterator[list[Measurement]]:
        """Many ids at once."""
        full = torch.nn.Embedding.from_pretrained(self.rows)
        for kind, ids in (("Zipf", self.zipf(IDS)), ("uniform", self.uniform(IDS))):
            contenders: dict[str, Contender] = {FULL: over(full, ids)}
            contenders |= {f"{budget} table": over(table.lookup, ids) for budget, table in self.tables.items()}
            contenders |= {READ_AND_WRITTEN.format(b): row_writer(t, ids) for b, t in self.tables.items()}
            parts = {f"{b} table": [READ_AND_WRITTEN.format(b)] for b in BUDGETS}
            yield self.measured(f"look-up, {kind} ids", contenders, IDS, named(TARGETS["look-up"]), parts)

    def large(self) -> Iterator[list[Measurement]]:
        """Look-ups of uniform ids in more rows than caches hold."""
        rows = TIMES_LARGE * self.n
        ids = [torch.from_numpy(self.generator.integers(rows, size=IDS)) for _ in range(self.options.calls + 1)]
        contenders: dict[str, Contender] = {
            FULL: over(torch.nn.Embedding.from_pretrained(torch.ones(rows, self.d)), ids)
        }
        with tempfile.TemporaryDirectory() as folder:
            tables = {}
            for budget, like in self.tables.items():
                path = Path(folder) / budget.rstrip("%")
                path.mkdir()
                write(path, like, rows, 1, self.options.seed)
                tables[budget] = mgqe.load(path, mmap=False)
            contenders |= {f"{budget} table": over(table.lookup, ids) for budget, table in tables.items()}
            contenders |= {READ_AND_WRITTEN.format(b): row_writer(t, ids) for b, t in tables.items()}
            parts = {f"{b} table": [READ_AND_WRITTEN.format(b)] for b in BUDGETS}
            what = f"look-up, uniform ids of {rows:,} rows"
            yield self.measured(what, contenders, IDS, named(LARGE_TARGETS), parts, rows=rows)

    def bag(self) -> Iterator[list[Measurement]]:
        """Sums of 20."""
        per, offsets = BAGS * LENGTH, torch.arange(0, BAGS * LENGTH, LENGTH)
        pooled = torch.nn.EmbeddingBag.from_pretrained(self.rows, mode="sum")
        for kind, ids in (("Zipf", self.zipf(per)), ("uniform", self.uniform(per))):
            contenders: dict[str, Contender] = {FULL: over(lambda ids: pooled(ids, offsets), ids)}
            parts: dict[str, list[str]] = {}
            for b, table in self.tables.items():
                contenders[f"{b} table"] = over(partial(_bags, table, offsets), ids)
            for b, table in self.tables.items():
                parts[f"{b} table"] = [f"lines of the {b} table, read"]
                contenders[f"lines of the {b} table, read"] = line_reader(table, ids)
                _add_loop(contenders, parts, b, _fused.bags(table, ids, LENGTH))
            yield self.measured(f"bags of {LENGTH}, {kind} ids", contenders, per, named(TARGETS["bags of 20"]), parts)

    def step(self) -> Iterator[list[Measurement]]:
        """A step with SparseAdam; of a warm-up, too."""
        ids, warm = self.zipf(TRAINED), "a layer in its warm-up"
        layers = {budget: planned(self.rows, budget, sparse=True) for budget in BUDGETS}
        for layer in layers.values():
            layer.start_quantizing()
        warm_up, gathers, gathers_none = (
            planned(self.rows, BUDGETS[0], sparse=True, warmup_steps=NEVER) for _ in range(3)
        )
        gathers_none.gathers_metric = False
        contenders: dict[str, Contender] = {
            FULL: training_step(torch.nn.Embedding(self.n, self.d, sparse=True), ids),
            warm: training_step(warm_up, ids),
            **{f"{b} table": training_step(layer, ids) for b, layer in layers.items()},
            **{f"codes for the {b} table, found": codes_finder(layer, ids[0]) for b, layer in layers.items()},
        }
        parts: dict[str, list[str]] = {}
        for b, layer in layers.items():
            needed: dict[str, Contender] = {}
            if products := as_many_products(layer, ids[0]):
                needed[f"products of the {b} table"] = products
            if layer.capacity.has_levels:  # which do not train
                needed[f"levels of the {b} table, searched for"] = levels_searched(layer, ids[0])
            else:
                needed[f"errors of the {b} table, added up by codes"] = errors_added(layer, ids[0])
                needed[f"centroids of the {b} table, stepped by SparseAdam"] = centroids_stepped(layer)
            contenders |= needed
            parts[f"{b} table"] = [FULL, *needed]
        yield self.measured(
            "training step, Zipf ids", contenders, TRAINED, named(TARGETS["training step"]), parts, overlap=False
        )
        steps: dict[str, Contender] = {
            "no gradients gathered": many_steps(gathers_none, ids),
            "gradients gathered": many_steps(gathers, ids),
        }
        yield self.measured(WARM_UP, steps, RARELY * TRAINED, {"gradients gathered": 1.05}, {})

    def search(self) -> Iterator[list[Measurement]]:
        """The 100 rows of highest inner product with one query."""
        contenders: dict[str, Contender] = {FULL: lambda i: (self.query @ self.rows.T).topk(K)}
        contenders |= {f"{b} table": partial(_search, table, self.query) for b, table in self.tables.items()}
        parts: dict[str, list[str]] = {}
        for b, table in self.tables.items():
            read = f"codes of the {b} table, read once"
            contenders[read], parts[f"{b} table"] = all_reader(table), [read]
            _add_loop(contenders, parts, b, _fused.search(table))
        one = torch.get_num_threads() == 1
        targets = named(TARGETS["top-100, 1 query"]) if one else {}
        yield self.measured("top-100, 1 query", contenders, self.n, targets, parts)
        queries = torch.randn(32, self.d, generator=torch.Generator().manual_seed(self.options.seed + 1))
        many: dict[str, Contender] = {FULL: lambda i: (queries @ self.rows.T).topk(K)}
        many |= {f"{b} table": partial(_search, table, queries) for b, table in self.tables.items()}
        read = {f"{b} table": [f"codes of the {b} table, read once"] for b in BUDGETS}
        many |= {name: contenders[name] for (name,) in read.values()}
        targets = named(TARGETS["top-100, 32 queries"]) if one else {}
        yield self.measured("top-100, 32 queries", many, self.n, targets, read)

    def stream(self) -> Iterator[list[Measurement]]:
        """Codes that are not in the caches, with two threads: how near a search is to the speed of reading them."""
        torch.set_num_threads(STREAM_THREADS)
        rows, budget = TIMES_LARGE * self.n, "5%"
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), self.tables[budget], rows, 1, self.options.seed)
            table = mgqe.load(folder)
            contenders: dict[str, Contender] = {"codes, read once": all_reader(table)}
            contenders[f"{budget} table"] = partial(_search, table, self.query)
            parts: dict[str, list[str]] = {f"{budget} table": ["codes, read once"]}
            _add_loop(contenders, parts, budget, _fused.search(table))
            what, targets = f"top-100, 1 query of {rows:,} rows", named({budget: STREAM_TARGET})
            yield self.measured(what, contenders, rows, targets, parts, rows=rows)

    def pq(self) -> Iterator[list[Measurement]]:
        """Against IndexPQ with as many bytes per row; nothing where faiss is not installed."""
        try:
            import faiss
        except ImportError:
            return
        for number, target in PQ_TARGETS.items():
            index = faiss.IndexPQ(self.d, number, 8, faiss.METRIC_INNER_PRODUCT)
            index.train(self.rows[:: max(1, self.n // 20_000)].numpy())
            index.add(self.rows.numpy())
            books = torch.from_numpy(faiss.vector_to_array(index.pq.centroids)).view(number, 256, -1)
            codes = torch.from_numpy(faiss.vector_to_array(index.codes)).view(self.n, number)
            table = CompactTable.from_codes(Tiers.from_sizes((self.n,)), [codes], [books], (0,), (256,))
            mine, read = f"{number} codes, mgqe", "codes, read once"

            def by_faiss(i: int, index: object = index) -> object:
                faiss.omp_set_num_threads(torch.get_num_threads())
                return index.search(self.query.numpy(), K)  # type: ignore[attr-defined]

            contenders: dict[str, Contender] = {
                f"faiss IndexPQ, {number} bytes": by_faiss,
                mine: partial(_search, table, self.query),
                read: all_reader(table),
            }
            parts = {mine: [read]}
            loop = _fused.search(table)
            if loop:
                contenders[ALL_WORK], parts[mine] = loop, [read, ALL_WORK]
            yield self.measured(f"top-100 of {number} codes", contenders, self.n, {mine: target}, parts)

    def freeze(self) -> Iterator[list[Measurement]]:
        """Planning, fitting and encoding all rows, with two threads, against the seconds aimed at."""
        torch.set_num_threads(FREEZE_THREADS)
        contenders: dict[str, Contender] = {"rows, copied": lambda i: self.rows.clone()}
        for budget in BUDGETS:
            contenders[f"{budget} table"] = lambda i, b=budget: planned(self.rows, b, freeze=True).freeze()  # type: ignore[misc]
        for budget in BUDGETS:
            layer = planned(self.rows, budget)
            layer.start_quantizing()
            contenders[f"codes for the {budget} table, found"] = codes_finder(layer, torch.arange(self.n))
        saved, self.options.calls, self.options.rounds = (self.options.calls, self.options.rounds), 1, 2
        results = self.measured("freezing", contenders, self.n, {}, {})
        self.options.calls, self.options.rounds = saved
        limits = {f"{budget} table": FREEZE_SECONDS for budget in BUDGETS}
        yield [replace(m, extra={**m.extra, "seconds_at_most": limits.get(m.name)}) for m in results]

    def onnx(self) -> Iterator[list[Measurement]]:
        """Look-ups in ONNX Runtime, and the operators that no graph of them does without."""
        from benchmarks.speed._onnx_operators import operators, sessions

        ids = self.uniform(IDS)
        with tempfile.TemporaryDirectory() as folder:
            runtimes = sessions(Path(folder), self.n, self.d, self.tables)
            contenders: dict[str, Contender] = {
                name: lambda i, r=runtime: r.run(None, {r.get_inputs()[0].name: ids[i].numpy()})  # type: ignore[misc]
                for name, runtime in runtimes.items()
            }
            parts = {}
            for budget, table in self.tables.items():
                layout = table.snapshot.layout
                every, single = operators(largest_codes(table), layout.widths, turned(table), self.d, ids)
                contenders |= {f"{budget}: {name}": call for name, call in (every | single).items()}
                parts[f"{budget} table"] = [f"{budget}: {name}" for name in every]
            targets = named(dict.fromkeys(BUDGETS, ONNX_TARGET))
            yield self.measured("look-up in ONNX Runtime", contenders, IDS, targets, parts, overlap=False)

    def avx2(self) -> Iterator[list[Measurement]]:
        """Twice the time of the targets, with AVX2."""
        ops.set_native_isa("avx2")
        try:
            yield from self._avx2()
        finally:
            ops.set_native_isa("auto")

    def _avx2(self) -> Iterator[list[Measurement]]:
        offsets = torch.arange(0, BAGS * LENGTH, LENGTH)
        pooled = torch.nn.EmbeddingBag.from_pretrained(self.rows, mode="sum")
        full = torch.nn.Embedding.from_pretrained(self.rows)
        settings: list[tuple[str, str, int, list[Tensor], Callable[[Tensor], object]]] = [
            ("look-up", f"look-up, {kind} ids, AVX2", IDS, ids, full)
            for kind, ids in (("Zipf", self.zipf(IDS)), ("uniform", self.uniform(IDS)))
        ]
        bag_ids = self.zipf(BAGS * LENGTH)
        settings.append(
            ("bags of 20", "bags of 20, Zipf ids, AVX2", BAGS * LENGTH, bag_ids, lambda ids: pooled(ids, offsets))
        )
        for kind, what, per, ids, peer in settings:
            contenders: dict[str, Contender] = {FULL: over(peer, ids)}
            parts: dict[str, list[str]] = {}
            for b, table in self.tables.items():
                call = table.lookup if kind == "look-up" else partial(_bags, table, offsets)
                contenders[f"{b} table"] = over(call, ids)
            for b, table in self.tables.items():
                looks_up = kind == "look-up"
                part = READ_AND_WRITTEN.format(b) if looks_up else f"lines of the {b} table, read"
                contenders[part], parts[f"{b} table"] = (row_writer if looks_up else line_reader)(table, ids), [part]
                loop = _fused.lookups_avx2(table, ids) if looks_up else _fused.bags(table, ids, LENGTH, avx2=True)
                _add_loop(contenders, parts, b, loop)
            yield self.measured(what, contenders, per, named(TARGETS[kind], AVX2_FACTOR), parts)
        searches: dict[str, Contender] = {FULL: lambda i: (self.query @ self.rows.T).topk(K)}
        searches |= {f"{b} table": partial(_search, table, self.query) for b, table in self.tables.items()}
        of_search: dict[str, list[str]] = {}
        for b, table in self.tables.items():
            read = f"codes of the {b} table, read once"
            searches[read], of_search[f"{b} table"] = all_reader(table), [read]
            _add_loop(searches, of_search, b, _fused.search(table, avx2=True))
        targets = named(TARGETS["top-100, 1 query"], AVX2_FACTOR)
        yield self.measured("top-100, 1 query, AVX2", searches, self.n, targets, of_search)


def named(targets: Mapping[str, float], factor: float = 1.0) -> dict[str, float]:
    """Budget -> target, as the contenders are called."""
    return {f"{budget} table": factor * target for budget, target in targets.items()}


def _add_loop(
    contenders: dict[str, Contender], parts: dict[str, list[str]], budget: str, loop: Contender | None
) -> None:
    """One more part of a budget's table, where there is such a loop."""
    if loop:
        name = f"{ALL_WORK}: {budget} table"
        contenders[name] = loop
        parts[f"{budget} table"].append(name)


def _bags(table: CompactTable, offsets: Tensor, ids: Tensor) -> Tensor:
    return table.bag(ids, offsets)


def _search(table: CompactTable, query: Tensor, i: int) -> object:
    return table.topk(query, K)


SECTIONS = ("lookup", "large", "bag", "step", "search", "stream", "pq", "freeze", "onnx", "avx2")


def main() -> None:
    parser = argument_parser(__doc__ or "", "bounds")
    parser.set_defaults(threads=[1])
    parser.add_argument("--rows", type=int, default=1_000_000, help="size of the table")
    parser.add_argument("--dim", type=int, default=64, help="dimensions per row")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS, help="what is measured")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    everything = set(options.sections) == set(SECTIONS)
    results = [] if everything else read_saved(options.out, ("rounds", "calls", "seed", "rows", "dim"), options)
    bounds = Bounds(options)
    for section in options.sections:
        for threads in options.threads:
            torch.set_num_threads(threads)
            for new in getattr(bounds, section)():
                mine = {(m.setting["what"], m.setting["threads"]) for m in new}
                results = [m for m in results if (m.setting["what"], m.setting["threads"]) not in mine] + new
                save(options.out, "bounds", options, results)


if __name__ == "__main__":
    main()
