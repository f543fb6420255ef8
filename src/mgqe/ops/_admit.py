"""Ids into the range of a table without a wait for the device, which keeps a note of those that were not in it."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.ops._triton import triton_on


def admit(ids: Tensor, extremes: Tensor, num_embeddings: int) -> Tensor:
    """Ids int64 ``(...)``, at least one, those out of range replaced by the nearest valid id.

    Args:
        ids: whatever they are.
        extremes: int64 ``(2,)``, moved in place: at most the lowest id, and at most minus the highest, where these are
            out of range.
        num_embeddings: valid ids are 0 to ``num_embeddings - 1``.
    """
    kernels = None if torch.compiler.is_compiling() else triton_on(ids.device)
    if kernels is not None:
        admitted: Tensor = kernels.admit(ids, extremes, num_embeddings)
        return admitted
    low, high = torch.aminmax(ids)
    extremes.copy_(torch.minimum(extremes, torch.stack((low, -high))))
    return ids.clamp(0, num_embeddings - 1)
