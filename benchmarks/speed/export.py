"""ONNX files: bytes and time of a look-up in ONNX Runtime, a frozen table against nn.Embedding's rows.

Tables: those that ``budget=`` makes, as ``benchmarks.speed.budgets`` plans them; and others of 8 subspaces, with codes
drawn at random. Ids are uniform. The peer is nn.Embedding in ONNX Runtime; nn.Embedding in torch and the tables by
mgqe's own kernels are there for comparison. ``--profile`` also prints how long each kind of operator takes in the
largest batch.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

import mgqe
from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from benchmarks.speed.budgets import BUDGETS, full_rows, planned
from mgqe import CompactEmbedding, CompactTable, Tiers

PEER, IN_TORCH = "nn.Embedding, ONNX Runtime", "nn.Embedding, torch"
TARGET = 2.0  # the most that a budget's time may be of the peer's, for 65,536 ids
EXAMPLE = torch.tensor([0, 1, 2])


def budget_tables(rows: int, dim: int, seed: int, budgets: list[str], folder: Path) -> dict[str, CompactTable]:
    """The tables of budgets, from a folder, which gets those that it lacks."""
    paths = {budget: folder / f"{rows}-{dim}-{seed}-{budget.rstrip('%')}.safetensors" for budget in budgets}
    missing = {budget: path for budget, path in paths.items() if not path.exists()}
    full = full_rows(rows, dim, seed) if missing else torch.empty(0)
    for budget, path in missing.items():
        folder.mkdir(parents=True, exist_ok=True)
        mgqe.save(planned(full, budget).freeze(), path)
    loaded = {budget: mgqe.load(path) for budget, path in paths.items()}
    return {budget: table for budget, table in loaded.items() if isinstance(table, CompactTable)}


def tables(rows: int, dim: int, seed: int, budgets: list[str], folder: Path) -> dict[str, CompactTable]:
    """Those of budgets; one tier; two in order of frequency; the same two with a tier map, for ids in no order."""
    of_budgets = budget_tables(rows, dim, seed, budgets, folder)
    made, head = torch.Generator().manual_seed(seed), rows // 10
    book = torch.randn(8, 256, dim // 8, generator=made)

    def codes(n: int, count: int) -> Tensor:
        return torch.randint(count, (n, 8), generator=made, dtype=torch.uint8)

    two = [codes(head, 256), codes(rows - head, 64)]
    tier_of = torch.ones(rows, dtype=torch.int64).index_fill(0, torch.randperm(rows, generator=made)[:head], 0)
    return of_budgets | {
        "D=8 K=256": CompactTable.from_codes(Tiers.from_sizes((rows,)), [codes(rows, 256)], [book], (0,), (256,)),
        "D=8 K=(256, 64)": CompactTable.from_codes(
            Tiers.from_sizes((head, rows - head)), two, [book], (0, 0), (256, 64)
        ),
        "D=8 K=(256, 64), tier map": CompactTable.from_codes(
            Tiers.from_assignment(tier_of, 2), two, [book], (0, 0), (256, 64)
        ),
    }


def session(path: Path, threads: int, profile: Path | None = None) -> onnxruntime.InferenceSession:
    """A file in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait for work would take the processors from whatever is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(str(path), options)


def write(folder: Path, rows: int, dim: int, made: dict[str, CompactTable]) -> dict[str, Path]:
    """An ONNX file of each table and of nn.Embedding."""
    paths = {name: folder / f"{i}.onnx" for i, name in enumerate([PEER, *made])}
    program = torch.export.export(nn.Embedding(rows, dim), (EXAMPLE,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.onnx.export(program, dynamo=True, verbose=False).save(str(paths[PEER]), external_data=False)
    for name, table in made.items():
        mgqe.export_onnx(CompactEmbedding(table), EXAMPLE, paths[name])
    return paths


def milliseconds_by_operator(path: Path, batches: list[Tensor]) -> dict[str, float]:
    """Milliseconds of a call, on one thread, in each kind of operator: the mean of the batches after the first."""
    runtime = session(path, 1, path.with_suffix(""))
    for ids in batches:
        runtime.run(None, {runtime.get_inputs()[0].name: ids.numpy()})
    events = json.loads(Path(runtime.end_profiling()).read_text())
    nodes = [e for e in events if e["cat"] == "Node" and e["name"].endswith("kernel_time")]
    spent: Counter[str] = Counter()
    for event in nodes[len(nodes) // len(batches) :]:
        spent[event["args"]["op_name"]] += event["dur"]
    return {name: round(us / 1e3 / (len(batches) - 1), 2) for name, us in spent.most_common() if us}


def main() -> None:
    parser = argument_parser(__doc__ or "", "export")
    parser.add_argument("--rows", type=int, default=1_000_000, help="size of the table")
    parser.add_argument("--dim", type=int, default=64, help="dimensions per row")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 64, 1024, 65_536], help="ids per call")
    parser.add_argument("--budgets", nargs="*", default=list(BUDGETS), help="shares of the full table's bytes")
    parser.add_argument("--tables", help="folder with saved tables of the budgets, made there if missing")
    parser.add_argument("--profile", action="store_true", help="print the time of each kind of operator")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    generator = torch.Generator().manual_seed(options.seed)
    full = nn.Embedding(options.rows, options.dim)
    results: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(options.tables or folder)
        frozen = tables(options.rows, options.dim, options.seed, options.budgets, kept)
        paths = write(Path(folder), options.rows, options.dim, frozen)
        bytes_of = {name: path.stat().st_size for name, path in paths.items()}
        for threads in options.threads:
            torch.set_num_threads(threads)
            sessions = {name: session(path, threads) for name, path in paths.items()}
            for size in options.sizes:
                batches = [torch.randint(options.rows, (size,), generator=generator) for _ in range(options.calls + 1)]

                def of_file(runtime: onnxruntime.InferenceSession, given: list[Tensor] = batches) -> Contender:
                    name = runtime.get_inputs()[0].name
                    return lambda i: runtime.run(None, {name: given[i].numpy()})

                def eager(table: CompactTable, given: list[Tensor] = batches) -> Contender:
                    return lambda i: table.lookup(given[i])

                contenders = {name: of_file(runtime) for name, runtime in sessions.items()}
                contenders[IN_TORCH] = lambda i, given=batches: full(given[i])
                contenders |= {f"{name}, mgqe in eager mode": eager(table) for name, table in frozen.items()}
                setting = {"rows": f"{options.rows:,}", "dim": options.dim, "ids": size, "threads": threads}
                targets = dict.fromkeys(options.budgets, TARGET) if size == 65_536 else {}
                for m in measure(setting, contenders, PEER, options.rounds, options.calls, targets):
                    extra: dict[str, object] = {"file_bytes": bytes_of[m.name]} if m.name in bytes_of else {}
                    if m.name in frozen:
                        extra["table_bytes"] = frozen[m.name].nbytes
                    results.append(replace(m, extra=extra))
        if options.profile:
            ids = [torch.randint(options.rows, (max(options.sizes),), generator=generator) for _ in range(6)]
            spent = {name: milliseconds_by_operator(path, ids) for name, path in paths.items()}
            results = [
                replace(m, extra={**m.extra, "operator_ms": spent[m.name]})
                if m.name in spent and m.setting["ids"] == max(options.sizes) and m.setting["threads"] == 1
                else m
                for m in results
            ]
            for name, of_kind in spent.items():
                print(f"{name}: {', '.join(f'{kind} {ms}' for kind, ms in of_kind.items())} ms")
    print_table(results, 1, "call")
    options.tables = None  # where they were is no result
    for name, count in bytes_of.items():
        print(f"{name}: {count:,} bytes")
    save(options.out, "export", options, results)


if __name__ == "__main__":
    main()
