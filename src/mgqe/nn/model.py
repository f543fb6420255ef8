"""Functions over a whole model: the loss to add, the end of the warm-up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mgqe.nn.codebook_layer import CodebookLayer
from mgqe.nn.context.decorators import outside_graphs
from mgqe.nn.context.one_graph import in_one_graph, passes_in_one_graph
from mgqe.nn.late_ids import LateIds
from mgqe.nn.quantized import QuantizedEmbedding


def quantized_layers(model: nn.Module) -> list[QuantizedEmbedding]:
    """The quantised embedding layers of a model, each once."""
    return [layer for layer in _layers(model) if isinstance(layer, QuantizedEmbedding)]


def _layers(model: nn.Module) -> list[CodebookLayer]:
    seen: dict[nn.Module, None] = {}
    waiting = [model]
    while waiting:  # model.modules() builds a name for every module, which a training step would feel
        module = waiting.pop()
        if module not in seen:
            seen[module] = None
            waiting.extend(reversed([child for child in module._modules.values() if child is not None]))
    return [module for module in seen if isinstance(module, CodebookLayer)]


def quantization_loss(model: nn.Module) -> Tensor:
    """The sum of the layers' auxiliary losses of this step's forward passes: add it to the task's loss.

    For VQ each layer's loss is mean ||c - sg(q)||^2 + beta * mean ||q - sg(c)||^2 (DPQ, arXiv 1908.09756). Zero in
    the warm-up, for SX, and for models without such layers.

    Each training pass of each layer counts once, in the step in which it was made: a layer that was called several
    times adds every call, one that the step did not look up adds nothing. Called again before the next training
    pass, this returns the same sum; after the backward pass through it, or after the optimiser's step, it is zero.
    So read it before ``backward()``, also to log it; under ``torch.no_grad()`` it is read without being used up, also
    between passes of one step.

    Returns:
        scalar tensor, float32, on the layers' device.

    Example:
        >>> import torch, mgqe
        >>> model = mgqe.DPQEmbedding(100, 8)
        >>> loss = model(torch.arange(10)).square().mean() + mgqe.quantization_loss(model)
        >>> loss.backward()
    """
    return _loss_in_graph(model) if in_one_graph() else _pending_loss(model)


def _loss_in_graph(model: nn.Module) -> Tensor:
    layers = [module for module in model.modules() if isinstance(module, CodebookLayer)]
    losses = [loss.float() for layer in layers for loss in layer.losses.in_graph]
    for layer in layers:
        layer.losses.in_graph.clear()
    return torch.stack(losses).sum() if losses else next(model.parameters()).new_zeros((), dtype=torch.float32)


@outside_graphs
def _pending_loss(model: nn.Module) -> Tensor:
    layers = _layers(model)
    latest = max((layer.latest_pass for layer in layers), default=0)
    ended = max((layer.ended_pass for layer in layers), default=0)
    losses = [loss for layer in layers if (loss := layer.auxiliary_loss(latest, ended)) is not None]
    if len(losses) == 1:
        return losses[0].float()
    if losses:
        return torch.stack([loss.float().to(losses[0].device) for loss in losses]).sum()
    parameter = next(model.parameters(), None)
    return torch.zeros((), dtype=torch.float32, device=None if parameter is None else parameter.device)


@contextmanager
def one_graph(model: nn.Module) -> Iterator[None]:
    """Within, a training step of the model is one graph: for ``torch.compile(fullgraph=True)`` and CUDA graphs.

    A pass is neither counted nor followed by anything: centroids that no id chooses revive when ``layer.revive()`` is
    called. :func:`quantization_loss` belongs into the graph, after the passes. To be entered around every call of what
    is compiled or captured.

    Raises:
        RuntimeError: a layer that is still in its warm-up (:func:`start_quantizing` ends it), or whose rows are kept in
            another way than "float32" or "bfloat16".

    Example:
        >>> import torch, mgqe
        >>> model = mgqe.DPQEmbedding(100, 8)
        >>> _ = mgqe.start_quantizing(model)
        >>> def loss_of(ids):
        ...     return model(ids).square().mean() + mgqe.quantization_loss(model)
        >>> step = torch.compile(loss_of, fullgraph=True, backend="eager")
        >>> with mgqe.one_graph(model):
        ...     step(torch.arange(10)).backward()
    """
    for layer in _layers(model):
        if (refusal := layer.refusal_of_one_graph()) is not None:
            raise RuntimeError(f"{path_of(model, layer)}{refusal}")
        layer.prepare_for_one_graph()
    with passes_in_one_graph():
        yield


def start_quantizing(model: nn.Module) -> int:
    """End the warm-up of every layer now: codebooks start by k-means from the rows as they are.

    Returns:
        how many layers this started; those that had started before are left as they are.

    Raises:
        ValueError: a row is NaN or infinite. The message names the layer's path and the row.
    """
    waiting = [layer for layer in _layers(model) if not layer.quantizing]
    for layer in waiting:
        with errors_about_layer(model, layer):
            layer.start_quantizing()
    return len(waiting)


def check_ids(model: nn.Module) -> None:
    """Raise an error if an embedding of mgqe in the model was asked for an id out of range. Waits for the devices.

    On the CPU the forward pass itself raises. On a GPU a check would make it wait, so that the layer keeps the id,
    reads the nearest valid one in its place, and raises at the next of these: this function, ``model.eval()``,
    ``state_dict()``, a move to another device, the start or the revival of codebooks, and freezing.

    Raises:
        IndexError: names the layer's path and the id. It is raised once.

    Example:
        >>> import torch, mgqe
        >>> model = torch.nn.Sequential(mgqe.DPQEmbedding(100, 8))
        >>> vectors = model(torch.arange(10))
        >>> mgqe.check_ids(model)
    """
    for layer in model.modules():
        if isinstance(layer, LateIds):
            with errors_about_layer(model, layer):
                layer.check_ids()


@contextmanager
def errors_about_layer(model: nn.Module, layer: nn.Module) -> Iterator[None]:
    """Put the path of a layer of a model before the message of an IndexError or ValueError within."""
    try:
        yield
    except (IndexError, ValueError) as error:
        raise type(error)(f"{path_of(model, layer)}{error}") from error


def path_of(model: nn.Module, layer: nn.Module) -> str:
    """Where a layer is in a model, as error texts begin: "path: ", or nothing where the model is the layer."""
    path = next((name for name, module in model.named_modules() if module is layer), "")
    return f"{path}: " if path else ""
