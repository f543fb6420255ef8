"""RecBole's BPR, LightGCN or SASRec: trained, compressed to 15%, trained on through the codes, frozen.

pip install "setuptools<81" "numpy<2" "pandas<2.2" "scipy<1.13" recbole==1.2.1 mgqe
python examples/recbole_models.py LightGCN DATA/ml-100k    # a folder NAME that holds NAME.inter
"""

import sys
from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

import mgqe

name, folder, epochs = sys.argv[1], Path(sys.argv[2]), int((sys.argv[3:] or [30])[0])
sys.argv = sys.argv[:1]  # RecBole reads the command line, too
columns = ["user_id", "item_id", *(["timestamp"] if name == "SASRec" else [])]
settings = {"data_path": str(folder.parent), "load_col": {"inter": columns}, "state": "ERROR", "use_gpu": False}
settings |= {"train_neg_sample_args": None} if name == "SASRec" else {}
config = Config(model=name, dataset=folder.name, config_dict=settings)
init_seed(config["seed"], True)
train, valid, test = data_preparation(config, create_dataset(config))
model = get_model(name)(config, train.dataset)


def judge(title: str, trainer: Any) -> None:
    model.restore_user_e = model.restore_item_e = None  # LightGCN keeps the vectors of its last judgement
    print(f"{title}: NDCG@10", trainer.evaluate(test, load_best_model=False)["ndcg@10"])


def fit(passes: int) -> Any:
    config["epochs"] = passes
    trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)  # its optimiser has the parameters of now
    trainer.fit(train, saved=False, show_progress=False)
    return trainer


judge("trained", fit(epochs))
print(mgqe.compress_(model, mgqe.CompressConfig(budget="15%"), init="from_weight"))
task_loss = model.calculate_loss
model.calculate_loss = lambda interaction: task_loss(interaction) + mgqe.quantization_loss(model)
judge("through the codes", trainer := fit(max(1, epochs // 5)))
mgqe.freeze_(model)
judge("frozen", trainer)
print(mgqe.save_model(model, f"{name}-frozen"), "bytes in all")
