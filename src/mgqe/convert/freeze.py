"""freeze_: swap the quantised layers of a model for the frozen tables they train, in place."""

from __future__ import annotations

import torch
from torch import nn

from mgqe.checks.inference import outside_inference
from mgqe.checks.names import errors_about
from mgqe.convert.find import Slot, walk_modules
from mgqe.convert.pretrained import adopt
from mgqe.convert.tied import tie, ties_of
from mgqe.nn.bag import MGQEmbeddingBag
from mgqe.nn.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.table.base import FrozenTable


@outside_inference
def freeze_(model: nn.Module) -> dict[str, FrozenTable]:
    """Swap the model's quantised layers for :class:`CompactEmbedding` and :class:`CompactEmbeddingBag`, in place.

    A layer at several paths stays one module. Modules tied to a layer read the frozen table's ``weight`` and no longer
    hold the rows. The model is left in eval mode. Layers that are still in their warm-up are quantised as they are.

    Args:
        model: a model with layers that ``compress_`` made, or with MGQEmbedding, DPQEmbedding or their Bag forms.

    Returns:
        path -> table, for every path of a shared layer.

    Raises:
        ValueError: there is no quantised layer in the model, or the model itself is one; a layer's rows or centroids
            are NaN. The message names the module path. The model is then as it was.

    Example:
        >>> import torch, mgqe
        >>> model = torch.nn.Sequential(mgqe.DPQEmbedding(1000, 16), torch.nn.Linear(16, 1))
        >>> tables = mgqe.freeze_(model)
        >>> list(tables), type(model[0]).__name__
        (['0'], 'CompactEmbedding')
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model, got {type(model).__name__}: pass an instance of nn.Module")
    locations: dict[QuantizedEmbedding, list[tuple[str, Slot]]] = {}
    for path, module, slot in walk_modules(model):
        if isinstance(module, QuantizedEmbedding):
            if slot is None:
                raise ValueError(f"the model itself is an {type(module).__name__}: use its freeze()")
            locations.setdefault(module, []).append((path, slot))
    if not locations:
        frozen = [path for path, module in model.named_modules() if isinstance(module, CompactEmbedding)]
        hint = f" (frozen already: {', '.join(frozen)})" if frozen else ": call mgqe.compress_(model) first"
        raise ValueError(f"{type(model).__name__} has no quantised layer to freeze{hint}")
    replacements = {layer: _frozen(layer, paths[0][0]) for layer, paths in locations.items()}
    for layer, compact in replacements.items():
        for _, (parent, name) in locations[layer]:
            parent._modules[name] = compact
    for module in model.modules():
        for name, tied_layer in ties_of(module).items():
            if isinstance(tied_layer, QuantizedEmbedding) and tied_layer in replacements:
                module._parameters.pop(name, None)
                tie(module, name, replacements[tied_layer])
    adopt(model)
    model.eval()
    return {path: compact.table for layer, compact in replacements.items() for path, _ in locations[layer]}


def _frozen(layer: QuantizedEmbedding, path: str) -> CompactEmbedding:
    with errors_about(path):
        table = layer.freeze()
    dtype, padding = layer.vector_dtype, layer.padding_idx
    module: CompactEmbedding
    if isinstance(layer, MGQEmbeddingBag):
        module = CompactEmbeddingBag(table, padding, dtype, path, layer.mode, layer.include_last_offset)
    else:
        module = CompactEmbedding(table, padding, dtype, path)
    device = layer.raw_weight.device
    return module if device == torch.device("cpu") else module.to(device)
