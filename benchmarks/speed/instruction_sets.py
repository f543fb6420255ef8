"""The tables that ``budget=`` makes, by each instruction set that this processor has, and by torch alone.

All are timed in turns beside nn.Embedding, nn.EmbeddingBag, or a product of matrices and torch's topk. Torch does the
work where no compiler was there to build the kernels.

python -m benchmarks.speed.instruction_sets
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from benchmarks.speed.budgets import BUDGETS, full_rows, planned
from benchmarks.speed.decode import zipf_ids
from mgqe import ops
from mgqe.ops._library import library

IDS, BAGS, LENGTH, K = 65_536, 8192, 20, 100
FULL, TORCH = "full", "torch"


def available() -> list[str]:
    """The instruction sets of this processor, the fastest first."""
    found = []
    for isa in ("avx512", "neon", "avx2"):
        try:
            ops.set_native_isa(isa)
        except ValueError:
            continue
        found.append(isa)
    ops.set_native_isa("auto")
    return found


def by(isa: str, call: Contender) -> Contender:
    """The same call by this instruction set."""

    def run(i: int) -> object:
        ops.set_native_isa(isa)
        return call(i)

    return run


def without_kernels(call: Contender) -> Contender:
    """The same call by torch. To load the library again afterwards takes a tenth of a millisecond."""

    def run(i: int) -> object:
        os.environ["MGQE_NATIVE"] = "0"
        library.cache_clear()
        try:
            return call(i)
        finally:
            del os.environ["MGQE_NATIVE"]
            library.cache_clear()
            library()

    return run


def main() -> None:
    parser = argument_parser(__doc__ or "", "instruction-sets")
    parser.set_defaults(threads=[1], rounds=5, calls=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="size of the table")
    parser.add_argument("--dim", type=int, default=64, help="dimensions per row")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    rows = full_rows(options.rows, options.dim, options.seed)
    generator, isas = np.random.default_rng(options.seed), available()
    full, pooled = torch.nn.Embedding.from_pretrained(rows), torch.nn.EmbeddingBag.from_pretrained(rows, mode="sum")
    offsets = torch.arange(0, BAGS * LENGTH, LENGTH)
    queries = torch.randn(1, options.dim, generator=torch.Generator().manual_seed(options.seed + 1))
    zipf = partial(zipf_ids, generator, options.rows, exponent=1.05)
    batches: dict[str, list[Tensor]] = {
        "look-up, Zipf ids": [zipf(count=IDS) for _ in range(options.calls + 1)],
        "look-up, uniform ids": [
            torch.from_numpy(generator.integers(options.rows, size=IDS)) for _ in range(options.calls + 1)
        ],
        "bags of 20, Zipf ids": [zipf(count=BAGS * LENGTH) for _ in range(options.calls + 1)],
        "top-100, 1 query": [queries] * (options.calls + 1),
    }
    results: list[Measurement] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for budget in BUDGETS:
            table = planned(rows, budget).freeze()
            own: dict[str, Callable[[Tensor], object]] = {
                "look-up": table.lookup,
                "bags of 20": lambda ids, table=table: table.bag(ids, offsets),  # type: ignore[misc]
                "top-100": lambda query, table=table: table.topk(query, K),  # type: ignore[misc]
            }
            peers: dict[str, Callable[[Tensor], object]] = {
                "look-up": full,
                "bags of 20": lambda ids: pooled(ids, offsets),
                "top-100": lambda query: (query @ rows.T).topk(K),
            }
            for what, inputs in batches.items():
                kind = what.partition(",")[0]
                peer, call = peers[kind], own[kind]
                contenders: dict[str, Contender] = {FULL: lambda i, peer=peer, inputs=inputs: peer(inputs[i])}  # type: ignore[misc]
                for isa in isas:
                    contenders[isa] = by(isa, lambda i, call=call, inputs=inputs: call(inputs[i]))  # type: ignore[misc]
                contenders[TORCH] = without_kernels(lambda i, call=call, inputs=inputs: call(inputs[i]))  # type: ignore[misc]
                setting = {"what": what, "budget": budget, "rows": options.rows, "dim": options.dim, "threads": threads}
                results += measure(setting, contenders, FULL, options.rounds, options.calls)
                print_table(results[-len(contenders) :], len(inputs[0]), "query" if kind == "top-100" else "id")
    save(options.out, "instruction_sets", options, results)


if __name__ == "__main__":
    main()
