"""mean + rows @ matrix in the order of the rows' numbers, each product and sum rounded once: the CPU kernel's bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mgqe.ops.triton_kernels.on_device import on_its_gpu
from mgqe.ops.triton_kernels.tuning import tuned

COLUMNS = 64  # of a program


@tuned(
    {"ROWS": 32, "num_warps": 4},
    {"ROWS": 64, "num_warps": 4},
    {"ROWS": 64, "num_warps": 8},
    key=("length", "dim", "HAS_SHIFT", "HAS_SCALES"),
    rows="num_rows",
)
@triton.jit(do_not_specialize=["num_rows", "length", "dim"])
def _transform(
    rows,
    shift,
    mean,
    matrix,
    scales,
    out,
    num_rows,
    length,
    dim,
    HAS_SHIFT: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside, within = at < num_rows, column < dim
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    if HAS_MEAN and not HAS_SCALES:
        total += tl.load(mean + column, mask=within, other=0.0)[None, :]
    for k in range(0, length):
        value = tl.load(rows + at * length + k, mask=inside, other=0.0)
        if HAS_SHIFT:
            value -= tl.load(shift + k)
        weight = tl.load(matrix + k * dim + column, mask=within, other=0.0)
        total = tl.fma(value[:, None] + tl.zeros_like(total), weight[None, :] + tl.zeros_like(total), total)
    if HAS_SCALES:
        total = total * tl.load(scales + column, mask=within, other=0.0)[None, :]
        total = tl.load(mean + column, mask=within, other=0.0)[None, :] + total
    tl.store(out + at[:, None] * dim + column[None, :], total, mask=inside[:, None] & within[None, :])


@on_its_gpu
def transform(
    rows: Tensor, mean: Tensor | None, matrix: Tensor, shift: Tensor | None = None, scales: Tensor | None = None
) -> Tensor:
    """float32 (n, L), (d,), (L, d), contiguous -> (n, d); see :func:`mgqe.ops.transform`.

    Args:
        rows: what is multiplied.
        mean: what the products are added to; None for zeros.
        matrix: what they are multiplied with.
        shift: (L,) that is taken from the rows before.
        scales: (d,) of the sums of products, which are multiplied with them before the mean is added.
    """
    (n, length), dim = rows.shape, matrix.shape[1]
    out = torch.empty((n, dim), dtype=torch.float32, device=rows.device)
    if n:
        _transform[lambda shape: (triton.cdiv(n, shape["ROWS"]), triton.cdiv(dim, COLUMNS))](
            rows,
            matrix if shift is None else shift,
            matrix if mean is None else mean,
            matrix,
            matrix if scales is None else scales,
            out,
            n,
            length,
            dim,
            HAS_SHIFT=shift is not None,
            HAS_MEAN=mean is not None,
            HAS_SCALES=scales is not None,
            COLUMNS=COLUMNS,
            enable_fp_fusion=False,
        )
    return out
