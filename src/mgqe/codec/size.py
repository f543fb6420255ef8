"""Bytes of a frozen table before it is made: worked out from its layout, header included."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.codec.capacity import Capacity
from mgqe.codec.layout import CENTROID_DTYPES, KIND, CompactConfig
from mgqe.codec.packing import bits_for, row_bytes
from mgqe.codec.tier_map import peel_order
from mgqe.codec.tiers import Tiers
from mgqe.files.container import encode
from mgqe.ops.packed_format import BLOCK_BITS, WORDS_PER_BLOCK, level_lengths


def frozen_nbytes(tiers: Tiers, capacity: Capacity, padding_idx: int | None, centroid_dtype: str) -> int:
    """Bytes of the file that ``mgqe.save`` writes of such a table, exactly."""
    pieces, config = planned(tiers, capacity, padding_idx, centroid_dtype)
    nbytes, _ = encode({name: [tensor] for name, tensor in pieces.items()}, KIND, config.to_json())
    return nbytes


def planned(
    tiers: Tiers, capacity: Capacity, padding_idx: int | None, centroid_dtype: str
) -> tuple[dict[str, Tensor], CompactConfig]:
    """The tensors of such a table on the meta device (shapes and types alone), and its configuration."""

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    tensors = {}
    spread = zip(tiers.sizes, capacity.num_subspaces, capacity.num_centroids, strict=True)
    for g, (n, subspaces, centroids) in enumerate(spread):
        tensors[f"codes.{g}"] = empty(torch.uint8, n, row_bytes(subspaces, bits_for(centroids)))
    for c, shape in enumerate(capacity.codebook_shapes):
        tensors[f"centroids.{c}"] = empty(CENTROID_DTYPES[centroid_dtype], *shape)
        if centroid_dtype == "int8":
            tensors[f"scales.{c}"] = empty(torch.float32, shape[0])
    order = None if tiers.tier_of is None else peel_order(tiers.sizes)
    for level, n in enumerate(level_lengths(tiers.sizes, order) if order else ()):
        blocks = -(-n // BLOCK_BITS)
        tensors[f"tier_map.bits.{level}"] = empty(torch.int64, blocks * WORDS_PER_BLOCK)
        tensors[f"tier_map.ranks.{level}"] = empty(torch.int32, blocks)
    config = CompactConfig(
        tiers.num_embeddings,
        capacity.embedding_dim,
        tiers.sizes,
        capacity.num_subspaces,
        capacity.num_centroids,
        capacity.codebook_of,
        centroid_dtype,
        padding_idx,
        order,
    )
    return tensors, config
