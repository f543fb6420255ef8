"""Exact top-K from codes against brute force in float32, faiss and torch, over the same rows.

Codes are random unless --table names a trained table; rows have 64 dimensions. Every contender's answers are checked
against brute force in double precision over the decoded rows: recall must be 1 (ids that tie with the last one to
rounding count), except for faiss's IndexPQFastScan, which rounds and whose recall is reported. The forced paths must
give the same bits. "mgqe" times ``table.topk`` with all its checks of arguments.

faiss's IndexPQ holds the same centroids and codes, 8 bits each. 10 million rows need 3 GB for the float32 peer.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mgqe
from benchmarks._common import Contender, Measurement, argument_parser, interleave, save
from benchmarks.speed._topk import (
    Made,
    Search,
    brute_force,
    decode,
    faiss_fast_scan,
    faiss_flat,
    faiss_pq,
    faiss_search,
    from_codes,
    gather_topk,
    make_table,
    matmul_topk,
    readers,
    recall,
)
from mgqe import CompactTable, ops
from mgqe.table.search import search

FP32, FLAT, PQ, FAST, GATHER = "fp32 matmul + topk", "faiss FlatIP", "faiss IndexPQ", "faiss FastScan", "torch gather"
MGQE, SCAN = "mgqe", "mgqe, every row scored"
TAILS, BYTES = "mgqe, 6-bit tails", "mgqe, byte-aligned"
# (contender, peer) -> the most that its time may be of the peer's; None: shown without a target.
Targets = Mapping[tuple[str, str], float | None]

ONE_QUERY: Targets = {(MGQE, PQ): 1 / 10, (MGQE, FP32): 1 / 30}
NO_TARGET: Targets = {(MGQE, PQ): None, (MGQE, FP32): None}
WITHOUT_AVX512: Targets = {("mgqe avx2", PQ): 1 / 1.3, ("mgqe scalar", PQ): 1 / 1.3}
NEVER_SLOWER: Targets = {(MGQE, SCAN): 1.0, (MGQE, "mgqe scalar, every row scored"): 1.0}


def ours(table: CompactTable, k: int, **arguments: Any) -> Search:
    """The public call."""
    return lambda queries: table.topk(queries, k, **arguments)


def forced(table: CompactTable, k: int, isa: str = "auto", method: str = "auto") -> Search:
    """The same with one instruction set or one method."""

    def run(queries: Tensor) -> tuple[Tensor, Tensor]:
        ops.set_native_isa(isa)
        try:
            return search(table.snapshot.lookup, queries, k, method=method)
        finally:
            ops.set_native_isa("auto")

    return run


class Bench:
    """Runs settings and keeps their results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.results: list[Measurement] = []

    def queries(self, count: int) -> list[Tensor]:
        """A batch for every call."""
        made = torch.Generator().manual_seed(self.options.seed + 1)
        return [torch.randn(count, self.options.dim, generator=made) for _ in range(self.options.calls + 1)]

    def run(
        self,
        setting: dict[str, Any],
        searches: Mapping[str, Search],
        targets: Targets,
        batches: list[Tensor],
        dense: Tensor | None,
        k: int,
        bias: Tensor | None = None,
        readings: Mapping[str, Callable[[], object]] | None = None,
        turns: int = 1,
    ) -> None:
        """Checks the answers, times, and prints ratios beside their targets; dense=None: checked elsewhere."""
        threads = setting["threads"]
        torch.set_num_threads(threads)
        recalls = {} if dense is None else self.check(searches, torch.cat(batches)[:32], dense, k, bias)
        contenders: dict[str, Contender] = {name: lambda i, f=f: f(batches[i]) for name, f in searches.items()}
        for name, read in (readings or {}).items():
            contenders[name] = lambda i, f=read: f()
        seconds = {
            name: (statistics.median(times), min(times))
            for name, times in interleave(contenders, turns * self.options.rounds, self.options.calls).items()
        }
        if readings:
            fastest = min(readings, key=lambda name: seconds[name][0])
            targets = {(MGQE, fastest): 1 / 0.8}
        print("\n" + ", ".join(f"{key} {value}" for key, value in setting.items()))
        width = max(len(name) for name in seconds)
        first = next(iter(seconds))
        for name, (median, best) in seconds.items():
            wanted = {peer: most for (who, peer), most in targets.items() if who == name} or {first: None}
            for peer, most in wanted.items():
                extra = {"against": peer, "recall": recalls.get(name)}
                found = Measurement(setting, name, median, best, median / seconds[peer][0], most, extra)
                self.results.append(found)
                shown = "" if recalls.get(name, 1.0) == 1.0 else f"  recall {recalls[name]:.3f}"
                times = f"{1e3 * median:9.3f} ms  {found.ratio:7.4f} of {peer}"
                print(f"  {name:<{width}} {times}  {found.verdict}{shown}".rstrip(), flush=True)

    def check(
        self, searches: Mapping[str, Search], queries: Tensor, dense: Tensor, k: int, bias: Tensor | None
    ) -> dict[str, float]:
        """Each contender's recall; stops at a wrong answer."""
        exact = brute_force(dense, queries, k, bias)
        recalls, first = {}, None
        for name, run in searches.items():
            found = run(queries)
            recalls[name] = recall(found, dense, queries, exact, bias)
            if name.startswith("mgqe"):
                first = found if first is None else first
                if not (torch.equal(found[0], first[0]) and torch.equal(found[1], first[1])):
                    raise SystemExit(f"{name} gives other scores or ids than the first path")
                torch.testing.assert_close(found[0].double(), exact.scores, rtol=1e-5, atol=1e-5)
            if name != FAST and recalls[name] < 1:
                raise SystemExit(f"{name} has recall {recalls[name]:.4f} against brute force")
        return recalls


def peers(made: Made, k: int, names: list[str]) -> dict[str, Search]:
    """The named peers; those of faiss are left out, with a line, where it is not installed."""
    try:
        import faiss  # noqa: F401
    except ImportError:
        print("faiss is not installed: its rows are left out")
        names = [name for name in names if not name.startswith("faiss")]
    makers: dict[str, Callable[[], Search]] = {
        FP32: lambda: matmul_topk(made.dense, k),
        GATHER: lambda: gather_topk(made, k),
        FLAT: lambda: faiss_search(faiss_flat(made.dense), k),
        PQ: lambda: faiss_search(faiss_pq(made), k),
        FAST: lambda: faiss_search(faiss_fast_scan(made), k),
    }
    return {name: makers[name]() for name in names}


def paths(table: CompactTable, k: int) -> dict[str, Search]:
    """Other paths than the one that this processor would take, as far as it has them."""
    found: dict[str, Search] = {}
    for isa in ("avx2", "neon", "scalar"):
        try:
            ops.set_native_isa(isa)
        except ValueError:
            continue
        found[f"mgqe {isa}"] = forced(table, k, isa)
    ops.set_native_isa("auto")
    return found


def wanted(targets: Targets, searches: Mapping[str, Search]) -> Targets:
    """Targets whose contender and peer are both there."""
    return {pair: most for pair, most in targets.items() if pair[0] in searches and pair[1] in searches}


def one_query(bench: Bench, rows: int) -> None:
    """Every peer and path at D=8, then other sizes, k and threads."""
    dim, seed, head = bench.options.dim, bench.options.seed, rows // 10
    setting = {"rows": f"{rows:,}", "codes": "D=8 K=256", "queries": 1, "k": 100, "threads": 1}
    made = make_table([rows], [256], 8, dim, seed)
    queries = bench.queries(1)
    all_peers = peers(made, 100, [FP32, FLAT, PQ, FAST, GATHER])
    searches = {**all_peers, MGQE: ours(made.table, 100), **paths(made.table, 100)}
    searches[SCAN] = forced(made.table, 100, method="scan")
    targets = wanted({**ONE_QUERY, **WITHOUT_AVX512, **NEVER_SLOWER}, searches)
    bench.run(setting, searches, targets, queries, made.dense, 100)
    for k in (10, 1000):
        few = {**peers(made, k, [FP32, PQ]), MGQE: ours(made.table, k)}
        bench.run({**setting, "k": k}, few, wanted(NO_TARGET, few), queries, made.dense, k)
    few = {**peers(made, 100, [FP32, FLAT, PQ]), MGQE: ours(made.table, 100)}
    bench.run({**setting, "threads": 2}, few, wanted(NO_TARGET, few), queries, made.dense, 100)
    tails = make_table([head, rows - head], [256, 64], 8, dim, seed)
    bench.run({**setting, "codes": "D=8 K=256/64"}, {BYTES: ours(made.table, 100), TAILS: ours(tails.table, 100)},
              {(TAILS, BYTES): 1.15}, queries, None, 100)  # fmt: skip
    layouts = {"D=8 K=256/64": tails}
    layouts["D=16 K=256"] = make_table([rows], [256], 16, dim, seed)
    layouts["D=32 K=256/64"] = make_table([head, rows - head], [256, 64], 32, dim, seed)
    layouts["D=16 K=16"] = make_table([rows], [16], 16, dim, seed)
    for codes, other in layouts.items():
        names = [FP32, PQ, FAST] if codes == "D=16 K=16" else [FP32, PQ]
        few = {**peers(other, 100, names), MGQE: ours(other.table, 100), **paths(other.table, 100)}
        targets = wanted({**NO_TARGET, **WITHOUT_AVX512}, few)
        bench.run({**setting, "codes": codes}, few, targets, queries, other.dense, 100)
    cosine_and_bias(bench, made, setting, queries)
    restricted(bench, made, setting, queries)


def cosine_and_bias(bench: Bench, made: Made, setting: dict[str, Any], queries: list[Tensor]) -> None:
    """The other scores, against float32 rows of length 1 and against float32 with a bias."""
    unit = made.dense / made.dense.norm(dim=1, keepdim=True)
    directions = [batch / batch.norm(dim=1, keepdim=True) for batch in queries]
    searches = {FP32: matmul_topk(unit, 100), MGQE: ours(made.table, 100, score="cosine")}
    bench.run({**setting, "score": "cosine"}, searches, {}, directions, unit, 100)
    bias = torch.randn(len(made.dense), generator=torch.Generator().manual_seed(3))
    once = made.table.item_bias(bias)
    searches = {FP32: matmul_topk(made.dense, 100, bias), MGQE: ours(made.table, 100, bias=once)}
    bench.run({**setting, "score": "dot + bias"}, searches, {}, queries, made.dense, 100, bias)


def restricted(bench: Bench, made: Made, setting: dict[str, Any], queries: list[Tensor]) -> None:
    """Ids left out, by list and by mask, against float32 scores with -infinity added; a few candidates, fetched."""
    rows = len(made.dense)
    shuffled = torch.randperm(rows, generator=torch.Generator().manual_seed(4))
    some, half = shuffled[:1000], torch.zeros(rows, dtype=torch.bool)
    half[shuffled[: rows // 2]] = True
    out = torch.zeros(rows).index_fill(0, some, -torch.inf)
    searches = {FP32: matmul_topk(made.dense, 100, out), MGQE: ours(made.table, 100, exclude=some)}
    bench.run({**setting, "score": "1,000 ids excluded"}, searches, {}, queries, made.dense, 100, out)
    out = torch.where(half, 0, -torch.inf)
    searches = {FP32: matmul_topk(made.dense, 100, out), MGQE: ours(made.table, 100, candidates=half)}
    bench.run({**setting, "score": "half of the ids by mask"}, searches, {}, queries, made.dense, 100, out)

    def fetch(batch: Tensor) -> tuple[Tensor, Tensor]:
        scores, places = (batch @ made.dense[some].T).topk(100)
        return scores, some[places]

    out = torch.full((rows,), -torch.inf).index_fill(0, some, 0)
    searches = {FP32: fetch, MGQE: ours(made.table, 100, candidates=some)}
    bench.run({**setting, "score": "1,000 candidates"}, searches, {}, queries, made.dense, 100, out)


def many_queries(bench: Bench, rows: int) -> None:
    """32 queries at once, also by each method."""
    made = make_table([rows], [256], 8, bench.options.dim, bench.options.seed)
    searches = {**peers(made, 100, [FP32, FLAT, PQ]), MGQE: ours(made.table, 100), **paths(made.table, 100)}
    for method in ("filter", "blocks", "scan"):
        searches[f"mgqe by {method}"] = forced(made.table, 100, method=method)
    setting = {"rows": f"{rows:,}", "codes": "D=8 K=256", "queries": 32, "k": 100}
    for threads in bench.options.threads:
        targets = wanted({**NO_TARGET, (MGQE, FP32): 1 / 6}, searches)
        bench.run({**setting, "threads": threads}, searches, targets, bench.queries(32), made.dense, 100)
    wide = make_table([rows // 10, rows - rows // 10], [256, 64], 32, bench.options.dim, bench.options.seed)
    searches = {**peers(wide, 100, [FP32]), MGQE: ours(wide.table, 100)}
    searches |= {f"mgqe by {method}": forced(wide.table, 100, method=method) for method in ("filter", "blocks")}
    setting = {**setting, "codes": "D=32 K=256/64", "threads": 1}
    bench.run(setting, searches, {}, bench.queries(32), wide.dense, 100)


def bandwidth(bench: Bench, rows: int) -> None:
    """A table far beyond the caches, against merely reading its codes."""
    made = make_table([rows], [256], 8, bench.options.dim, bench.options.seed)
    searches = {**peers(made, 100, [FP32, PQ]), MGQE: ours(made.table, 100)}
    codes = made.table.to_tensors()[0]["codes.0"]
    for threads in bench.options.threads:
        setting = {"rows": f"{rows:,}", "codes": "D=8 K=256", "queries": 1, "k": 100, "threads": threads}
        bench.run(setting, searches, wanted(NO_TARGET, searches), bench.queries(1), made.dense, 100)
    alone = {MGQE: ours(made.table, 100)}  # without the slow peers there is time for many more turns
    setting = {"rows": f"{rows:,}", "codes": "D=8 K=256, reading", "queries": 1, "k": 100, "threads": 2}
    bench.run(setting, alone, {}, bench.queries(1), None, 100, readings=readers(codes), turns=10)


def hostile(bench: Bench, rows: int) -> None:
    """Rows in the order that suits the filter least, its best order, and rows that are all the same."""
    made = make_table([rows], [256], 8, bench.options.dim, bench.options.seed)
    query = bench.queries(1)[0]
    order = (made.dense @ query[0]).argsort()
    orders = {
        "sorted, best last": made.codes[order],
        "sorted, best first": made.codes[order.flip(0)],
        "all rows equal": made.codes[:1].expand(rows, -1).contiguous(),
    }
    for name, codes in orders.items():
        table = from_codes([codes], made.centroids, [256])
        against_scoring(bench, {"rows": f"{rows:,}", "codes": f"D=8 K=256, {name}"}, table.table, table.dense, query)


def trained(bench: Bench, path: Path) -> None:
    """A saved table; the query is a row of the other table (user, item) of the same run, if it lies beside it."""
    table = mgqe.load(path)
    if not isinstance(table, CompactTable):
        raise SystemExit(f"{path} holds a {type(table).__name__}: expected a table of codes")
    others = [file for file in sorted(path.parent.glob("*.mgqe.safetensors")) if file.name != path.name]
    if others:
        query = mgqe.load(others[0]).lookup(torch.tensor([7]))
    else:
        query = torch.randn(1, table.embedding_dim, generator=torch.Generator().manual_seed(bench.options.seed))
    run = path.resolve().parts[-4:-1]  # OUT/runs/NAME, as mgqe compare leaves them
    where = f"{run[0]}, {run[2]}, {path.name.split('.')[0]}s" if len(run) == 3 else path.name
    codes = f"trained: {where}"
    setting = {"rows": f"{table.num_embeddings:,}", "codes": codes}
    against_scoring(bench, setting, table, decode(table), query)


def against_scoring(bench: Bench, setting: dict[str, Any], table: CompactTable, dense: Tensor, query: Tensor) -> None:
    """One query over and over, against scoring every row."""
    k = min(100, table.num_embeddings)
    searches = {
        SCAN: forced(table, k, method="scan"),
        MGQE: forced(table, k),
        "mgqe scalar, every row scored": forced(table, k, "scalar", "scan"),
        FP32: matmul_topk(dense, k),
    }
    full = {**setting, "queries": 1, "k": k, "threads": 1}
    turns = max(1, 300_000 // len(dense))  # small tables take so little time that one disturbance fills a turn
    bench.run(full, searches, NEVER_SLOWER, [query] * (bench.options.calls + 1), dense, k, turns=turns)


def parts(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[Bench], None]]]:
    """What --only chooses from."""
    yield "one", partial(one_query, rows=options.rows)
    yield "many", partial(many_queries, rows=options.rows)
    yield "bandwidth", partial(bandwidth, rows=options.many_rows)
    yield "hostile", partial(hostile, rows=options.rows)
    for path in options.table:
        yield "trained", partial(trained, path=path)


def main() -> None:
    parser = argument_parser(__doc__ or "", "topk")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of most tables")
    parser.add_argument("--many-rows", type=int, default=10_000_000, help="of the table far beyond the caches")
    parser.add_argument("--dim", type=int, default=64, help="dimensions per row")
    parser.add_argument("--table", type=Path, nargs="*", default=[], help="trained tables, as mgqe.save wrote them")
    parser.add_argument("--only", nargs="*", choices=["one", "many", "bandwidth", "hostile", "trained"], help="parts")
    options = parser.parse_args()
    if not options.table:
        print("no --table: trained tables are left out")
    torch.set_grad_enabled(False)
    bench = Bench(options)
    for name, part in parts(options):
        if not options.only or name in options.only:
            part(bench)
    options.table = [path.name for path in options.table]
    save(options.out, "topk", options, bench.results)


if __name__ == "__main__":
    main()
