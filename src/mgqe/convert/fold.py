"""fold_matrix: a linear layer takes over the matrix that look-ups of a table would multiply with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_int
from mgqe.nn.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.table.compact import CompactTable

Layer = TypeVar("Layer", bound=CompactEmbedding)


@dataclass(frozen=True, eq=False)
class Fold:
    """A layer that gives coordinates, and the weights with which a linear layer takes them; nothing has changed yet."""

    layer: CompactEmbedding
    linear: nn.Linear
    weight: Tensor
    bias: Tensor | None

    def apply(self) -> None:
        """Give the linear layer its weights."""
        old, linear = self.linear.weight, self.linear
        linear.weight = nn.Parameter(self.weight.to(old), requires_grad=old.requires_grad)
        linear.in_features = self.weight.shape[1]
        if self.bias is not None:
            with torch.no_grad():
                linear.bias.copy_(self.bias)


@outside_inference
def fold_matrix(layer: Layer, linear: nn.Linear, start: int = 0) -> Layer:
    """A layer whose look-ups leave out the matrix, which the linear layer that reads its vectors takes over, in place.

    ``linear(layer(ids))`` stays what it was, apart from rounding, for bags and padding, too. So look-ups of rotated
    tables take less time. A table whose rows are not multiplied with a matrix is left, and so is the linear layer.
    Fold after loading a model, and before making an optimiser: parameters are replaced, of another shape.

    Args:
        layer: what ``freeze_`` put in place of a layer; its ``mode`` is "sum" or "mean" if it is a bag.
        linear: the only reader of the layer's vectors, which come to it as they are, or joined with other inputs.
        start: the first of the d columns of ``linear.weight`` that are for the layer's vectors.

    Returns:
        the layer to put in the place of ``layer``; the table of coordinates is its ``table``. It shares the codes.

    Raises:
        TypeError: other modules. ValueError: no such columns, a bag of mode "max", weights that are computed from
            others, a fallback that no coordinates give. Nothing has changed then.

    Example:
        >>> import torch, mgqe
        >>> model = torch.nn.Sequential(mgqe.DPQEmbedding(1000, 16, budget="10%"), torch.nn.Linear(16, 1))
        >>> tables, ids = mgqe.freeze_(model), torch.arange(3)
        >>> before = model(ids)
        >>> model[0] = mgqe.fold_matrix(model[0], model[1])
        >>> torch.allclose(model(ids), before, atol=1e-6)
        True
    """
    fold = plan_fold(layer, linear, start)
    if fold is None:
        return layer
    fold.apply()
    return fold.layer  # type: ignore[return-value]  # of the layer's own type


@torch.no_grad()
def plan_fold(layer: CompactEmbedding, linear: nn.Module, start: int = 0) -> Fold | None:
    """What :func:`fold_matrix` is to change; None where there is no matrix. Raises as it does."""
    if not isinstance(layer, CompactEmbedding):
        raise TypeError(
            f"expected a CompactEmbedding or CompactEmbeddingBag, got {type(layer).__name__}: freeze the model first, "
            "with mgqe.freeze_"
        )
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"expected the nn.Linear that reads the layer's vectors, got {type(linear).__name__}")
    start, d = as_int("start", start), layer.embedding_dim
    if start < 0 or start + d > linear.in_features:
        raise ValueError(
            f"columns {start} to {start + d - 1} were to be for vectors of {d} numbers, but the linear layer has "
            f"{linear.in_features}: choose another start, or the layer that reads these vectors"
        )
    if "weight" not in linear._parameters:
        raise ValueError("the weight of the linear layer is computed from others: remove its parametrization first")
    if isinstance(layer, CompactEmbeddingBag) and layer.mode == "max":
        raise ValueError('the mode of a bag must be "sum" or "mean": the largest of coordinates is not that of rows')
    table = layer.table
    if not isinstance(table, CompactTable) or not table.is_turned:
        return None
    transform = table.snapshot.transform
    assert transform is not None  # there is a matrix
    # The mean goes into the bias where every vector has it once.
    with_mean = isinstance(layer, CompactEmbeddingBag) or table.padding_idx is not None or linear.bias is None
    coordinates, matrix = table.coordinates(with_mean)
    weight, bias = linear.weight.detach().double().cpu(), None
    before, mine, after = weight[:, :start], weight[:, start : start + d], weight[:, start + d :]
    if not with_mean:
        bias = linear.bias.detach().double().cpu() + mine @ transform.mean.double().cpu()
    folded = torch.cat([before, mine @ matrix.double().cpu().T, after], 1)
    return Fold(_of_table(layer, coordinates), linear, folded, bias)


def _of_table(layer: CompactEmbedding, table: CompactTable) -> CompactEmbedding:
    """A layer of the same settings."""
    if isinstance(layer, CompactEmbeddingBag):
        bag = layer.mode, layer.include_last_offset
        return CompactEmbeddingBag(table, layer.padding_idx, layer.dtype, layer.path, *bag)
    return CompactEmbedding(table, layer.padding_idx, layer.dtype, layer.path)
