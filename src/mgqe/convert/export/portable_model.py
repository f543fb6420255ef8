"""portable: a copy of a frozen model that any exporter can trace."""

from __future__ import annotations

import copy
from itertools import chain

from torch import nn

from mgqe.checks.names import errors_about
from mgqe.convert.export.portable_layers import PortableEmbedding, PortableEmbeddingBag
from mgqe.nn.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.table.compact import CompactTable


def portable(model: nn.Module) -> nn.Module:
    """A copy of a frozen model whose compact tables decode by standard operators, for exporters.

    ``torch.export.export(mgqe.portable(model), args)``, and AOTInductor and ONNX which build on it, then make programs
    that hold the packed codes and run without mgqe. The copy is in eval mode and shares all parameters and buffers with
    the model. A module at several paths stays one module. Modules tied to a table decode the table at each call.

    Args:
        model: a model from :func:`mgqe.freeze_` or :func:`mgqe.load_model`, or one :class:`mgqe.CompactEmbedding`.

    Raises:
        ValueError: a layer that is not frozen, a table without rows, or no compact table in the model.
        TypeError: a frozen table of another kind than CompactTable. The message names the module path.

    Example:
        >>> import torch, mgqe
        >>> model = torch.nn.Sequential(mgqe.DPQEmbedding(1000, 16, num_centroids=256), torch.nn.Linear(16, 1))
        >>> tables = mgqe.freeze_(model)
        >>> ids = torch.tensor([3, 17, 999])
        >>> program = torch.export.export(mgqe.portable(model), (ids,))
        >>> torch.equal(program.module()(ids), model(ids))
        True
    """
    paths = {module: path for path, module in model.named_modules()}
    training = [
        path or type(model).__name__ for module, path in paths.items() if isinstance(module, QuantizedEmbedding)
    ]
    if training:
        raise ValueError(f"{', '.join(training)}: not frozen: call mgqe.freeze_(model) before exporting it")
    tables = {module: path for module, path in paths.items() if isinstance(module, CompactEmbedding)}
    if not tables:
        raise ValueError(
            f"{type(model).__name__} has no compact table: call mgqe.compress_(model), train, and mgqe.freeze_(model)"
        )
    # deepcopy does not copy what is in its memo: this shares all tensors, and replaces the tables wherever they occur.
    memo: dict[int, object] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    memo.update({id(module): _portable(module, path) for module, path in tables.items()})
    portable_model: nn.Module = copy.deepcopy(model, memo)
    return portable_model.eval()


def _portable(module: CompactEmbedding, path: str) -> PortableEmbedding:
    where = path or type(module).__name__
    table = module.table
    if not isinstance(table, CompactTable):
        raise TypeError(
            f"{where}: holds a {type(table).__name__}, and only a CompactTable can be exported: keep nn.Embedding there"
        )
    with errors_about(where):
        if isinstance(module, CompactEmbeddingBag):
            return PortableEmbeddingBag(table, module.dtype, module.mode, module.include_last_offset)
        return PortableEmbedding(table, module.dtype)
