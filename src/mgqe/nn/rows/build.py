"""From a layer's ``rows`` argument to its parameter and its store."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.checks.devices import memory_for_rows
from mgqe.checks.inference import as_normal
from mgqe.codec.capacity import Capacity
from mgqe.codec.tiers import Tiers
from mgqe.nn.context.ddp import cpu_generator
from mgqe.nn.quantizers.base import Quantizer
from mgqe.nn.quantizers.sx import SXQuantizer
from mgqe.nn.quantizers.vq import VQQuantizer
from mgqe.nn.rows.cache import CacheStore, sizes_of
from mgqe.nn.rows.config import CachedRows, CodeRows, NarrowRows, Rows, SketchRows
from mgqe.nn.rows.fixed import FixedStore
from mgqe.nn.rows.narrow import NarrowStore
from mgqe.nn.rows.sketch import SketchStore, buckets_of
from mgqe.nn.rows.store import FullStore, RowStore


def parameter_shape(rows: Rows, tiers: Tiers, capacity: Capacity) -> tuple[int, int]:
    """The shape of the layer's ``raw_weight``."""
    subspaces, dim = max(capacity.num_subspaces), capacity.embedding_dim
    if isinstance(rows, CachedRows):
        return sum(sizes_of(rows, tiers)), dim
    if isinstance(rows, SketchRows):
        return subspaces * buckets_of(rows, tiers.num_embeddings), dim // subspaces
    if isinstance(rows, NarrowRows):
        return tiers.num_embeddings, subspaces * rows.key_dim
    return (0 if isinstance(rows, CodeRows) else tiers.num_embeddings), dim


def make_rows(
    rows: Rows,
    tiers: Tiers,
    capacity: Capacity,
    padding_idx: int | None,
    weight: Tensor | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> tuple[Tensor, torch.dtype]:
    """The tensor of the layer's parameter, and the dtype of its vectors.

    Raises:
        ValueError: rows to start from, for a layer that does not keep full rows.
    """
    if rows == "float32":
        parameter = make_weight(tiers.num_embeddings, capacity.embedding_dim, padding_idx, weight, device, dtype)
        return parameter, parameter.dtype
    vectors = dtype if dtype is not None else torch.get_default_dtype()
    if rows == "bfloat16":
        if dtype is None and weight is not None:
            vectors = torch.promote_types(weight.dtype, torch.float32)
        shape = tiers.num_embeddings, capacity.embedding_dim
        return make_weight(*shape, padding_idx, weight, device, torch.bfloat16), vectors
    if weight is not None:
        raise ValueError(
            f'rows={type(rows).__name__} does not start from full rows: give rows="float32" or "bfloat16" with them, '
            "or freeze them as they are"
        )
    shape = parameter_shape(rows, tiers, capacity)
    return make_weight(*shape, None, None, device, vectors), vectors


def make_weight(
    num_embeddings: int,
    embedding_dim: int,
    padding_idx: int | None,
    weight: Tensor | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """Rows as nn.Embedding starts them: those of ``weight``, or N(0, 1) with zeros for padding_idx."""
    kind = dtype if dtype is not None or weight is None else weight.dtype
    if kind is not None and not kind.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type, got {kind}")
    if weight is not None:
        if tuple(weight.shape) != (num_embeddings, embedding_dim):
            raise ValueError(f"_weight must have shape {(num_embeddings, embedding_dim)}, got {tuple(weight.shape)}")
        with memory_for_rows(num_embeddings, embedding_dim):
            return as_normal(weight.detach()).to(device=device, dtype=dtype)
    with memory_for_rows(num_embeddings, embedding_dim):
        rows = torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype).normal_()
    if padding_idx is not None:
        rows[padding_idx] = 0
    return rows


def make_store(rows: Rows, tiers: Tiers, capacity: Capacity, quantizer: Quantizer, weight: Tensor) -> RowStore:
    """The store of a layer's rows.

    Raises:
        ValueError: a quantiser that does not go with it.
    """
    if isinstance(rows, str):
        return FullStore()
    if isinstance(rows, NarrowRows):
        if not isinstance(quantizer, SXQuantizer):
            raise ValueError('rows=NarrowRows goes with quantizer="sx" alone: nearest centroids need whole rows')
        store = NarrowStore(max(capacity.num_subspaces), rows.key_dim, width_of(capacity), weight)
        quantizer.lift = (store,)
        return store
    if isinstance(quantizer, SXQuantizer):
        raise ValueError(f'rows={type(rows).__name__} goes with quantizer="vq" alone')
    if isinstance(rows, SketchRows):
        subspaces = max(capacity.num_subspaces)
        return SketchStore(rows, tiers.num_embeddings, capacity.embedding_dim, subspaces, weight, cpu_generator())
    if isinstance(rows, CachedRows):
        return CacheStore(rows, tiers, quantizer if isinstance(quantizer, VQQuantizer) else None, weight)
    assert isinstance(quantizer, VQQuantizer)  # a layer with codes of its own has no plan
    return FixedStore(rows, tiers, capacity, quantizer, weight.device)


def key_dim_of(rows: Rows, capacity: Capacity) -> int | None:
    """Dimensions of SX's keys where they are not the values'; ValueError where the capacity does not allow that."""
    if not isinstance(rows, NarrowRows):
        return None
    if len(set(capacity.num_subspaces)) > 1:
        raise ValueError(f"rows=NarrowRows needs the same num_subspaces in every tier, got {capacity.num_subspaces}")
    if rows.key_dim > width_of(capacity):
        raise ValueError(f"key_dim must be from 1 to d / D = {width_of(capacity)}, got {rows.key_dim}")
    return rows.key_dim


def width_of(capacity: Capacity) -> int:
    """s = d / D of the finest tier."""
    return capacity.embedding_dim // max(capacity.num_subspaces)
