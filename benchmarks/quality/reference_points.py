"""Full tables of `mgqe train` beside models of implicit and RecBole: the same split, judged by the same program.

Each of the libraries' models is trained with every setting of a small grid, and that with the best recall@20 of the
validation part is judged on the test part. All have 64 floats per user and item (implicit's BPR: 63 and a bias). Two
rows train nothing: the most frequent items, and what users with the same items have, which is a walk of three steps in
the graph of the training interactions. RecBole needs the environment that `make test-third-party` makes.

    pip install implicit
    mgqe train --data ml-1m-split --data-dir DIR --model lightgcn --embedding full --out run
    python -m benchmarks.quality.reference_points --data ml-1m-split --data-dir DIR --run run
    python -m benchmarks.quality.reference_points --data ml-1m-split --data-dir DIR --model "RecBole BPR"
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags_array
from torch import nn

from benchmarks._common import QUALITY, environment
from benchmarks.quality._recbole import recbole_factors
from mgqe.recsys.models.mf import MF
from mgqe.recsys.tasks.ranking import RankingTask
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.artifacts import load_run
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.provenance import version_of

DIM = 64
FIGURES = ("recall@20", "ndcg@20")


@dataclass(frozen=True)
class Grid:
    """A library's model, and the values to try for each of its settings.

    train: settings, task and seed -> matrix factorisation whose products are the model's scores.
    """

    train: Callable[[dict[str, Any], RankingTask, int], MF]
    values: dict[str, tuple[Any, ...]]

    def settings(self) -> list[dict[str, Any]]:
        return [dict(zip(self.values, chosen, strict=True)) for chosen in product(*self.values.values())]


def of_implicit(name: str, factors: int) -> Callable[[dict[str, Any], RankingTask, int], MF]:
    """Trains a class of implicit, named as module.Class."""

    def train(settings: dict[str, Any], task: RankingTask, seed: int) -> MF:
        module, _, of = name.rpartition(".")
        make = getattr(importlib.import_module(f"implicit.{module}"), of)
        model = make(factors=factors, random_state=seed, num_threads=1, use_gpu=False, **settings)
        model.fit(training_matrix(task), show_progress=False)
        tables = (torch.from_numpy(table).float() for table in (model.user_factors, model.item_factors))
        return MF(*(nn.Embedding.from_pretrained(table) for table in tables)).eval()

    return train


GRIDS = {
    "implicit ALS": Grid(
        of_implicit("als.AlternatingLeastSquares", DIM),
        {"iterations": (15,), "regularization": (1.0, 10.0, 100.0), "alpha": (2.0, 10.0, 40.0)},
    ),
    "implicit BPR": Grid(
        of_implicit("bpr.BayesianPersonalizedRanking", DIM - 1),
        {"iterations": (30, 100), "regularization": (0.01, 0.03), "learning_rate": (0.03,)},
    ),
    "RecBole BPR": Grid(
        partial(recbole_factors, "BPR"),
        {"learning_rate": (1e-3, 3e-3), "weight_decay": (0.0, 1e-6), "train_batch_size": (4096,), "epochs": (100,)},
    ),
    "RecBole LightGCN": Grid(
        partial(recbole_factors, "LightGCN"),
        {
            "learning_rate": (5e-3,),
            "reg_weight": (1e-5, 1e-3),
            "n_layers": (3,),
            "train_batch_size": (16_384,),
            "epochs": (100,),
        },
    ),
}
WITHOUT_RECBOLE = tuple(name for name in GRIDS if not name.startswith("RecBole"))


def training_matrix(task: RankingTask) -> csr_matrix:
    """Users by items, 1 for each interaction of the training part."""
    users, items = task.split.train_users.numpy(), task.split.train_items.numpy()
    return csr_matrix((np.ones(len(users), np.float32), (users, items)), (task.split.num_users, task.split.num_items))


def walked(task: RankingTask) -> list[dict[str, Any]]:
    """Figures of the walk; the damping of frequent items is chosen by the validation part."""
    log = training_matrix(task)
    by_user = diags_array(np.maximum(np.asarray(log.sum(1)).ravel(), 1) ** -0.5) @ log
    counts, tried = np.maximum(np.asarray(log.sum(0)).ravel(), 1), []
    for damping in (0.0, 0.25, 0.5):
        steps = csr_matrix(by_user @ diags_array(counts**-damping))

        def scores(users: torch.Tensor, steps: csr_matrix = steps) -> torch.Tensor:
            return torch.from_numpy(((steps[users.numpy()] @ steps.T) @ steps).toarray()).float()

        quality = {}
        for test, part, prefix in ((False, task.valid, "valid_full_"), (True, task.test, "full_")):
            quality.update(task.catalogue_figures(task.catalogue_ranks(scores, part, test), part, prefix))
        tried.append({"name": "walk of three steps", "settings": {"damping": damping}, **figures_of(quality)})
    return [max(tried, key=lambda each: each[f"valid_{FIGURES[0]}"])]


def figures_of(quality: dict[str, float], prefix: str = "") -> dict[str, float]:
    """Of the whole catalogue: plain names for the test part, `valid_` for the validation part."""
    return {f"{part}{name}": quality[f"{prefix}{part}full_{name}"] for part in ("", "valid_") for name in FIGURES}


def shown(record: dict[str, Any]) -> dict[str, Any]:
    """The record, which is printed."""
    figures = (f"{name} {value:.4f}" for name, value in record.items() if isinstance(value, float))
    print(f"{record['name']:24}", *figures, record.get("settings") or "", flush=True)
    return record


def kept_records(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Those of an earlier run on the same parts, each with the commit that it was made at."""
    earlier = json.loads(path.read_text())
    same = ("data", "seed", "eval_users")
    if differing := [name for name in same if earlier["options"][name] != getattr(options, name)]:
        raise SystemExit(f"--keep: {path} was made with another {' and '.join(differing)}: choose another --out")
    return [{"commit": earlier["environment"]["commit"], **record} for record in earlier["runs"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-1m-split", help="as of `mgqe train`")
    parser.add_argument("--data-dir")
    parser.add_argument("--run", action="append", default=[], metavar="OUT", help="a run of `mgqe train`; repeatable")
    parser.add_argument("--model", action="append", choices=list(GRIDS), help="by default those of implicit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-users", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="default: benchmarks/quality/results/reference-points-DATA.json")
    parser.add_argument("--keep", action="store_true", help="keep the rows of the file that are not measured again")
    options = parser.parse_args()
    out = options.out or QUALITY / f"reference-points-{options.data}.json"
    kept = kept_records(out, options) if options.keep else []
    torch.set_num_threads(1)
    config = TrainConfig(
        data=options.data, data_dir=options.data_dir, seed=options.seed, eval_users=options.eval_users,
        metrics=",".join(FIGURES), select_by=FIGURES[0],
    )  # fmt: skip
    task = RunData.load(config).task
    records = []
    if not kept:
        popularity = {"name": "the most frequent items", **figures_of(task.popularity_figures, "popularity_")}
        records = [shown(record) for record in (popularity, *walked(task))]
    for name in options.model or (() if kept else WITHOUT_RECBOLE):
        tried = []
        for settings in GRIDS[name].settings():
            model = GRIDS[name].train(settings, task, options.seed)
            figure = task.validation(model).figures[f"full_{FIGURES[0]}"]
            print(f"{name} {settings}: validation {FIGURES[0]} {figure:.4f}", flush=True)
            tried.append((figure, settings, model))
        _, settings, model = max(tried, key=lambda each: each[0])
        records.append(shown({"name": name, "settings": settings, **figures_of(task.evaluate(model))}))
    runs = {Path(run).name: run for run in options.run}
    records += [shown({"name": name, **figures_of(task.evaluate(load_run(run)))}) for name, run in runs.items()]
    names = {record["name"] for record in records}
    records = [record for record in kept if record["name"] not in names] + records
    about = {**environment(), "implicit": version_of("implicit"), "recbole": version_of("recbole")}
    out.write_text(
        json.dumps(
            {
                "environment": about,
                "options": {**vars(options), "run": list(runs), "out": out.name, "data_dir": None},
                "runs": records,
            },
            indent=1,
        )
        + "\n"
    )
    print(out)


if __name__ == "__main__":
    main()
