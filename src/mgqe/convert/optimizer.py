"""extend_optimizer: add codebooks to an optimiser that has the embeddings' weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mgqe.nn.quantized import QuantizedEmbedding

# torch's optimisers that take no sparse gradients. Whether others take them is not checked.
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
    """Add to an optimiser the codebooks of the layers whose rows it has.

    ``compress_`` keeps the rows' parameters, so that their groups, hyperparameters and moments stay. For each group
    with rows, their codebooks get a group of their own with the same hyperparameters, but without weight decay, since
    codebooks follow the rows. Learning-rate schedulers count groups: make them afterwards.

    Args:
        optimizer: made before or after ``compress_``.
        model: the compressed model.
        settings: hyperparameters for the codebooks that differ from the rows', such as ``lr``.

    Returns:
        how many parameters were added; 0 when called again.

    Raises:
        ValueError: the model has no quantised layer, or the optimiser has the rows of none; a layer's gradients are
            sparse and the optimiser takes only dense ones, or the other way round. The message names the module path.
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, QuantizedEmbedding)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no quantised layer: call mgqe.compress_(model) first")
    for path, layer in layers.items():
        _check_gradients(path, layer, optimizer)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    if not any(id(layer.raw_weight) in group_of for layer in layers.values()):
        raise ValueError(
            f"the optimiser holds the rows of none of {', '.join(layers)}: it was made for another model, "
            "or before the rows were replaced"
        )
    added = 0
    for group in list(optimizer.param_groups):
        layers_in_group = [layer for layer in layers.values() if group_of.get(id(layer.raw_weight)) is group]
        new = [p for layer in layers_in_group for p in layer.quantizer.parameters() if id(p) not in group_of]
        if new:
            hyperparameters = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            if "weight_decay" in hyperparameters:
                hyperparameters["weight_decay"] = 0.0
            has_names = "param_names" in group
            names = {id(p): name for name, p in model.named_parameters()} if has_names else {}
            parameters: list[Any] = [(names[id(p)], p) for p in new] if has_names else new
            optimizer.add_param_group({**hyperparameters, **settings, "params": parameters})
            added += len(new)
    return added


def _check_gradients(path: str, layer: QuantizedEmbedding, optimizer: torch.optim.Optimizer) -> None:
    name = type(optimizer).__name__
    if layer.sparse and name in _DENSE_ONLY and type(optimizer).__module__.startswith("torch.optim"):
        raise ValueError(
            f"{path}: its gradients are sparse (sparse=True), which {name} does not take: use torch.optim.SparseAdam, "
            "SGD or Adagrad for it, or set sparse=False on the embedding"
        )
    has_rows = any(p is layer.raw_weight for group in optimizer.param_groups for p in group["params"])
    if has_rows and not layer.sparse and isinstance(optimizer, torch.optim.SparseAdam):
        raise ValueError(
            f"{path}: its gradients are dense, which SparseAdam does not take: set sparse=True on the embedding, "
            "or use Adam"
        )
