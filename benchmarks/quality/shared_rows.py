"""What sums of shared rows can hold of a trained table, however they are trained: hashing, quotients and remainders.

Rows e_i = sum of the shared rows that id i names are A W, where A (N, rows) says which. The W that comes nearest to a
trained table is a least-squares solution, and no training of W comes nearer. The run's model is judged on validation
with its tables replaced by these, all together and that of the items alone, beside the full ones and those of an SVD.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._common import Help
from mgqe.baselines import HashEmbedding, QREmbedding
from mgqe.recsys.models.embeddings import Spec
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.artifacts import load_run
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.settle import settle

METHODS = ("hash", "qr:operation=add", "svd")


class Rows(nn.Module):
    """A table that is given whole."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) -> (..., d)."""
        return self.rows[ids]


def memberships(name: str, num_embeddings: int, options: dict[str, Any]) -> Tensor:
    """A (N, rows): how often each shared row is in the sum of each id."""
    if name == "hash":
        layer = HashEmbedding(num_embeddings, options["num_buckets"], **options)
        layer.weight.copy_(torch.eye(options["num_buckets"]))
        return layer(torch.arange(num_embeddings))
    quotients = -(-num_embeddings // options["num_remainders"])
    shared = torch.eye(quotients + options["num_remainders"])
    sums = QREmbedding(num_embeddings, len(shared), **options)
    sums.quotients.copy_(shared[:quotients])
    sums.remainders.copy_(shared[quotients:])
    return sums(torch.arange(num_embeddings))


def nearest(name: str, rows: Tensor, options: dict[str, Any]) -> Tensor:
    """The rows of a method that are nearest to trained ones (N, d)."""
    if name == "svd":
        left, values, right = torch.linalg.svd(rows, full_matrices=False)
        rank = options["rank"]
        return left[:, :rank] * values[:rank] @ right[:rank]
    named = memberships(name, len(rows), options)
    return named @ torch.linalg.lstsq(named, rows, driver="gelsd").solution


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("run", type=Path, help="a finished run of full tables, of a model that ranks")
    parser.add_argument("--budget", default="10%", help="of the bytes of the full tables")
    options = parser.parse_args()
    config = TrainConfig(**json.loads((options.run / "config.json").read_text()))
    task: Any = RunData.load(config).task
    model = load_run(options.run)
    full = {path: model.get_submodule(path).table.to_dense() for path in task.tables}

    def judge(name: str, tables: dict[str, Tensor]) -> None:
        for path, rows in {**full, **tables}.items():
            parent, _, name_there = path.rpartition(".")
            setattr(model.get_submodule(parent), name_there, Rows(rows))
        figures = task.validation(model).figures
        held = {
            path: 1 - float((rows - full[path]).square().sum() / full[path].square().sum())
            for path, rows in tables.items()
        }
        shares = ", ".join(f"{share:.0%} of {path}" for path, share in held.items())
        print(f"{name:<32} NDCG@10 {figures['full_ndcg@10']:.4f}  HR@10 {figures['hr@10']:.4f}  {shares}")

    judge("full", {})
    for method in METHODS:
        text = f"{method}{',' if ':' in method else ':'}budget={options.budget}"
        spec = Spec.parse(settle(replace(config, embedding=text), task).embedding)
        tables = {path: nearest(spec.name, full[path], dict(spec.keywords(task.tables[path].field))) for path in full}
        judge(str(method), tables)
        judge(f"{method}, items alone", {path: rows for path, rows in tables.items() if path == "item"})


if __name__ == "__main__":
    main()
