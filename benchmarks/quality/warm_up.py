"""How the quality of a budget depends on the warm-up's share of the training: GMF, an equal number of steps for all.

A layer with a budget plans on its rows when the warm-up ends, trains on through the codes, and plans anew each time
the passes have grown by half (`planned`). Here the layers of users and items do so after some share of the steps,
beside layers that keep the first plan (`once`) and layers of an even shape that is made of the same bytes from the
counts (`even`), whose codebooks start after as many. `full` has no codes. Ranks are those in the whole catalogue.

    python -m benchmarks.quality.warm_up --data ml-100k --data-dir DATA
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from typing import Any

import torch

import mgqe
from benchmarks._common import QUALITY, environment
from mgqe.recsys.models.gmf import GMF
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig

NEVER = 2**62
SHARES = (0.02, 0.25, 0.5, 0.75, 1.0)  # of the steps; 1: frozen as it is at the end


def table(kind: str, budget: str, counts: torch.Tensor, dim: int, warmup_steps: int) -> mgqe.MGQEmbedding:
    """A table that is planned on its rows, or an even one of as many bytes."""
    n, warmup_steps = len(counts), warmup_steps if kind == "planned" else NEVER
    if kind == "even":
        options = mgqe.plan(n, dim, budget, counts=counts).arguments()
    else:
        options = {"counts": counts, "budget": budget}
    return mgqe.MGQEmbedding(n, dim, warmup_steps=warmup_steps, **options)


def run(kind: str, share: float, data: RunData, config: TrainConfig, options: argparse.Namespace) -> dict[str, Any]:
    """One training."""
    task = data.task
    torch.manual_seed(config.seed)
    counts = task.split.user_counts, task.split.item_counts
    total = options.epochs * task.num_batches(config.batch_size)
    end = round(share * total)
    model = GMF(*(table(kind, options.budget, each, config.dim, end) for each in counts), config.dim)
    with torch.no_grad():
        for layer in (model.user, model.item):
            layer.raw_weight.normal_(std=config.init_std)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr, weight_decay=config.weight_decay)
    batches = (batch for epoch in range(options.epochs) for batch in task.batches(config.batch_size, "full", epoch))
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)  # to zero
    for step, batch in enumerate(batches):
        if step == end and kind != "planned":
            mgqe.start_quantizing(model)
        loss = task.loss(model, batch) + mgqe.quantization_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    if kind == "full":
        return {"kind": kind, "seed": config.seed, **figures(task, model)}
    nbytes = sum(layer.freeze().nbytes for layer in (model.user, model.item))
    return {"kind": kind, "share": share, "seed": config.seed, "nbytes": nbytes, **figures(task, model)}


def figures(task: Any, model: GMF) -> dict[str, float]:
    """Of the test items; and the figure of the validation items that plans are judged by, which varies least."""
    found = task.evaluate(model.eval())
    named = {name: found[name] for name in ("full_ndcg@10", "full_hr@10", "hr@10")}
    named["valid_full_ndcg"] = task.validation(model).figures["full_ndcg"]
    return {name: round(value, 5) for name, value in named.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--data-dir")
    parser.add_argument("--budget", default="10%", help="of each table")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = []
    for seed in range(1, options.seeds + 1):
        config = TrainConfig(data=options.data, data_dir=options.data_dir, embedding="full", seed=seed)
        data = RunData.load(config)
        for kind, share in [("full", 2.0), *product(("planned", "once", "even"), SHARES)]:
            records.append(run(kind, share, data, config, options))
            print(records[-1], flush=True)
    content = {"environment": environment(), "options": vars(options) | {"data_dir": None}, "records": records}
    (QUALITY / f"warm-up-{options.data}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
