"""Models of RecBole on a split of `mgqe train`, by RecBole's own trainer."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgqe.recsys.models.mf import MF
from mgqe.recsys.tasks.ranking import RankingTask

NAME = "split"
SETTINGS = {
    "benchmark_filename": ["train", "valid", "test"],
    "eval_args": {"group_by": "user", "order": "RO", "mode": "full"},
    "metrics": ["Recall", "NDCG"],
    "topk": 20,
    "valid_metric": "Recall@20",
    "embedding_size": 64,
    "stopping_step": 5,
    "eval_step": 5,
    "eval_batch_size": 1_000_000,
    "show_progress": False,
    "use_gpu": False,
    "gpu_id": "",
    "state": "WARNING",
}


def recbole_factors(model: str, settings: dict[str, Any], task: RankingTask, seed: int) -> MF:
    """RecBole's model of that name, trained on the task's training part and stopped by its validation part.

    Returns matrix factorisation with the vectors that RecBole multiplies: the propagated ones of LightGCN.
    """
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    with tempfile.TemporaryDirectory() as folder:
        _write(task, Path(folder) / NAME)
        chosen = {**SETTINGS, **settings, "data_path": folder, "checkpoint_dir": folder, "seed": seed}
        before = os.getcwd()
        os.chdir(folder)  # where RecBole leaves its logs
        try:
            config = Config(model=model, dataset=NAME, config_dict=chosen)
            init_seed(config["seed"], True)
            dataset = create_dataset(config)
            train, valid, _ = data_preparation(config, dataset)
            recommender = get_model(model)(config, train.dataset)
            trainer = get_trainer(config["MODEL_TYPE"], model)(config, recommender)
            best: dict[str, Any] = {"score": float("-inf")}

            def remember(epoch: int, score: float) -> None:
                if score > best["score"]:
                    best.update(score=score, state=copy.deepcopy(recommender.state_dict()))

            # saved=False: its checkpoints are read in a way that torch 2.6 and later refuse.
            trainer.fit(train, valid, saved=False, show_progress=False, callback_fn=remember)
        finally:
            os.chdir(before)
    recommender.load_state_dict(best["state"])
    users, items = _vectors(recommender)
    sizes = {"user_id": (users, task.split.num_users), "item_id": (items, task.split.num_items)}
    tables = [_in_order(dataset.field2id_token[field], table, n) for field, (table, n) in sizes.items()]
    return MF(*(nn.Embedding.from_pretrained(table) for table in tables)).eval()


def _write(task: RankingTask, folder: Path) -> None:
    """The three parts as RecBole reads them; every id comes in some part."""
    folder.mkdir()
    parts = {
        "train": (task.split.train_users, task.split.train_items),
        "valid": (task.valid.users[task.valid.owners], task.valid.items),
        "test": (task.test.users[task.test.owners], task.test.items),
    }
    for name, (users, items) in parts.items():
        lines = [f"{user}\t{item}\n" for user, item in zip(users.tolist(), items.tolist(), strict=True)]
        (folder / f"{NAME}.{name}.inter").write_text("user_id:token\titem_id:token\n" + "".join(lines))


@torch.no_grad()
def _vectors(model: Any) -> tuple[Tensor, Tensor]:
    """Users and items as RecBole numbers them, its padding in front."""
    if hasattr(model, "norm_adj_matrix"):
        users, items = model.forward()
        return users, items
    return model.user_embedding.weight, model.item_embedding.weight


def _in_order(tokens: Any, table: Tensor, num_rows: int) -> Tensor:
    """The rows of a table as this project numbers them; zeros for ids that RecBole has not."""
    rows = torch.zeros(num_rows, table.shape[1])
    for at, token in enumerate(tokens):
        if token != "[PAD]":
            rows[int(token)] = table[at].detach()
    return rows
