"""The methods of embedding that have names, and classes of one's own by theirs, `module.Class`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from mgqe import baselines
from mgqe.checks.names import did_you_mean
from mgqe.nn.embedding import DPQEmbedding, MGQEmbedding

NEVER = 2**62  # warm-up steps of a layer whose warm-up the training loop ends


@dataclass(frozen=True)
class Method:
    """A method of embedding.

    layer: the class of the embedding. short: short names of its keywords. summary: one line for --help. fixed: keywords
    that a description cannot set.
    kind: `trained`: trained once, as it is. `post`: trained as a full table and compressed at the end. `quantised`:
    trained as a full table for a warm-up, and then through its codes.
    narrows: a budget chooses the dimensions of all tables, and no keywords of each.
    """

    layer: type[nn.Module]
    kind: Literal["trained", "post", "quantised"]
    summary: str
    short: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    narrows: bool = False

    @property
    def settles(self) -> bool:
        """Whether a budget chooses options before training, which a description could have had, too."""
        return self.narrows or hasattr(self.layer, "within")


_CODES = {"D": "num_subspaces", "K": "num_centroids", "centroids": "centroid_dtype"}
_NO_WARM_UP_OF_ITS_OWN = {"warmup_steps": NEVER}
METHODS: dict[str, Method] = {
    "full": Method(
        baselines.FullEmbedding,
        "trained",
        "a full table; full:d=16 is one with 16 dimensions, full:budget=10%,stored=float16 one with as many as fit",
        {"stored": "stored_dtype"},
        narrows=True,
    ),
    "mgqe": Method(
        MGQEmbedding,
        "quantised",
        "codes, more centroids for frequent ids: mgqe:D=32,K=64/16,centroids=int8 or mgqe:budget=5%",
        _CODES,
        _NO_WARM_UP_OF_ITS_OWN,
    ),
    "dpq": Method(DPQEmbedding, "quantised", "codes, all ids alike: dpq:D=32,K=64", _CODES, _NO_WARM_UP_OF_ITS_OWN),
    "pq": Method(baselines.PQEmbedding, "post", "codes of a trained full table: pq:D=32,K=64 or pq:budget=5%", _CODES),
    "scalar": Method(
        baselines.ScalarQuantizedEmbedding,
        "post",
        "a trained full table, b bits per value: scalar:bits=4 or scalar:budget=10%",
    ),
    "lowrank": Method(
        baselines.LowRankEmbedding,
        "trained",
        "N x r times r x d: lowrank:r=8,stored=float16 or lowrank:budget=10%",
        {"r": "rank", "stored": "stored_dtype"},
    ),
    "svd": Method(
        baselines.SVDEmbedding,
        "post",
        "a trained full table, cut to rank r: svd:r=8,stored=float16 or svd:budget=10%",
        {"r": "rank", "stored": "stored_dtype"},
    ),
    "hash": Method(
        baselines.HashEmbedding,
        "trained",
        "ids share rows: hash:buckets=500,hashes=2 or hash:budget=10%",
        {"buckets": "num_buckets", "hashes": "num_hashes"},
    ),
    "qr": Method(
        baselines.QREmbedding,
        "trained",
        "quotient and remainder: qr:remainders=64,operation=mult or qr:budget=10%",
        {"remainders": "num_remainders"},
    ),
    "recjpq": Method(
        baselines.RecJPQEmbedding,
        "trained",
        "fixed codes from an SVD of who took what: recjpq:D=16,K=256,centroids=int8 or recjpq:budget=10%",
        {**_CODES, "factors": "num_factors"},
    ),
    "cce": Method(
        baselines.CCEmbedding,
        "trained",
        "shared rows, clustered after the first epochs: cce:columns=16,K=64 or cce:budget=10%",
        {"columns": "num_columns", "K": "num_centroids"},
    ),
    "additive": Method(
        baselines.AdditiveEmbedding,
        "quantised",
        "sums of codewords, trained like dpq: additive:M=8,K=32,centroids=int8 or additive:budget=10%",
        {"M": "num_codebooks", "K": "num_centroids", "centroids": "centroid_dtype"},
    ),
}
# What `pq` is with a budget: DPQ's plan of the trained rows, and no training through its codes.
PLANNED_PQ = replace(METHODS["dpq"], summary="dpq with a budget, at the end of training")


def method_named(name: str) -> Method:
    """The method of a name, or that of the class `module.Class`, whose module must be imported.

    A run's folder names such a class, too, and reading one must not import what somebody else has written there.
    ValueError says what is wrong with `name` and what could be meant.
    """
    if name in METHODS:
        return METHODS[name]
    module, dot, class_name = name.rpartition(".")
    if not dot:
        known = f"one of {', '.join(METHODS)}, or module.Class for a class of your own"
        raise ValueError(f"no embedding {name!r}{did_you_mean(name, METHODS)}: expected {known}")
    if module not in sys.modules:
        raise ValueError(f"embedding {name!r}: {module} is not imported: write `import {module}` before this")
    layer = getattr(sys.modules[module], class_name, None)
    if not (inspect.isclass(layer) and issubclass(layer, nn.Module) and hasattr(layer, "freeze")):
        raise ValueError(f"embedding {name!r}: expected a subclass of nn.Module with a freeze(), got {layer!r}")
    return Method(layer, "trained", "")


def import_methods(descriptions: Iterable[str]) -> None:
    """Import the modules of classes that descriptions name, from the working folder or from where Python looks.

    ValueError if there is no such module.
    """
    for module in own_modules(descriptions):
        if os.getcwd() not in sys.path:  # a command's path begins with the folder of the command instead
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"no module {error.name!r} for the embedding of {module}: expected {error.name}.py in the working "
                "folder, or an installed package"
            ) from error


def own_modules(descriptions: Iterable[str]) -> tuple[str, ...]:
    """The modules of the descriptions whose name is module.Class, each once."""
    names = (description.partition("@")[0].partition(":")[0].strip() for description in descriptions)
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name and name not in METHODS))
