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
from benchmarks._common import Contender, measure, print_table, save
from benchmarks.speed.train_step import Training, training_input
from mgqe.nn.rows import CachedRows, SketchRows

PEER = "float32 rows, SparseAdam"
TARGET = 1.5
NEVER = 2**62


def training(layer: nn.Module, batches: list[Tensor], target: Tensor, adam: bool, codes: bool) -> Training:
    """The layer with its optimiser; with ``codes`` it trains through the codes already."""
    steps = Training(layer, batches, target, torch.optim.SparseAdam if adam else mgqe.RowwiseAdagrad)
    if codes:
        for _ in range(8):
            steps(0)
        mgqe.start_quantizing(layer)
    return steps


def main() -> None:
    options, batches, target = training_input(__doc__ or "", "row-storage", rounds=8, rows=10_000_000, num_batches=256)
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
        name: training(make(), batches, target, adam, codes) for name, (make, adam, codes) in kinds.items()
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
