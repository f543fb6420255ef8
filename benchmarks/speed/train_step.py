"""A training step with SparseAdam: a quantising MGQEmbedding against nn.Embedding(sparse=True).

Layers have even shapes; those with plans, as layers are by default, are in :mod:`benchmarks.speed.budgets`. A step is
what a training loop does: look up a batch of Zipf ids, a loss on the vectors (plus the quantisation loss), backward,
SparseAdam. The rows and both moments of Adam are far larger than the caches, as they are in practice.
Every 100 passes a layer looks for dead centroids; that pass is timed on its own and spread over the passes between
two of them in the entries named "with revival".

python -m benchmarks.speed.train_step
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from mgqe import MGQEmbedding, Tiers, quantization_loss

PEER = "nn.Embedding"
TARGET = 1.5  # times the peer's time, at most


def zipf(ids: int, rows: int, exponent: float, generator: torch.Generator) -> Tensor:
    """Ids in frequency order: id i with probability proportional to (i + 1) ** -exponent."""
    shares = torch.arange(1, rows + 1, dtype=torch.float64).pow(-exponent).cumsum(0)
    return torch.searchsorted(shares, torch.rand(ids, dtype=torch.float64, generator=generator) * shares[-1])


@dataclass
class Training:
    """One layer with its optimiser; calling it takes one step."""

    layer: nn.Module
    batches: list[Tensor]
    target: Tensor
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.SparseAdam

    def __post_init__(self) -> None:
        arguments: dict[str, Any] = {"lr": 1e-3}
        self.optimizer = self.optimizer_class(self.layer.parameters(), **arguments)
        self.steps = 0

    def __call__(self, _: int) -> None:
        self.steps += 1
        loss = (self.layer(self.batches[self.steps % len(self.batches)]) - self.target).square().mean()
        if isinstance(self.layer, MGQEmbedding):
            loss = loss + quantization_loss(self.layer)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def training_input(
    description: str, benchmark: str, rounds: int, rows: int, num_batches: int
) -> tuple[argparse.Namespace, list[Tensor], Tensor]:
    """The options of a benchmark of training steps, its batches of Zipf ids, and what the vectors are to become."""
    parser = argument_parser(description, benchmark)
    parser.set_defaults(rounds=rounds)
    parser.add_argument("--ids", type=int, default=4096, help="ids per step")
    parser.add_argument("--rows", type=int, default=rows, help="rows of the table")
    parser.add_argument("--dim", type=int, default=64, help="dimensions per row")
    parser.add_argument("--exponent", type=float, default=1.0, help="of the Zipf law")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(options.seed)
    batches = [zipf(options.ids, options.rows, options.exponent, generator) for _ in range(num_batches)]
    target = torch.randn(options.ids, options.dim, generator=generator)
    torch.manual_seed(options.seed)
    return options, batches, target


def layers(options: argparse.Namespace) -> dict[str, Callable[[], nn.Module]]:
    """Makers of the contenders."""

    def quantising(**arguments: Any) -> nn.Module:
        tiers = Tiers.from_fractions(options.rows, (0.1, 0.9))
        layer = MGQEmbedding(options.rows, options.dim, sparse=True, tiers=tiers, **arguments)
        layer.start_quantizing()
        return layer

    return {
        PEER: lambda: nn.Embedding(options.rows, options.dim, sparse=True),
        "mgqe D=8 K=256": lambda: quantising(num_subspaces=8, num_centroids=256),
        f"mgqe D={options.dim // 2} K=256/64": quantising,
    }


def revival(layer: nn.Module) -> float:
    """Seconds that looking for dead centroids adds to a pass on average."""
    if not isinstance(layer, MGQEmbedding):
        return 0.0
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        layer.revive()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / layer.schedule.revive_every


def main() -> None:
    options, batches, target = training_input(__doc__ or "", "train-step", rounds=20, rows=1_000_000, num_batches=64)
    contenders: dict[str, Contender] = {
        name: Training(make(), batches, target) for name, make in layers(options).items()
    }
    distinct = sum(len(batch.unique()) for batch in batches) / len(batches)
    results: list[Measurement] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        setting = {"rows": options.rows, "ids": options.ids, "distinct": round(distinct), "threads": threads}
        targets = {name: TARGET for name in contenders if name != PEER}
        timed = measure(setting, contenders, PEER, options.rounds, options.calls, targets)
        base = timed[0].median_s
        for one in timed:
            results.append(one)
            if extra := revival(contenders[one.name].layer):  # type: ignore[attr-defined]
                both = one.median_s + extra
                results.append(
                    Measurement(setting, f"{one.name}, with revival", both, one.best_s + extra, both / base, TARGET)
                )
    print_table(results, options.ids, "id")
    save(options.out, "train_step", options, results)


if __name__ == "__main__":
    main()
