"""ONNX files: bytes and time of a look-up in ONNX Runtime, a frozen table against nn.Embedding's rows.

Codes are drawn at random and ids uniformly; the table in eager mode, by mgqe's own kernels, is there for comparison.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

import mgqe
from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from mgqe import CompactEmbedding, CompactTable, Tiers

PEER = "nn.Embedding, ONNX Runtime"
EXAMPLE = torch.tensor([0, 1, 2])


def tables(rows: int, dim: int, seed: int) -> dict[str, CompactTable]:
    """One tier; two tiers in order of frequency; the same two with a tier map, for ids in no order."""
    made, head = torch.Generator().manual_seed(seed), rows // 10
    book = torch.randn(8, 256, dim // 8, generator=made)

    def codes(n: int, count: int) -> Tensor:
        return torch.randint(count, (n, 8), generator=made, dtype=torch.uint8)

    two = [codes(head, 256), codes(rows - head, 64)]
    tier_of = torch.ones(rows, dtype=torch.int64).index_fill(0, torch.randperm(rows, generator=made)[:head], 0)
    return {
        "D=8 K=256": CompactTable.from_codes(Tiers.from_sizes((rows,)), [codes(rows, 256)], [book], (0,), (256,)),
        "D=8 K=(256, 64)": CompactTable.from_codes(
            Tiers.from_sizes((head, rows - head)), two, [book], (0, 0), (256, 64)
        ),
        "D=8 K=(256, 64), tier map": CompactTable.from_codes(
            Tiers.from_assignment(tier_of, 2), two, [book], (0, 0), (256, 64)
        ),
    }


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A file in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options)


def write(folder: Path, rows: int, dim: int, made: dict[str, CompactTable]) -> dict[str, Path]:
    """An ONNX file of each table and of nn.Embedding."""
    paths = {name: folder / f"{i}.onnx" for i, name in enumerate([PEER, *made])}
    program = torch.export.export(nn.Embedding(rows, dim), (EXAMPLE,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.onnx.export(program, dynamo=True, verbose=False).save(str(paths[PEER]), external_data=False)
    for name, table in made.items():
        mgqe.export_onnx(CompactEmbedding(table), EXAMPLE, paths[name])
    return paths


def main() -> None:
    parser = argument_parser(__doc__ or "", "export")
    parser.set_defaults(threads=[1])
    parser.add_argument("--rows", type=int, default=1_000_000, help="size of the table")
    parser.add_argument("--dim", type=int, default=64, help="dimensions per row")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 64, 1024], help="ids per call")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    generator = torch.Generator().manual_seed(options.seed)
    frozen = tables(options.rows, options.dim, options.seed)
    results: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder:
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
                contenders |= {f"{name}, mgqe in eager mode": eager(table) for name, table in frozen.items()}
                setting = {"rows": f"{options.rows:,}", "dim": options.dim, "ids": size, "threads": threads}
                for m in measure(setting, contenders, PEER, options.rounds, options.calls):
                    extra = {"file_bytes": bytes_of[m.name]} if m.name in bytes_of else {}
                    if m.name in frozen:
                        extra["table_bytes"] = frozen[m.name].nbytes
                    results.append(replace(m, extra=extra))
    print_table(results, 1, "call")
    for name, count in bytes_of.items():
        print(f"{name}: {count:,} bytes")
    save(options.out, "export", options, results)


if __name__ == "__main__":
    main()
