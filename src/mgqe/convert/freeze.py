"""freeze_: swap the quantised layers of a model for the frozen tables they train, in place."""

from __future__ import annotations

import torch
from torch import nn

from mgqe.checks.inference import outside_inference
from mgqe.convert.find import Place, places
from mgqe.convert.tied import tie, ties_of
from mgqe.nn.bag import MGQEmbeddingBag
from mgqe.nn.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.table.base import FrozenTable


@outside_inference
def freeze_(model: nn.Module) -> dict[str, FrozenTable]:
    """Swap the model's quantised layers for :class:`CompactEmbedding` and :class:`CompactEmbeddingBag`, in place.

    A layer at several paths stays one module; modules tied to a layer read the frozen table's ``weight``, and their
    copy of the rows goes. The model is left in eval mode. Layers in their warm-up are quantised as they are.

    Args:
        model: one with layers that ``compress_`` put there, or with MGQEmbedding and its kin.

    Returns:
        path -> table, also for the other paths of a shared layer.

    Raises:
        ValueError: no quantised layer in the model, or the model itself is one; a layer's rows or centroids are NaN.
        The message names the module path. The model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model, got {type(model).__name__}: pass an instance of nn.Module")
    found: dict[QuantizedEmbedding, list[tuple[str, Place]]] = {}
    for path, module, place in places(model):
        if isinstance(module, QuantizedEmbedding):
            if place is None:
                raise ValueError(f"the model itself is an {type(module).__name__}: use its freeze()")
            found.setdefault(module, []).append((path, place))
    if not found:
        frozen = [path for path, module in model.named_modules() if isinstance(module, CompactEmbedding)]
        known = f" (frozen already: {', '.join(frozen)})" if frozen else ": call mgqe.compress_(model) first"
        raise ValueError(f"{type(model).__name__} has no quantised layer to freeze{known}")
    made = {layer: _frozen(layer, where[0][0]) for layer, where in found.items()}
    for layer, compact in made.items():
        for _, (parent, name) in found[layer]:
            parent._modules[name] = compact
    for module in model.modules():
        for name, tied_to in ties_of(module).items():
            if isinstance(tied_to, QuantizedEmbedding) and tied_to in made:
                module._parameters.pop(name, None)
                tie(module, name, made[tied_to])
    model.eval()
    return {path: compact.table for layer, compact in made.items() for path, _ in found[layer]}


def _frozen(layer: QuantizedEmbedding, path: str) -> CompactEmbedding:
    try:
        table = layer.freeze()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    dtype, padding = layer.vector_dtype, layer.padding_idx
    made: CompactEmbedding
    if isinstance(layer, MGQEmbeddingBag):
        made = CompactEmbeddingBag(table, padding, dtype, path, layer.mode, layer.include_last_offset)
    else:
        made = CompactEmbedding(table, padding, dtype, path)
    device = layer.raw_weight.device
    return made if device == torch.device("cpu") else made.to(device)
