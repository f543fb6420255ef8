"""The forward pass of a converted, frozen model against the original's, on tables of a million rows and more.

A two-tower ranker with a bag of history items, in eval mode without gradients: its embeddings as they were, and after
compress_(init="from_weight") and freeze_. Same ids for both, uniform or Zipf.

python -m benchmarks.speed.convert_forward
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import Tensor, nn

import mgqe
from benchmarks._common import Measurement, argument_parser, measure, print_table, save
from benchmarks.speed.train_step import zipf
from mgqe.codec.kmeans import KMeans
from mgqe.convert import compress as conversion


class Ranker(nn.Module):
    """User, item and history to a score by a small network."""

    def __init__(self, users: int, items: int, dim: int) -> None:
        super().__init__()
        self.user = nn.Embedding(users, dim)
        self.item = nn.Embedding(items, dim)
        self.history = nn.EmbeddingBag(items, dim, mode="mean")
        self.score = nn.Sequential(nn.Linear(3 * dim, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, users: Tensor, items: Tensor, history: Tensor) -> Tensor:
        parts = [self.user(users), self.item(items), self.history(history)]
        return self.score(torch.cat(parts, 1)).squeeze(1)


def run(options: argparse.Namespace, rows: int) -> list[Measurement]:
    """All batch sizes and threads at one size of table."""
    torch.manual_seed(options.seed)
    original = Ranker(rows, rows, options.dim).eval()
    frozen = copy.deepcopy(original)
    conversion.THOROUGH = KMeans(iterations=3)  # what the codes are does not matter to the time
    tiers = mgqe.Tiers.from_fractions(rows)
    counts = dict.fromkeys(("user", "item", "history"), tiers)
    mgqe.compress_(frozen, counts=counts, init="from_weight")
    mgqe.freeze_(frozen)
    generator = torch.Generator().manual_seed(options.seed)
    found = []
    for draw in ("uniform", "Zipf"):
        for batch in options.batches:
            inputs = []
            for _ in range(options.calls + 1):
                flat = [
                    torch.randint(rows, (n,), generator=generator)
                    if draw == "uniform"
                    else zipf(n, rows, 1.05, generator)
                    for n in (batch, batch, batch * options.history)
                ]
                inputs.append((flat[0], flat[1], flat[2].view(batch, options.history)))
            for threads in options.threads:
                torch.set_num_threads(threads)
                setting = {"rows": rows, "dim": options.dim, "ids": draw, "batch": batch, "threads": threads}
                with torch.no_grad():
                    contenders = {
                        "original": lambda i, inputs=inputs: original(*inputs[i]),
                        "frozen": lambda i, inputs=inputs: frozen(*inputs[i]),
                    }
                    found += measure(setting, contenders, "original", options.rounds, options.calls, {"frozen": 1.0})
    return found


def main() -> None:
    parser = argument_parser(__doc__ or "", "convert-forward")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--history", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 256, 4096])
    options = parser.parse_args()
    found = [m for rows in options.rows for m in run(options, rows)]
    print_table(found, 1, "batch")
    save(options.out, "convert-forward", options, found)


if __name__ == "__main__":
    main()
