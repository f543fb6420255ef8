"""How long it takes to compress a trained table: mgqe.compress_, without and with a budget, and mgqe.compress_table.

What is stated of 300,000 x 64 on two threads: at most 6 seconds, and 10 with a budget.

python -m benchmarks.speed.compress
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import mgqe
from benchmarks._common import argument_parser, measure, print_table, save

BUDGET = "5%"
LIMITS = {"compress_": 6.0, "compress_ with a budget": 10.0}  # seconds


def trained_rows(rows: int, dim: int, seed: int) -> Tensor:
    """Rows whose coordinates vary less and less, as those of trained tables do along their axes."""
    made = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return made / torch.arange(1, dim + 1).sqrt()


def convert(weight: Tensor, budget: str | None) -> None:
    """A model's only table becomes a quantised one."""
    model = nn.Sequential(nn.Embedding.from_pretrained(weight.clone(), freeze=False))
    mgqe.compress_(model, init="from_weight", budget=budget, progress=False)


def main() -> None:
    parser = argument_parser(__doc__ or "", "compress")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.set_defaults(rounds=2, calls=1)
    options = parser.parse_args()
    weight = trained_rows(options.rows, options.dim, options.seed)
    found = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        contenders = {
            "compress_": lambda _: convert(weight, None),
            "compress_ with a budget": lambda _: convert(weight, BUDGET),
            "compress_table": lambda _: mgqe.compress_table(weight, BUDGET, progress=False),
        }
        setting = {"rows": options.rows, "dim": options.dim, "threads": threads}
        found += measure(setting, contenders, "compress_", options.rounds, options.calls)
    print_table(found, options.rows, "row")
    for one in found:
        limit = f", at most {LIMITS[one.name]:.0f}" if one.name in LIMITS else ""
        print(f"{one.name}, {one.setting['threads']} threads: {one.median_s:.1f} s{limit}")
    save(options.out, "compress", options, found)


if __name__ == "__main__":
    main()
