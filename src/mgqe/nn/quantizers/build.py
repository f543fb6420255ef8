"""What a training module is made of, and whether a checkpoint fits it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mgqe.checks.inference import as_normal
from mgqe.codec.capacity import Capacity
from mgqe.codec.layout import CENTROID_DTYPES
from mgqe.codec.tiers import Tiers
from mgqe.nn.quantizers.sx import SXQuantizer
from mgqe.nn.quantizers.vq import VQQuantizer


def make_quantizer(
    name: str,
    capacity: Capacity,
    weight: Tensor,
    centroid_dtype: str,
    commitment: float,
    sparse: bool,
    key_dim: int | None = None,
) -> VQQuantizer | SXQuantizer:
    """The quantiser called ``name``, on the weight's device and in its dtype; ``key_dim``: of SX's keys, if not s."""
    if centroid_dtype not in CENTROID_DTYPES:
        raise ValueError(f"centroid_dtype must be one of {sorted(CENTROID_DTYPES)}, got {centroid_dtype!r}")
    if name == "vq":
        return VQQuantizer(capacity, weight, centroid_dtype, commitment, sparse)
    if name == "sx":
        return SXQuantizer(capacity, weight, centroid_dtype, sparse, key_dim)
    raise ValueError(f'quantizer must be "vq" or "sx", got {name!r}')


def make_weight(
    num_embeddings: int,
    embedding_dim: int,
    padding_idx: int | None,
    weight: Tensor | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """Rows as nn.Embedding starts them: the given ones, or N(0, 1) with zeros for padding_idx."""
    kind = dtype if dtype is not None or weight is None else weight.dtype
    if kind is not None and not kind.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type, got {kind}")
    if weight is not None:
        if tuple(weight.shape) != (num_embeddings, embedding_dim):
            raise ValueError(f"_weight must have shape {(num_embeddings, embedding_dim)}, got {tuple(weight.shape)}")
        return as_normal(weight.detach()).to(device=device, dtype=dtype)
    rows = torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype).normal_()
    if padding_idx is not None:
        rows[padding_idx] = 0
    return rows


def other_tiers(state_dict: Mapping[str, Any], prefix: str, ours: Tiers) -> str | None:
    """What to say where a checkpoint's tiers are not the layer's; None where they are, or it has none.

    Args:
        state_dict: the checkpoint.
        prefix: of the layer's keys in it.
        ours: the layer's tiers.
    """
    sizes = state_dict.get(f"{prefix}tier_sizes")
    if not isinstance(sizes, Tensor):
        return None
    saved = state_dict.get(f"{prefix}tier_of")
    theirs = tuple(sizes.tolist())
    if theirs != ours.sizes:
        found = f"tiers of {theirs} ids, this layer of {ours.sizes}"
    elif not _same_assignment(saved, ours.tier_of):
        found = f"other ids in its tiers of {theirs} ids than this layer"
    else:
        return None
    own = f"tiers={list(theirs)}"
    if saved is not None:
        own = f"tiers=mgqe.Tiers.from_assignment(state_dict[{prefix + 'tier_of'!r}])"
    return (
        f"{prefix.rstrip('.') or 'the layer'}: the checkpoint has {found}. Make the layer with the same counts= or "
        f"tiers= as the one that was saved, or with {own}"
    )


def _same_assignment(saved: Any, own: Tensor | None) -> bool:
    if saved is None or own is None:
        return saved is None and own is None
    return bool(torch.equal(saved.cpu(), own))
