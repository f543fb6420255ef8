"""freeze_: swap the quantised layers of a model for the frozen tables they train, in place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mgqe.checks.inference import outside_inference
from mgqe.checks.names import did_you_mean, errors_about
from mgqe.convert.find import Slot, walk_modules
from mgqe.convert.fold import Fold, plan_fold
from mgqe.convert.pretrained import adopt
from mgqe.convert.tied import tie, ties_of
from mgqe.nn.bag import MGQEmbeddingBag
from mgqe.nn.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.table.base import FrozenTable


@outside_inference
def freeze_(model: nn.Module, fold: Mapping[str, str] | None = None) -> dict[str, FrozenTable]:
    """Swap the model's quantised layers for :class:`CompactEmbedding` and :class:`CompactEmbeddingBag`, in place.

    A layer at several paths stays one module. Modules tied to a layer read the frozen table's ``weight`` and no longer
    hold the rows. The model is left in eval mode. Layers that are still in their warm-up are quantised as they are.

    Args:
        model: a model with layers that ``compress_`` made, or with MGQEmbedding, DPQEmbedding or their Bag forms.
        fold: path of a quantised layer -> path of the nn.Linear that is the only reader of its vectors: it takes over
            the table's matrix, so that look-ups are faster (:func:`mgqe.fold_matrix`, which takes columns as well).

    Returns:
        path -> table, for every path of a shared layer.

    Raises:
        ValueError: there is no quantised layer in the model, or the model itself is one; a layer's rows or centroids
            are NaN; a matrix that cannot be folded. The message names the module path. The model is then as it was.

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
    paths = {path: layer for layer, places in locations.items() for path, _ in places}
    targets = {path: _target(model, path, linear, paths, locations) for path, linear in (fold or {}).items()}
    replacements = {layer: _frozen(layer, places[0][0]) for layer, places in locations.items()}
    folds: list[Fold] = []
    for path, linear in targets.items():
        with errors_about(path):
            if (planned := plan_fold(replacements[paths[path]], linear)) is not None:
                replacements[paths[path]] = planned.layer
                folds.append(planned)
    for each in folds:
        each.apply()
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


def _target(
    model: nn.Module,
    path: str,
    linear: str,
    paths: Mapping[str, QuantizedEmbedding],
    locations: Mapping[QuantizedEmbedding, list[tuple[str, Slot]]],
) -> nn.Module:
    """The linear layer that is to take a table's matrix over; ValueError where others may read the table, too."""
    if path not in paths:
        raise ValueError(f"fold names {path!r}{did_you_mean(path, paths)}, where the model has no quantised layer")
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if linear not in modules:
        raise ValueError(f"fold of {path!r} names {linear!r}{did_you_mean(linear, modules)}, where there is no module")
    layer, target = paths[path], modules[linear]
    tied = any(held is layer for module in modules.values() for held in ties_of(module).values())
    if tied or len(locations[layer]) > 1 or sum(module is target for module in modules.values()) > 1:
        raise ValueError(
            f"{path}: the layer or {linear!r} is shared, and others would read coordinates: leave it out of fold"
        )
    if isinstance(target, nn.Linear) and target.in_features != layer.embedding_dim:
        raise ValueError(
            f"{path}: {linear!r} takes {target.in_features} numbers, not the {layer.embedding_dim} of the vectors "
            "alone: freeze first, then use mgqe.fold_matrix with start="
        )
    return target


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
