"""Recommender models in plain PyTorch over any embedding: their tables come from outside.

A model keeps its tables as submodules under the paths that its task names (`user`, `fields.city`); all else is its own.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from mgqe.recsys.models.gmf import GMF

if TYPE_CHECKING:
    from mgqe.recsys.config import TrainConfig

__all__ = ["GMF", "MODELS", "ModelInfo", "build_model", "choose_model"]


@dataclass(frozen=True)
class ModelInfo:
    """A model: the task that it is for, the module that has its `build(config, tables)`, a line for --help."""

    task: str
    module: str
    summary: str


MODELS = {
    "gmf": ModelInfo("ranking", "mgqe.recsys.models.gmf", "generalised matrix factorisation (He et al. 2017)"),
    "neumf": ModelInfo("ranking", "mgqe.recsys.models.neumf", "neural matrix factorisation (He et al. 2017)"),
    "sasrec": ModelInfo("sequential", "mgqe.recsys.models.sasrec", "causal self-attention (Kang and McAuley 2018)"),
    "wide_deep": ModelInfo("ctr", "mgqe.recsys.models.wide_deep", "a linear part and a network (Cheng et al. 2016)"),
    "deepfm": ModelInfo("ctr", "mgqe.recsys.models.deepfm", "factorisation machine and network (Guo et al. 2017)"),
}


def build_model(config: TrainConfig, tables: Mapping[str, nn.Module]) -> Any:
    """The model that `config` names over `tables` (path -> embedding); needs no data."""
    module = importlib.import_module(MODELS[config.model].module)
    return module.build(config, tables)


def choose_model(task: str | None, model: str | None) -> tuple[str, str]:
    """(task, model), where None stands for what the other one implies; ValueError for unknown or unfitting names."""
    tasks = list(dict.fromkeys(info.task for info in MODELS.values()))
    for what, name, known in (("task", task, tasks), ("model", model, list(MODELS))):
        if name is not None and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"no {what} {name!r}{hint}: expected --{what} {', '.join(known)}")
    model = model or next(name for name, info in MODELS.items() if info.task == (task or "ranking"))
    if task not in (None, MODELS[model].task):
        fitting = ", ".join(name for name, info in MODELS.items() if info.task == task)
        raise ValueError(f"--model {model} is for --task {MODELS[model].task}, not {task}, which has {fitting}")
    return MODELS[model].task, model
