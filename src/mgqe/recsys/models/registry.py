"""The models by name. They are built from their embedding tables, so that any embedding can be used.

A model keeps its tables as submodules under the paths that its task names (`user`, `fields.city`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mgqe.checks.names import did_you_mean
from mgqe.recsys.models import dcn_v2, deepfm, gmf, mf, neumf, sasrec, wide_deep
from mgqe.recsys.models.settings import ModelSettings


@dataclass(frozen=True)
class ModelInfo:
    """A model.

    task: the task that it is for. tables: path of a submodule -> the field of that table; None: it depends on the data.
    build: makes the model from a run's settings and its tables. summary: one line for --help.
    """

    task: str
    build: Callable[[ModelSettings, Mapping[str, nn.Module]], nn.Module]
    summary: str
    tables: Mapping[str, str] | None = None


MODELS = {
    "gmf": ModelInfo("ranking", gmf.build, "generalised matrix factorisation (He et al. 2017)", mf.TABLES),
    "mf": ModelInfo("ranking", mf.build, "matrix factorisation, by BPR (Rendle et al. 2009) or a softmax", mf.TABLES),
    # The tables are those of matrix factorisation once they are trained: see run.py.
    "lightgcn": ModelInfo("ranking", mf.build, "rows propagated over the graph (He et al. 2020)", mf.TABLES),
    "neumf": ModelInfo("ranking", neumf.build, "neural matrix factorisation (He et al. 2017)", neumf.TABLES),
    "sasrec": ModelInfo("sequential", sasrec.build, "causal self-attention (Kang and McAuley 2018)"),
    "wide_deep": ModelInfo("ctr", wide_deep.build, "a linear part and a network (Cheng et al. 2016)"),
    "deepfm": ModelInfo("ctr", deepfm.build, "factorisation machine and network (Guo et al. 2017)"),
    "dcn_v2": ModelInfo("ctr", dcn_v2.build, "crosses of all features and a network (Wang et al. 2021)"),
}


def build_model(config: ModelSettings, tables: Mapping[str, nn.Module]) -> Any:
    """The model that `config` names over `tables` (path -> embedding); needs no data."""
    return MODELS[config.model].build(config, tables)


def choose_model(task: str | None, model: str | None) -> tuple[str, str]:
    """(task, model); None is replaced by what the other one implies. ValueError for unknown or incompatible names."""
    tasks = list(dict.fromkeys(info.task for info in MODELS.values()))
    for what, name, known in (("task", task, tasks), ("model", model, list(MODELS))):
        if name is not None and name not in known:
            raise ValueError(f"no {what} {name!r}{did_you_mean(name, known)}: expected --{what} {', '.join(known)}")
    model = model or next(name for name, info in MODELS.items() if info.task == (task or "ranking"))
    if task not in (None, MODELS[model].task):
        fitting = ", ".join(name for name, info in MODELS.items() if info.task == task)
        raise ValueError(f"--model {model} is for --task {MODELS[model].task}, not {task}, which has {fitting}")
    return MODELS[model].task, model
