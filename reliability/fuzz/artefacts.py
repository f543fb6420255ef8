"""Small tables of the baselines, id maps, models and training runs."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import mgqe
from mgqe import baselines
from mgqe.ids import IdMap
from mgqe.table.base import FrozenTable
from reliability.fuzz.models import Shop, Words


def baseline_tables() -> dict[str, FrozenTable]:
    """One table per kind, and per option that changes the stored tensors."""
    n, d = 24, 6
    layers: dict[str, Any] = {
        "full-float32": baselines.FullEmbedding(n, d, padding_idx=3),
        "full-float16": baselines.FullEmbedding(n, d, dtype=torch.float16),
        "full-bfloat16": baselines.FullEmbedding(n, d, dtype=torch.bfloat16),
        "low-rank": baselines.LowRankEmbedding(n, d, rank=2),
        "scalar-row": baselines.ScalarQuantizedEmbedding(n, d, bits=3, granularity="row"),
        "scalar-dimension": baselines.ScalarQuantizedEmbedding(n, d, bits=8, granularity="dimension", padding_idx=0),
        "hashing": baselines.HashEmbedding(n, d, num_buckets=7, num_hashes=2),
        "pq": baselines.PQEmbedding(n, d, num_subspaces=3, num_centroids=5),
        "recjpq": baselines.RecJPQEmbedding(n, d, num_subspaces=2, num_centroids=4),
    }
    for operation in ("mult", "add", "concat"):
        layers[f"quotient-remainder-{operation}"] = baselines.QREmbedding(n, d, num_remainders=5, operation=operation)
    return {name: layer.freeze() for name, layer in layers.items()}


def write_baselines(folder: Path) -> None:
    """Each table in a separate folder."""
    torch.manual_seed(0)
    for name, table in baseline_tables().items():
        (folder / name).mkdir(parents=True)
        mgqe.save(table, folder / name / "table.safetensors")


def write_id_maps(folder: Path) -> None:
    """Maps of integers, strings, bytes and hashes."""
    pl = import_module("polars")
    numbers = [i for i in range(60) for _ in range(1 + i * i % 7)]
    words = [f"item {i}" * (i % 4) + "é" * (i == 5) for i in numbers]
    logs: dict[str, tuple[Any, dict[str, Any]]] = {
        "int32": (pl.Series([3 * i - 50 for i in numbers]), {}),
        "int64": (pl.Series([i * i * 10**15 - 5 * 10**17 for i in numbers]), {}),
        "uint64": (pl.Series([2**64 - 1 - i for i in numbers], dtype=pl.UInt64), {}),
        "string": (pl.Series(words), {}),
        "binary": (pl.Series([bytes([255, i]) * (i % 5) for i in numbers]), {}),
        "hashes": (pl.Series(words), {"keep_ids": False}),
    }
    for name, (log, options) in logs.items():
        (folder / name).mkdir(parents=True)
        IdMap.from_log(pl.DataFrame({"item": log}), "item", **options).save(folder / name / "ids.safetensors")


def write_runs(folder: Path) -> None:
    """Runs of ``mgqe train`` with codes and with hashed rows, without times and machine, which vary."""
    from mgqe.recsys.data.datasets import planted
    from mgqe.recsys.train.config import TrainConfig
    from mgqe.recsys.train.run import METRICS, train_run

    data = planted(num_users=60, num_items=80, rank=3, per_user=12)
    log = folder.parent / "interactions.txt"
    log.write_text("".join(f"{u} {i}\n" for u, i in zip(data.users.tolist(), data.items.tolist(), strict=True)))
    epochs = {"max_epochs": 1, "anneal_epochs": 1, "quantised_epochs": 1}
    for name, embedding in (("mgqe", "mgqe:D=4,K=4/2"), ("hash", "hash:buckets=20")):
        config = TrainConfig(data=str(log), embedding=embedding, dim=8, eval_negatives=20, **epochs)  # type: ignore[arg-type]
        metrics = train_run(config, folder / name)
        varying = ("seconds", "seconds_per_epoch", "peak_memory_bytes", "commit", "machine", "versions")
        (folder / name / METRICS).write_text(json.dumps({**metrics, **dict.fromkeys(varying)}, indent=2))
        (folder / name / ".lock").unlink(missing_ok=True)


def write_models(folder: Path) -> None:
    """A model with a padded table and bags, and one whose output layer is tied to its table."""
    for model_class in (Shop, Words):
        torch.manual_seed(0)
        model = model_class()
        mgqe.compress_(model, mgqe.CompressConfig(num_subspaces=4, num_centroids=8))
        mgqe.freeze_(model)
        mgqe.save_model(model, folder / model_class.__name__)
