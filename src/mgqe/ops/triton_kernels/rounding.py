"""Flat codebooks in int8 steps, a scale per subspace: a kernel for what takes torch two dozen."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mgqe.ops.triton_kernels.on_device import on_its_gpu

BLOCK = 256
ROUNDS = tl.constexpr(1.5 * 2.0**23)  # added and taken away: the nearest whole number, half to even


@triton.jit
def _round_subspaces(values, units, spans, out, BLOCK: tl.constexpr):
    begin, end = tl.load(spans + 2 * tl.program_id(0)), tl.load(spans + 2 * tl.program_id(0) + 1)
    peak = tl.zeros((BLOCK,), tl.float32)
    missing = tl.zeros((BLOCK,), tl.int32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(values + at, mask=at < end, other=0.0) * tl.load(units + at, mask=at < end, other=0.0)
        peak = tl.maximum(peak, tl.where(value == value, tl.abs(value), 0.0))
        missing += (value != value).to(tl.int32)
    scale = tl.div_rn(tl.max(peak, 0) + tl.zeros((BLOCK,), tl.float32), tl.full((BLOCK,), 127.0, tl.float32))
    # The quotient of the largest float32 is rounded up, and 127 times that is infinite: the number before it.
    before = (scale.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
    scale = tl.where(scale * 127.0 < float("inf"), scale, before)
    scale = tl.where((scale > 0.0) & (tl.sum(missing, 0) == 0), scale, 1.0)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(values + at, mask=at < end, other=0.0) * tl.load(units + at, mask=at < end, other=0.0)
        steps = tl.div_rn(value, scale)
        steps = tl.where(steps > 127.0, 127.0, tl.where(steps < -127.0, -127.0, steps))
        tl.store(out + at, ((steps + ROUNDS) - ROUNDS) * scale, mask=at < end)


@on_its_gpu
def round_subspaces(values: Tensor, units: Tensor, spans: Tensor) -> Tensor:
    """Values times units, float32 (E,) each, rounded as :func:`mgqe.codec.mixed.round_flat` does it for "int8".

    ``spans``: int64 (D, 2), from where to where each subspace's numbers go.
    """
    out = torch.empty_like(values)
    _round_subspaces[(len(spans),)](values, units, spans, out, BLOCK=BLOCK, enable_fp_fusion=False)
    return out
