"""An optimiser that held the embeddings' weights takes the codebooks as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mgqe.nn.quantized import QuantizedEmbedding

# torch's own, by whether they take sparse gradients; others decide for themselves.
_DENSE_ONLY = (
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "Adadelta",
    "RMSprop",
    "Rprop",
    "ASGD",
    "LBFGS",
    "Adafactor",
)


def extend_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, **settings: Any) -> int:
    """Add to an optimiser the codebooks of the layers whose rows it holds.

    ``compress_`` leaves the rows the parameters that they were: their groups, hyperparameters and moments stay as
    they are. The codebooks of each such group get a group of their own with the same hyperparameters, but no weight
    decay, since they follow the rows. Learning-rate schedulers count groups: make them afterwards.

    Args:
        optimizer: made before ``compress_`` or after.
        model: the compressed model.
        settings: hyperparameters of the codebooks that differ, such as ``lr``.

    Returns:
        how many parameters were added; 0 the second time.

    Raises:
        ValueError: no quantised layer in the model, or none of them is in the optimiser; or a layer's gradients are
        sparse and the optimiser takes none, or the other way round. The message names the module path.
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, QuantizedEmbedding)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no quantised layer: call mgqe.compress_(model) first")
    for path, layer in layers.items():
        _check_gradients(path, layer, optimizer)
    held = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    if not any(id(layer.raw_weight) in held for layer in layers.values()):
        raise ValueError(
            f"the optimiser holds the rows of none of {', '.join(layers)}: it was made for another model, "
            "or before the rows were replaced"
        )
    added = 0
    for group in list(optimizer.param_groups):
        mine = [layer for layer in layers.values() if held.get(id(layer.raw_weight)) is group]
        new = [p for layer in mine for p in layer.quantizer.parameters() if id(p) not in held]
        if new:
            same = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            if "weight_decay" in same:
                same["weight_decay"] = 0.0
            named = "param_names" in group
            names = {id(p): name for name, p in model.named_parameters()} if named else {}
            parameters: list[Any] = [(names[id(p)], p) for p in new] if named else new
            optimizer.add_param_group({**same, **settings, "params": parameters})
            added += len(new)
    return added


def _check_gradients(path: str, layer: QuantizedEmbedding, optimizer: torch.optim.Optimizer) -> None:
    name = type(optimizer).__name__
    if layer.sparse and name in _DENSE_ONLY and type(optimizer).__module__.startswith("torch.optim"):
        raise ValueError(
            f"{path}: its gradients are sparse (sparse=True), which {name} does not take: use torch.optim.SparseAdam, "
            "SGD or Adagrad for it, or set sparse=False on the embedding"
        )
    if not layer.sparse and isinstance(optimizer, torch.optim.SparseAdam):
        mine = {id(layer.raw_weight)}
        if any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                f"{path}: its gradients are dense, which SparseAdam does not take: set sparse=True on the embedding, "
                "or use Adam"
            )
