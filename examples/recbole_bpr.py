"""A RecBole model, trained and judged by RecBole itself, before and after its embeddings are compressed.

RecBole 1.2.1 wants older packages than the rest of the world, so give it an environment of its own:

    python3 -m venv recbole-env
    recbole-env/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    recbole-env/bin/pip install "setuptools<81" "numpy<2" "pandas<2.2" "scipy<1.13" recbole==1.2.1 .
    recbole-env/bin/python examples/recbole_bpr.py --data-dir DATA             # holds ml-100k/ml-100k.inter
    recbole-env/bin/python examples/recbole_bpr.py --data-dir DATA --model SASRec

RecBole asks a model for its loss by `calculate_loss`; `add_quantization_loss` puts the one further term there, and
nothing of RecBole is touched. `saved=False` keeps its checkpoints out: it reads them in a way that torch 2.6 and later
refuse. The best epoch is kept in memory instead.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from before_after import keep, show
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

import mgqe

SETTINGS = {
    "embedding_size": 64,
    "metrics": ["Recall", "NDCG", "Hit"],
    "topk": 10,
    "valid_metric": "NDCG@10",
    "stopping_step": 10,
    "show_progress": False,
    "use_gpu": False,
    "gpu_id": "",
    "state": "WARNING",
}
OF_A_MODEL = {
    "SASRec": {
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},  # RecBole's default leaves the time out
        "train_neg_sample_args": None,
        "hidden_size": 64,
        "max_seq_length": 50,
    }
}


def add_quantization_loss(model: Any) -> None:
    """RecBole's trainer minimises what ``model.calculate_loss`` returns; the model's class is not changed."""
    task_loss = model.calculate_loss
    model.calculate_loss = lambda interaction: task_loss(interaction) + mgqe.quantization_loss(model)


def fit(config: Any, model: Any, train: Any, valid: Any) -> Any:
    """RecBole's own trainer; the model is left as it was after its best epoch."""
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    best: dict[str, Any] = {"score": float("-inf")}

    def remember(epoch: int, score: float) -> None:
        if score > best["score"]:
            best.update(score=score, state=copy.deepcopy(model.state_dict()))

    trainer.fit(train, valid, saved=False, show_progress=False, callback_fn=remember)
    model.load_state_dict(best["state"])
    return trainer


def run(options: argparse.Namespace) -> None:
    chosen = {**SETTINGS, **OF_A_MODEL.get(options.model, {}), "data_path": str(options.data_dir.resolve())}
    chosen.update(epochs=options.epochs, seed=options.seed, reproducibility=True, checkpoint_dir="saved")
    config = Config(model=options.model, dataset=options.dataset, config_dict=chosen)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    model = get_model(config["model"])(config, train.dataset)
    rows = []

    def judge(name: str, trainer: Any, nbytes: int) -> dict[str, float]:
        quality = dict(trainer.evaluate(test, load_best_model=False, show_progress=False))
        rows.append((name, nbytes, {key: float(value) for key, value in quality.items()}))
        return quality

    trainer = fit(config, model, train, valid)
    full = sum(m.weight.nbytes for m in model.modules() if isinstance(m, torch.nn.Embedding))
    judge(f"{options.model}, trained", trainer, full)

    # The three calls of mgqe. RecBole numbers the ids, and 0 is its padding.
    seen, sizes = train.dataset.inter_feat, {"user": dataset.user_num, "item": dataset.item_num}
    ids = {"user_embedding": ("user", config["USER_ID_FIELD"]), "item_embedding": ("item", config["ITEM_ID_FIELD"])}
    counts = {
        path: mgqe.count_ids(seen[field], sizes[kind]) for path, (kind, field) in ids.items() if hasattr(model, path)
    }
    shape = mgqe.CompressConfig(num_centroids=(128, 64), centroid_dtype="int8")
    report = mgqe.compress_(model, shape, counts=counts, init="from_weight")
    print(report)
    judge("right after compress_", trainer, report.bytes_after)
    add_quantization_loss(model)
    config["epochs"], config["learning_rate"] = options.fine_tune, config["learning_rate"] * options.fine_tune_rate
    trainer = fit(config, model, train, valid)  # a new trainer, whose optimiser has the codebooks
    tuned = judge("fine-tuned through the codes", trainer, report.bytes_after)
    del model.calculate_loss  # the class's own again
    tables = mgqe.freeze_(model)
    written = sum(mgqe.save(table, "table") for table in dict.fromkeys(tables.values()))
    left = sum(row.bytes_before for row in report.rows if not row.compressed)
    frozen = judge("frozen", trainer, written + left)  # from the files
    assert frozen == tuned, "what was trained is what is served"

    mgqe.save_model(model, "model")
    fresh = get_model(config["model"])(config, train.dataset)
    mgqe.load_model(fresh, "model")  # RecBole's class again, without a pickle
    loaded = get_trainer(config["MODEL_TYPE"], config["model"])(config, _trainable(fresh)).evaluate(
        test, load_best_model=False, show_progress=False
    )
    assert loaded == frozen, "the loaded model ranks as the frozen one"
    show(rows)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    keep(
        options.out,
        ["recbole", "numpy", "pandas"],
        {k: settings[k] for k in settings if k not in ("out", "data_dir")},
        rows,
        report,
    )


def _trainable(model: Any) -> Any:
    """RecBole's trainer makes an optimiser, which needs a parameter; a model that has only frozen tables has none."""
    if next(model.parameters(), None) is None:
        model.register_parameter("unused", torch.nn.Parameter(torch.zeros(())))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that holds NAME/NAME.inter")
    parser.add_argument("--dataset", default="ml-100k", help="NAME")
    parser.add_argument("--model", default="BPR", help="a RecBole model with user_embedding and/or item_embedding")
    parser.add_argument("--epochs", type=int, default=100, help="at most; RecBole stops by NDCG@10 on validation")
    parser.add_argument("--fine-tune", type=int, default=10, help="epochs through the codes, at most")
    parser.add_argument("--fine-tune-rate", type=float, default=0.3, help="times the learning rate of training")
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--out", type=Path, help="JSON to write to")
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    logging.disable(logging.WARNING)
    options.out = options.out and options.out.resolve()
    options.data_dir = options.data_dir.resolve()
    with tempfile.TemporaryDirectory() as folder:  # RecBole writes logs into the current folder
        os.chdir(folder)
        try:
            run(options)
        finally:
            os.chdir(Path(folder).parent)


if __name__ == "__main__":
    main()
