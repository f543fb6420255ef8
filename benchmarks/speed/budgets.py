"""The tables that ``budget=`` makes: look-ups, bags, top-100, freezing, loading and a training step, against full ones.

Rows are Gaussian in axes turned at random, the variance of the k-th axis falling as 1 / k, and ids are in frequency
order, with counts of a power law. Tables are planned and frozen as ``MGQEmbedding.from_pretrained(rows, counts=counts,
budget=...)`` does. Peers: torch's modules and int8 and int4 row-wise bags, matmul + topk in float32, and faiss where it
is installed. The recall of top-100 is against the full rows. 10 million rows of 128 numbers take 12 GB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import mgqe
from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from benchmarks.speed.decode import zipf_ids
from mgqe import CompactTable, MGQEmbedding, ops

BUDGETS = ("20%", "10%", "5%", "2%")
LOOKUP, BAG, TOPK, STEP = "nn.Embedding", "nn.EmbeddingBag", "fp32 matmul + topk", "nn.Embedding, SparseAdam"
# The most that a budget's time may be of the peer's: 1M rows of 64 numbers, one thread.
TARGETS = {
    "look-up": dict(zip(BUDGETS, (0.5, 0.8, 1.2, 0.9), strict=True)),
    "bags of 20": dict(zip(BUDGETS, (0.6, 1.0, 1.4, 1.0), strict=True)),
    "top-100, 1 query": dict(zip(BUDGETS, (0.15, 0.06, 0.04, 0.02), strict=True)),
    "top-100, 32 queries": dict.fromkeys(BUDGETS, 0.1),
    "training step": dict.fromkeys(BUDGETS, 1.3),
}


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


def planned(rows: Tensor, budget: str, **options: object) -> MGQEmbedding:
    """A layer that plans as a user's does."""
    return MGQEmbedding.from_pretrained(rows, counts=counts_of(len(rows)), budget=budget, **options)  # type: ignore[arg-type]


class Setting:
    """Tables of one size, and the measurements of them."""

    def __init__(self, n: int, d: int, options: argparse.Namespace) -> None:
        self.options, self.n, self.d = options, n, d
        self.rows = full_rows(n, d, options.seed)
        self.generator = np.random.default_rng(options.seed)
        self.tables: dict[str, CompactTable] = {}
        self.about: dict[str, dict[str, object]] = {}
        for budget in options.budgets:
            layer = planned(self.rows, budget)
            start = time.perf_counter()
            self.tables[budget] = layer.freeze()
            frozen = time.perf_counter() - start
            self.about[budget] = {"freeze_s": round(frozen, 3), **self._shape(budget), **self._load(budget)}
            print(f"{n:,} x {d}, {budget}: {self.about[budget]}", flush=True)

    def _shape(self, budget: str) -> dict[str, object]:
        table = self.tables[budget]
        layout = table.snapshot.layout
        bits = [sum(tier.code_bits) for tier in layout.tiers]
        return {"share": round(table.nbytes / self.rows.nbytes, 4), "subspaces": len(layout.widths),
                "coordinates": layout.num_coordinates, "tiers": list(layout.sizes), "bits": bits}  # fmt: skip

    def _load(self, budget: str) -> dict[str, object]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table"
            mgqe.save(self.tables[budget], path)
            start = time.perf_counter()
            mgqe.load(path)
            return {"load_s": round(time.perf_counter() - start, 4), "file": os.path.getsize(path)}

    def targets(self, what: str) -> dict[str, float]:
        """Of the stated size, with one thread."""
        return TARGETS[what] if (self.n, self.d, torch.get_num_threads()) == (1_000_000, 64, 1) else {}

    def measured(
        self, what: str, functions: dict[str, Callable[[int], object]], peer: str, per: int, **more: object
    ) -> list[Measurement]:
        """All contenders in turns."""
        setting = {"what": what, "rows": f"{self.n:,}", "dim": self.d, **more, "threads": torch.get_num_threads()}
        contenders: dict[str, Contender] = dict(functions)
        results = measure(setting, contenders, peer, self.options.rounds, self.options.calls, self.targets(what))
        print_table(results, per, "id" if "id" in more or "ids" in more else "query")
        return [replace(each, extra={**each.extra, **self.about.get(each.name, {})}) for each in results]

    def ids(self, distribution: str, count: int) -> list[Tensor]:
        """One batch for each timed call, and one more."""
        if distribution == "Zipf":
            return [zipf_ids(self.generator, self.n, count, 1.05) for _ in range(self.options.calls + 1)]
        return [torch.from_numpy(self.generator.integers(self.n, size=count)) for _ in range(self.options.calls + 1)]

    # ---- what is measured ------------------------------------------------------------------------------------

    def lookups_and_bags(self) -> Iterator[list[Measurement]]:
        """Many ids at once, and pooled ones."""
        full = torch.nn.Embedding.from_pretrained(self.rows)
        bags = torch.nn.EmbeddingBag.from_pretrained(self.rows, mode="sum")
        packed = {
            "torch int8 row-wise": (torch.ops.quantized.embedding_bag_byte_prepack(self.rows),
                                    torch.ops.quantized.embedding_bag_byte_rowwise_offsets),
            "torch int4 row-wise": (torch.ops.quantized.embedding_bag_4bit_prepack(self.rows),
                                    torch.ops.quantized.embedding_bag_4bit_rowwise_offsets),
        }  # fmt: skip
        single, offsets = torch.arange(self.options.ids), torch.arange(0, 20 * self.options.bags, 20)
        for distribution in ("Zipf", "uniform"):
            ids = self.ids(distribution, self.options.ids)
            functions: dict[str, Contender] = {LOOKUP: lambda i, b=ids: full(b[i])}
            functions |= {name: lambda i, t=t, b=ids: t.lookup(b[i]) for name, t in self.tables.items()}
            functions |= {
                name: lambda i, w=weight, f=f, b=ids: f(w, b[i], single) for name, (weight, f) in packed.items()
            }
            yield self.measured("look-up", functions, LOOKUP, self.options.ids, ids=distribution)
            many = self.ids(distribution, 20 * self.options.bags)
            functions = {BAG: lambda i, b=many: bags(b[i], offsets)}
            functions |= {
                name: lambda i, p=t.snapshot.lookup, b=many: ops.bag(p, b[i], offsets)
                for name, t in self.tables.items()
            }
            functions |= {
                name: lambda i, w=weight, f=f, b=many: f(w, b[i], offsets) for name, (weight, f) in packed.items()
            }
            yield self.measured("bags of 20", functions, BAG, 20 * self.options.bags, ids=distribution)

    def searches(self) -> Iterator[list[Measurement]]:
        """The 100 rows of highest inner product."""
        queries = torch.randn(32, self.d, generator=torch.Generator().manual_seed(self.options.seed + 1))
        exact = (queries @ self.rows.T).topk(100).indices
        searches: dict[str, Callable[[Tensor], Tensor]] = {TOPK: lambda q: (q @ self.rows.T).topk(100).indices}
        searches |= {name: lambda q, t=t: t.topk(q, 100)[1] for name, t in self.tables.items()}
        searches |= self._faiss()
        for name, search in searches.items():
            answers = search(queries)
            shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(answers, exact, strict=True)]
            self.about.setdefault(name, {})["recall@100 of the full rows"] = round(statistics.mean(shared) / 100, 4)
        for count in (1, 32):
            some = queries[:count].contiguous()
            functions: dict[str, Contender] = {name: lambda i, f=f, q=some: f(q) for name, f in searches.items()}
            what = f"top-100, {count} quer{'y' if count == 1 else 'ies'}"
            yield self.measured(what, functions, TOPK, count)

    def _faiss(self) -> dict[str, Callable[[Tensor], Tensor]]:
        try:
            import faiss
        except ImportError:
            return {}
        product = faiss.METRIC_INNER_PRODUCT
        quarter = self.d // 4
        kinds = {
            f"faiss IndexPQ, {quarter} bytes": lambda: faiss.IndexPQ(self.d, quarter, 8, product),
            f"faiss IndexPQFastScan, {quarter} bytes": lambda: faiss.IndexPQFastScan(self.d, 2 * quarter, 4, product),
            f"faiss IndexScalarQuantizer, {self.d // 2} bytes": lambda: faiss.IndexScalarQuantizer(
                self.d, faiss.ScalarQuantizer.QT_4bit, product
            ),
        }
        searches = {}
        for name, make in kinds.items():
            index = make()
            index.train(self.rows[:: max(1, self.n // 50_000)].numpy())
            index.add(self.rows.numpy())

            def search(queries: Tensor, index: object = index) -> Tensor:
                faiss.omp_set_num_threads(torch.get_num_threads())
                return torch.from_numpy(index.search(queries.numpy(), 100)[1])  # type: ignore[attr-defined]

            searches[name] = search
        return searches

    def steps(self) -> Iterator[list[Measurement]]:
        """A training step of 4,096 Zipf ids."""
        ids = self.ids("Zipf", 4096)
        functions: dict[str, Contender] = {STEP: _step(torch.nn.Embedding(self.n, self.d, sparse=True), ids)}
        for budget in self.options.budgets:
            layer = planned(self.rows, budget, freeze=False, sparse=True)
            layer.start_quantizing()
            functions[budget] = _step(layer, ids)
        yield self.measured("training step", functions, STEP, 4096, ids="Zipf")


def _step(layer: torch.nn.Module, ids: list[Tensor]) -> Contender:
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


def main() -> None:
    parser = argument_parser(__doc__ or "", "budgets")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000], help="sizes of tables")
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64, 128], help="dimensions per row")
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), help="shares of the full table's bytes")
    parser.add_argument("--ids", type=int, default=65_536, help="ids of a look-up")
    parser.add_argument("--bags", type=int, default=8192, help="bags of a pooled look-up, of 20 ids each")
    parser.add_argument("--isa", default="auto", choices=["auto", "avx512", "avx2", "neon", "scalar"], help="force one")
    options = parser.parse_args()
    ops.set_native_isa(options.isa)
    torch.set_grad_enabled(False)
    results: list[Measurement] = []
    for n in options.rows:
        for d in options.dims:
            torch.set_num_threads(max(options.threads))
            setting = Setting(n, d, options)
            for threads in options.threads:
                torch.set_num_threads(threads)
                for kind in (setting.lookups_and_bags, setting.searches, setting.steps):
                    for measurements in kind():
                        results += measurements
                        save(options.out, "budgets", options, results)


if __name__ == "__main__":
    main()
