"""A training step over ten million rows: each row storage with RowwiseAdagrad, against float32 rows with SparseAdam.

A step is what a training loop does: look up a batch of Zipf ids, a loss on the vectors (plus the quantisation loss),
backward, the optimiser's step. "codes" is training through the codes, after the warm-up. Emptying the cache is in the
time: the ids of a batch are new to it as often as Zipf's law has it.

python -m benchmarks.speed.row_storage
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import mgqe
from benchmarks._common import Contender, argument_parser, measure, print_table, save
from benchmarks.speed.train_step import zipf
from mgqe.nn.rows import CachedRows, SketchRows

PEER = "float32 rows, SparseAdam"
TARGET = 1.5
NEVER = 2**62


class Training:
    """One layer with its optimiser; calling it takes one step."""

    def __init__(self, layer: nn.Module, batches: list[Tensor], target: Tensor, adam: bool, codes: bool) -> None:
        self.layer, self.batches, self.target, self.taken = layer, batches, target, 0
        parameters = layer.parameters()
        optimizer: Any = torch.optim.SparseAdam if adam else mgqe.RowwiseAdagrad
        self.optimizer = optimizer(parameters, lr=1e-3)
        if codes:
            for _ in range(8):
                self(0)
            mgqe.start_quantizing(layer)

    def __call__(self, _: int) -> None:
        self.taken += 1
        loss = (self.layer(self.batches[self.taken % len(self.batches)]) - self.target).square().mean()
        if isinstance(self.layer, mgqe.MGQEmbedding):
            loss = loss + mgqe.quantization_loss(self.layer)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def main() -> None:
    parser = argument_parser(__doc__ or "", "row-storage")
    parser.set_defaults(rounds=8)
    parser.add_argument("--ids", type=int, default=4096, help="ids per step")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the table")
    parser.add_argument("--dim", type=int, default=64, help="dimensions per row")
    parser.add_argument("--exponent", type=float, default=1.0, help="of the Zipf law")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(options.seed)
    batches = [zipf(options.ids, options.rows, options.exponent, generator) for _ in range(256)]
    target = torch.randn(options.ids, options.dim, generator=generator)
    torch.manual_seed(options.seed)
    tiers = mgqe.Tiers.from_fractions(options.rows, (0.01, 0.99))

    def layer(rows: Any) -> nn.Module:
        return mgqe.MGQEmbedding(options.rows, options.dim, tiers=tiers, sparse=True, rows=rows, warmup_steps=NEVER)

    cached = CachedRows(head_rows=options.rows // 100, cache_rows=options.rows // 25)
    kinds: dict[str, tuple[Callable[[], nn.Module], bool, bool]] = {
        PEER: (lambda: nn.Embedding(options.rows, options.dim, sparse=True), True, False),
        "bfloat16": (lambda: layer("bfloat16"), False, False),
        "bfloat16, codes": (lambda: layer("bfloat16"), False, True),
        "cached": (lambda: layer(cached), False, False),
        "cached, codes": (lambda: layer(cached), False, True),
        "sketch": (lambda: layer(SketchRows(buckets=options.rows // 25, interval=0)), False, False),
    }
    contenders: dict[str, Contender] = {
        name: Training(make(), batches, target, adam, codes) for name, (make, adam, codes) in kinds.items()
    }
    results = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        setting = {"rows": options.rows, "ids": options.ids, "threads": threads}
        targets = {name: TARGET for name in contenders if name != PEER}
        results += measure(setting, contenders, PEER, options.rounds, options.calls, targets)
    print_table(results, options.ids, "id")
    save(options.out, "row_storage", options, results)


if __name__ == "__main__":
    main()
