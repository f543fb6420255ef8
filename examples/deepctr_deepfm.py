"""DeepFM of DeepCTR-Torch on Frappe, trained and judged by DeepCTR-Torch itself, before and after compression.

    python3 -m venv deepctr-env
    deepctr-env/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    deepctr-env/bin/pip install deepctr-torch==0.3.0 pandas requests .
    deepctr-env/bin/python examples/deepctr_deepfm.py --data-dir DATA --model-dir deepfm   # DATA holds frappe.csv

Rows of the file are positives, without their column cnt; two items that the user has never used are drawn as negatives
for each, in the same context. A tenth of the positives each, with their negatives, are for validation and test.

DeepCTR-Torch adds `model.aux_loss` to its loss, which it sums over a batch: a forward hook sets it, and nothing of the
package is touched.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from before_after import keep, show
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import DeepFM
from sklearn.metrics import log_loss, roc_auc_score

import mgqe

NEGATIVES = 2
Part = tuple[dict[str, np.ndarray], np.ndarray]


def read(path: Path, seed: int) -> tuple[dict[str, int], list[Part]]:
    """Vocabulary sizes and (columns, labels) of training, validation and test."""
    frame = pd.read_csv(path).drop(columns="cnt", errors="ignore")
    columns = {name: np.unique(frame[name], return_inverse=True)[1].reshape(-1) for name in frame}
    sizes = {name: int(values.max()) + 1 for name, values in columns.items()}
    draw = np.random.default_rng(seed)
    used = np.unique(columns["user"] * sizes["item"] + columns["item"])
    negatives = np.repeat(np.arange(len(frame)), NEGATIVES)
    items = draw.integers(sizes["item"], size=len(negatives))
    while len(known := np.flatnonzero(np.isin(columns["user"][negatives] * sizes["item"] + items, used))):
        items[known] = draw.integers(sizes["item"], size=len(known))
    every = np.concatenate([np.arange(len(frame)), negatives])
    values = {name: column[every] for name, column in columns.items()}
    values["item"] = np.concatenate([columns["item"], items])
    labels = (np.arange(len(every)) < len(frame)).astype(np.float32)
    tenth = draw.integers(10, size=len(frame))[every]
    parts = [tenth > 1, tenth == 0, tenth == 1]
    return sizes, [({name: column[part] for name, column in values.items()}, labels[part]) for part in parts]


def set_quantization_loss(model: Any, args: Any, output: torch.Tensor) -> None:
    """A forward hook. DeepCTR-Torch sums its loss over the batch, so this loss is multiplied by the batch's length."""
    model.aux_loss = len(output) * mgqe.quantization_loss(model)


def train(model: Any, data: Part, batch_size: int, epochs: int, rate: float) -> None:
    model.compile(torch.optim.Adam(model.parameters(), lr=rate), "binary_crossentropy")
    model.fit(dict(data[0]), data[1], batch_size=batch_size, epochs=epochs, verbose=0)


def judge(model: Any, data: Part) -> dict[str, float]:
    chances = model.predict(dict(data[0]), 4096).reshape(-1)
    return {"AUC": float(roc_auc_score(data[1], chances)), "log loss": float(log_loss(data[1], chances))}


def run(options: argparse.Namespace) -> None:
    sizes, (training, _, test) = read(options.data_dir / "frappe.csv", options.seed)
    features = [SparseFeat(name, size, embedding_dim=options.dim) for name, size in sizes.items()]

    def make() -> Any:
        return DeepFM(features, features, dnn_hidden_units=(128, 64), seed=options.seed)

    model = make()
    train(model, training, options.batch_size, options.epochs, options.rate)
    full = sum(m.weight.nbytes for m in model.modules() if isinstance(m, torch.nn.Embedding))
    rows = [("DeepFM, trained", full, judge(model, test))]
    # A fair reference: the full tables train for the same additional epochs.
    state = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, training, options.batch_size, options.fine_tune, options.rate * options.fine_tune_rate)
    rows.append(("the same, as many epochs as below", full, judge(model, test)))
    model.load_state_dict(state)

    positives = training[1] == 1  # negatives are no sign of a frequent item
    counts = {
        f"embedding_dict.{name}": mgqe.count_ids(torch.from_numpy(training[0][name][positives]), size)
        for name, size in sizes.items()
    }
    shape = mgqe.CompressConfig(num_centroids=(128, 64), centroid_dtype="int8")
    report = mgqe.compress_(model, shape, counts=counts, init="from_weight")
    print(report)
    rows.append(("right after compress_", report.bytes_after, judge(model, test)))
    hook = model.register_forward_hook(set_quantization_loss)
    train(model, training, options.batch_size, options.fine_tune, options.rate * options.fine_tune_rate)
    hook.remove()
    rows.append(("fine-tuned through the codes", report.bytes_after, tuned := judge(model, test)))
    tables = mgqe.freeze_(model)
    model.regularization_weight.clear()  # a list of the old rows, which would hold their memory
    frozen = judge(model, test)
    assert frozen == tuned, "what was trained is what is served"

    mgqe.save_model(model, options.model_dir)
    files = sum(file.stat().st_size for file in options.model_dir.glob("*.safetensors") if "dense" not in file.name)
    left = sum(row.bytes_before for row in report.rows if not row.compressed)
    assert files + left == report.bytes_after, (files, left, report.bytes_after, list(tables))
    rows.append(("frozen", files + left, frozen))
    loaded = mgqe.load_model(make(), options.model_dir)
    loaded.compile("adam", "binary_crossentropy")
    assert judge(loaded, test) == frozen, "the loaded model predicts as the frozen one"
    show(rows)
    settings = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
    keep(options.out, ["deepctr-torch", "pandas", "scikit-learn"], {"model": "DeepFM", **settings}, rows, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that holds frappe.csv")
    parser.add_argument("--model-dir", type=Path, required=True, help="where the frozen model goes")
    parser.add_argument("--dim", type=int, default=32, help="of the embeddings")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--fine-tune", type=int, default=1, help="epochs through the codes")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--fine-tune-rate", type=float, default=0.3, help="times that")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON to write to")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
