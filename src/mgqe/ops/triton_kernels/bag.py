"""Bags of rows: sums, means and maxima in the order of each bag's ids, with the CPU kernel's bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mgqe.ops.triton_kernels.on_device import on_its_gpu

COLUMNS = 64  # of a program
MODES = {"sum": 0, "mean": 1, "max": 2}


@triton.jit(do_not_specialize=["num_ids", "num_bags", "dim", "padding_idx"])
def _bag(
    rows,
    ids,
    offsets,
    weights,
    out,
    num_ids,
    num_bags,
    dim,
    padding_idx,
    MODE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    within = column < dim
    begin = tl.load(offsets + bag)
    end = tl.load(offsets + bag + 1, mask=bag + 1 < num_bags, other=num_ids)
    pooled = tl.full((COLUMNS,), float("-inf") if MODE == 2 else 0.0, tl.float32)
    counted = begin - begin
    for at in range(begin, end):
        counts = tl.load(ids + at) != padding_idx
        row = tl.load(rows + at * dim + column, mask=within, other=0.0)
        if HAS_WEIGHTS:
            row = row * tl.load(weights + at)
        after = tl.where(row > pooled, row, pooled) if MODE == 2 else pooled + row
        pooled = tl.where(counts, after, pooled)
        counted += counts.to(tl.int64)
    if MODE == 1:
        pooled = tl.div_rn(pooled, tl.maximum(counted, 1).to(tl.float32) + tl.zeros_like(pooled))
    tl.store(out + bag * dim + column, tl.where(counted > 0, pooled, 0.0), mask=within)


@on_its_gpu
def bag_of_rows(
    rows: Tensor, ids: Tensor, offsets: Tensor, mode: str, weights: Tensor | None, padding_idx: int
) -> Tensor:
    """Rows float32 (n, d) of ids (n,) -> bags (B, d); see :func:`mgqe.ops.reference_bag.bag`, whose bits these are."""
    bags, dim = offsets.shape[0], rows.shape[1]
    out = torch.empty((bags, dim), dtype=torch.float32, device=rows.device)
    if bags:
        _bag[(bags, triton.cdiv(dim, COLUMNS))](
            rows,
            ids,
            offsets,
            rows if weights is None else weights,
            out,
            ids.shape[0],
            bags,
            dim,
            padding_idx,
            MODE=MODES[mode],
            HAS_WEIGHTS=weights is not None,
            COLUMNS=COLUMNS,
            enable_fp_fusion=False,
        )
    return out
