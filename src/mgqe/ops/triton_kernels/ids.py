"""Ids into the range of a table, and a note of those that were not in it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mgqe.ops.triton_kernels.on_device import on_its_gpu

IDS = 1024  # of a program


@triton.jit(do_not_specialize=["num_ids", "last"])
def _admit(ids, extremes, out, num_ids, last, IDS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * IDS + tl.arange(0, IDS)
    one = tl.load(ids + at, mask=at < num_ids, other=0)
    low, high = tl.min(one, 0), tl.max(one, 0)
    tl.atomic_min(extremes, low, mask=low < 0)
    tl.atomic_min(extremes + 1, -high, mask=high > last)
    tl.store(out + at, tl.minimum(tl.maximum(one, 0), last), mask=at < num_ids)


@on_its_gpu
def admit(ids: Tensor, extremes: Tensor, num_embeddings: int) -> Tensor:
    """Ids int64 (...), those out of range replaced by the nearest valid id.

    ``extremes``: int64 (2,), moved in place: the lowest id, and minus the highest, if they are out of range.
    """
    ids = ids.contiguous()
    out = torch.empty_like(ids)
    _admit[(triton.cdiv(ids.numel(), IDS),)](ids, extremes, out, ids.numel(), num_embeddings - 1, IDS=IDS)
    return out
