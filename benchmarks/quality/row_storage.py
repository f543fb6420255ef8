"""What each row storage costs in quality on a real data set: GMF, the storage under test for the users.

Items are MGQE with full float32 rows throughout. All tables train with RowwiseAdagrad; the learning rate is chosen for
each storage by the validation items, test is reported. The tables train unquantised for two thirds of the epochs, then
through their codes, and are judged frozen. Bytes a user in training are counted tensor by tensor.

    python -m benchmarks.quality.row_storage --data amazon-apps --data-dir DATA
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import mgqe
from benchmarks._common import QUALITY, environment
from mgqe.baselines import HashEmbedding
from mgqe.baselines.recjpq import interaction_codes
from mgqe.nn.rows import CachedRows, CodeRows, NarrowRows, SketchRows
from mgqe.recsys.models.gmf import GMF
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.tuned import tuned_settings

NEVER = 2**62
SHAPE = {"num_subspaces": 32, "num_centroids": (256, 64)}
TIERS = (0.1, 0.9)
LEARNING_RATES = (0.05, 0.1)


def table(n: int, dim: int, counts: Tensor, rows: Any, **more: Any) -> nn.Module:
    """An MGQE table with a row storage."""
    tiers = mgqe.Tiers.from_counts(counts, TIERS)
    options = {**SHAPE, **more}
    return mgqe.MGQEmbedding(n, dim, sparse=True, tiers=tiers, rows=rows, warmup_steps=NEVER, **options)


def storages(n: int, dim: int, counts: Tensor, pairs: tuple[Tensor, Tensor], seed: int) -> dict[str, Callable[[], Any]]:
    """Makers of the users' table."""
    cache = n // 4
    head = round(TIERS[0] * n)
    tiers = mgqe.Tiers.from_counts(counts, TIERS)

    def from_svd() -> Tensor:
        codes = interaction_codes(n, pairs, 32, 256, seed)
        tail = tiers.of(torch.arange(n)) > 0
        codes[tail] //= 4  # 64 bins of the same order
        return codes

    def hashed(bytes_a_row: int) -> HashEmbedding:
        return HashEmbedding(n, dim, num_buckets=n * bytes_a_row // (4 * dim + 4), sparse=True)

    cached = CachedRows(head_rows=head, cache_rows=cache)
    return {
        "float32": lambda: table(n, dim, counts, "float32"),
        "bfloat16": lambda: table(n, dim, counts, "bfloat16"),
        "cached": lambda: table(n, dim, counts, cached),
        "cached, codes from an SVD": lambda: table(n, dim, counts, replace(cached, codes=from_svd(), init_std=0.1)),
        "fixed codes from an SVD": lambda: table(n, dim, counts, CodeRows(from_svd(), init_std=0.1)),
        "sketch": lambda: table(n, dim, counts, SketchRows(buckets=cache, interval=600)),
        "narrow (SX)": lambda: table(n, dim, counts, NarrowRows(1), quantizer="sx"),
        "hashed full table, as cached": lambda: hashed(128),
    }


def held_bytes(layer: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Parameters, buffers and the optimiser's state of one table."""
    own = [*layer.parameters(), *layer.buffers()]
    state = [v for p in layer.parameters() for v in optimizer.state.get(p, {}).values() if isinstance(v, Tensor)]
    return sum(t.nbytes for t in own + state)


def run(
    config: TrainConfig, data: RunData, make: Callable[[], Any], lr: float, epochs: int, decay: float
) -> dict[str, Any]:
    """One training; validation and test of the frozen model."""
    task = data.task
    split = task.split
    torch.manual_seed(config.seed)
    items = table(split.num_items, config.dim, split.item_counts, "float32")
    model = GMF(make(), items, config.dim)
    with torch.no_grad():
        for layer in (model.user, model.item):
            rows = layer.raw_weight if isinstance(layer, mgqe.MGQEmbedding) else layer.weight
            rows.normal_(std=config.init_std)
            store = getattr(layer, "store", None)
            if hasattr(store, "centroids"):
                store.centroids.normal_(std=config.init_std)
    rowwise = mgqe.RowwiseAdagrad([*model.user.parameters(), *model.item.parameters()], lr=lr, weight_decay=decay)
    dense = torch.optim.Adam([model.weight, model.bias], lr=1e-3)
    for epoch in range(epochs):
        if epoch == 2 * epochs // 3:
            mgqe.start_quantizing(model)
        model.train()
        for batch in task.batches(config.batch_size, "storage", epoch):
            loss = task.loss(model, batch) + mgqe.quantization_loss(model)
            rowwise.zero_grad()
            dense.zero_grad()
            loss.backward()
            rowwise.step()
            dense.step()
    model.eval()
    found = held_bytes(model.user, rowwise) / split.num_users
    if isinstance(model.user, mgqe.MGQEmbedding):
        mgqe.freeze_(model)
    quality = {"valid": dict(task.validation(model).figures), "test": dict(task.evaluate(model))}
    return {**quality, "lr": lr, "training_bytes_a_user": round(found, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="amazon-apps")
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, nargs="+", default=LEARNING_RATES)
    parser.add_argument("--weight-decay", type=float, default=1e-5, help="chosen with float32 rows")
    parser.add_argument("--only", nargs="*", help="storages to run; the others' records stay")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = TrainConfig(data=options.data, data_dir=options.data_dir, embedding="full", seed=options.seed)
    config = config.with_settings([*tuned_settings("gmf", options.data), f"batch_size={options.batch_size}"])
    data = RunData.load(config)
    split = data.task.split
    pairs = (split.train_users, split.train_items)
    makers = storages(split.num_users, config.dim, split.user_counts, pairs, options.seed)
    out = QUALITY / f"row-storage-{options.data}.json"
    records: list[dict[str, Any]] = json.loads(out.read_text())["records"] if options.only and out.exists() else []
    for name, make in makers.items():
        if options.only and name not in options.only:
            continue
        tried = [run(config, data, make, lr, options.epochs, options.weight_decay) for lr in options.lr]
        best = max(tried, key=lambda record: record["valid"]["hr@10"])
        records = [r for r in records if r["storage"] != name] + [{"storage": name, **best, "tried": tried}]
        print(
            f"{name:30} {best['training_bytes_a_user']:7.1f} B/user  lr {best['lr']:g}  "
            f"valid HR@10 {best['valid']['hr@10']:.4f}  test {best['test']['hr@10']:.4f} {best['test']['ndcg@10']:.4f}",
            flush=True,
        )
        content = {"environment": environment(), "options": vars(options) | {"data_dir": None}, "records": records}
        out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
