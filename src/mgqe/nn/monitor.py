"""table_metrics: what to log of a model's tables while they train, as numbers by name."""

from __future__ import annotations

import torch
from torch import nn

from mgqe.nn.codebook_layer import CodebookLayer
from mgqe.nn.quantized import QuantizedEmbedding


@torch.no_grad()
def table_metrics(model: nn.Module, *, usage: bool = False, prefix: str = "mgqe") -> dict[str, float]:
    """Numbers about the tables of a model that trains, for any logger.

    Call it where the loss is known, before ``backward()``: afterwards this step's quantisation loss is gone. Reading
    changes nothing.

    Args:
        model: with layers that train. Frozen tables have nothing to log.
        usage: also how much of the codebooks is in use, which sweeps over all rows: once per epoch, say.
        prefix: of the names.

    Returns:
        by "PREFIX/PATH/" of each layer: ``quantizing``, 0 in the warm-up and then 1; ``quantization_loss``, where this
        step has looked rows up through the codebooks; with ``usage``, after the warm-up, for each tier g
        ``tier_g/usage``, the share of the centroids that some id chooses, and ``tier_g/perplexity``, as
        :class:`mgqe.CodebookStats` has them.

    Example:
        >>> import torch, mgqe
        >>> model = torch.nn.Sequential(mgqe.DPQEmbedding(100, 8, num_centroids=16, warmup_steps=0))
        >>> loss = model(torch.arange(10)).square().mean() + mgqe.quantization_loss(model)
        >>> list(mgqe.table_metrics(model))
        ['mgqe/0/quantizing', 'mgqe/0/quantization_loss']
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, CodebookLayer)}
    latest = max((layer.latest_pass for layer in layers.values()), default=0)
    ended = max((layer.ended_pass for layer in layers.values()), default=0)
    metrics: dict[str, float] = {}
    for path, layer in layers.items():
        name = f"{prefix}/{path}".rstrip("/")
        metrics[f"{name}/quantizing"] = float(layer.quantizing)
        if (loss := layer.auxiliary_loss(latest, ended)) is not None:
            metrics[f"{name}/quantization_loss"] = loss.item()
        if usage and layer.quantizing and isinstance(layer, QuantizedEmbedding):
            for stats in layer.codebook_stats():
                metrics[f"{name}/tier_{stats.tier}/usage"] = stats.usage
                metrics[f"{name}/tier_{stats.tier}/perplexity"] = stats.perplexity
    return metrics
