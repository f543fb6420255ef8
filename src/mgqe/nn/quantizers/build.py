"""Quantisers by name."""

from __future__ import annotations

from torch import Tensor

from mgqe.codec.capacity import Capacity
from mgqe.codec.layout import CENTROID_DTYPES
from mgqe.nn.quantizers.base import Quantizer
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
) -> Quantizer:
    """The quantiser called ``name``, on the weight's device and in its dtype; ``key_dim``: of SX's keys, if not s."""
    if centroid_dtype not in CENTROID_DTYPES:
        raise ValueError(f"centroid_dtype must be one of {sorted(CENTROID_DTYPES)}, got {centroid_dtype!r}")
    if name == "vq":
        return VQQuantizer(capacity, weight, centroid_dtype, commitment, sparse)
    if name == "sx":
        return SXQuantizer(capacity, weight, centroid_dtype, sparse, key_dim)
    raise ValueError(f'quantizer must be "vq" or "sx", got {name!r}')
