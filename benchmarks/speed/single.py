"""Look-ups of one id and of a few: what a call costs, against a call of nn.Embedding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from mgqe import ops
from mgqe.codec.tiers import Tiers
from mgqe.table.compact import CompactTable

PEER = "nn.Embedding"
REPEATS = 200  # calls that are timed together: a clock reads no better than tens of nanoseconds


def main() -> None:
    parser = argument_parser(__doc__ or "", "single")
    parser.set_defaults(threads=[1], rounds=20)
    parser.add_argument("--rows", type=int, default=1_000_000, help="size of the table")
    parser.add_argument("--dim", type=int, default=64, help="dimensions per row")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 64], help="ids per call")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    rows, head, generator = options.rows, options.rows // 10, torch.Generator().manual_seed(options.seed)
    book = torch.randn(8, 256, options.dim // 8, generator=generator)

    def codes(n: int, count: int) -> Tensor:
        return torch.randint(count, (n, 8), generator=generator, dtype=torch.uint8)

    one = CompactTable.from_codes(Tiers.from_sizes((rows,)), [codes(rows, 256)], [book], (0,), (256,))
    two = CompactTable.from_codes(
        Tiers.from_sizes((head, rows - head)), [codes(head, 256), codes(rows - head, 64)], [book], (0, 0), (256, 64)
    )
    functions = {
        PEER: torch.nn.Embedding(rows, options.dim),
        "mgqe D=8 K=256": one.lookup,
        "mgqe D=8 K=(256, 64)": two.lookup,
    }
    draws = np.random.default_rng(options.seed)
    results: list[Measurement] = []
    for size in options.sizes:
        batches = [
            [torch.from_numpy(draws.integers(rows, size=size)) for _ in range(REPEATS)]
            for _ in range(options.calls + 1)
        ]

        def calls(f: Callable[[Tensor], Tensor], size_batches: list[list[Tensor]] = batches) -> Contender:
            def run(i: int) -> None:
                for ids in size_batches[i]:
                    f(ids)

            return run

        contenders = {name: calls(f) for name, f in functions.items()}
        for threads in options.threads:
            torch.set_num_threads(threads)
            setting = {"rows": f"{rows:,}", "ids": size, "threads": threads, "isa": ops.native_isa()}
            targets = dict.fromkeys(list(functions)[1:], 1.0)
            results += measure(setting, contenders, PEER, options.rounds, options.calls, targets)
    print_table(results, REPEATS, "call")
    save(options.out, "single", options, results)


if __name__ == "__main__":
    main()
