"""Pooled look-ups against nn.EmbeddingBag: sums of 20 rows in 8,192 bags.

Ids are in frequency order: Zipf ids fall mostly on the first rows, uniform ids everywhere. The int8 and int4 peers are
torch's row-wise quantised bags; "gather and sum" is what torch does eagerly from unpacked codes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from benchmarks.speed.decode import table, zipf_ids
from mgqe import ops

PEER = "nn.EmbeddingBag"
ALIGNED = "mgqe D=8, two tiers of 8 bits"
PACKED = "mgqe D=8, tail of 6 bits"


def gather_and_sum(parts: ops.TableBuffers) -> Callable[[Tensor, Tensor, int], Tensor]:
    """From unpacked codes with torch's own operations."""
    codes, book = parts.codes[0], parts.centroids[0]
    piece = torch.arange(codes.shape[1])

    def run(ids: Tensor, offsets: Tensor, bags: int) -> Tensor:
        return book[piece, codes[ids].long()].view(bags, -1, parts.embedding_dim).sum(1)

    return run


def main() -> None:
    parser = argument_parser(__doc__ or "", "bag")
    parser.add_argument("--rows", type=int, default=1_000_000, help="size of the table")
    parser.add_argument("--bags", type=int, default=8192, help="bags per call")
    parser.add_argument("--length", type=int, default=20, help="ids per bag")
    parser.add_argument("--dim", type=int, default=64, help="dimensions per row")
    parser.add_argument("--exponent", type=float, default=1.05, help="of the Zipf ids")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    rows, dim, bags, n = options.rows, options.dim, options.bags, options.bags * options.length
    head = rows // 10
    tables = {
        "mgqe D=8 K=256": table([rows], [256], 8, dim, options.seed),
        "mgqe D=16 K=256": table([rows], [256], 16, dim, options.seed),
        "mgqe D=32 K=(256, 64)": table([head, rows - head], [256, 64], 32, dim, options.seed),
        ALIGNED: table([head, rows - head], [256, 256], 8, dim, options.seed),
        PACKED: table([head, rows - head], [256, 64], 8, dim, options.seed),
    }
    prepared = {name: ops.PreparedLookup(parts) for name, parts in tables.items()}
    full = torch.nn.EmbeddingBag(rows, dim, mode="sum")
    int8 = torch.ops.quantized.embedding_bag_byte_prepack(full.weight)
    int4 = torch.ops.quantized.embedding_bag_4bit_prepack(full.weight)
    gather = gather_and_sum(tables["mgqe D=8 K=256"])
    first = prepared["mgqe D=8 K=256"]
    functions: dict[str, Callable[[Tensor, Tensor], object]] = {
        PEER: full,
        **{name: lambda ids, at, f=f: ops.bag(f, ids, at) for name, f in prepared.items()},
        "mgqe D=8 K=256, lookup().sum()": lambda ids, at: first(ids.view(bags, -1)).sum(1),
        "torch int8 row-wise": lambda ids, at: torch.ops.quantized.embedding_bag_byte_rowwise_offsets(int8, ids, at),
        "torch int4 row-wise": lambda ids, at: torch.ops.quantized.embedding_bag_4bit_rowwise_offsets(int4, ids, at),
        "torch gather and sum": lambda ids, at: gather(ids, at, bags),
    }
    generator = np.random.default_rng(options.seed)
    draws: dict[str, Callable[[], Tensor]] = {
        "Zipf": lambda: zipf_ids(generator, rows, n, options.exponent),
        "uniform": lambda: torch.from_numpy(generator.integers(rows, size=n)),
    }
    offsets = torch.arange(0, n, options.length)
    results: list[Measurement] = []
    for distribution, draw in draws.items():
        batches = [draw() for _ in range(options.calls + 1)]
        contenders: dict[str, Contender] = {
            name: lambda i, f=f, b=batches: f(b[i], offsets) for name, f in functions.items()
        }
        for threads in options.threads:
            torch.set_num_threads(threads)
            setting = {"rows": f"{rows:,}", "ids": distribution, "threads": threads}
            targets = dict.fromkeys([name for name in tables if "D=8" in name], 0.5)
            results += measure(setting, contenders, PEER, options.rounds, options.calls, targets)
            tails: dict[str, Contender] = {name: contenders[name] for name in (ALIGNED, PACKED)}
            results += measure(
                {**setting, "peer": ALIGNED}, tails, ALIGNED, options.rounds, options.calls, {PACKED: 1.15}
            )
    print_table(results, n, "id")
    save(options.out, "bag", options, results)


if __name__ == "__main__":
    main()
