"""mean + rows @ matrix in the order of the rows' numbers, each product and sum rounded once: the CPU kernel's bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 32, 64  # of a program


@triton.jit(do_not_specialize=["num_rows", "length", "dim"])
def _transform(rows, mean, matrix, out, num_rows, length, dim, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside, within = at < num_rows, column < dim
    total = tl.zeros((ROWS, COLUMNS), tl.float32) + tl.load(mean + column, mask=within, other=0.0)[None, :]
    for k in range(0, length):
        value = tl.load(rows + at * length + k, mask=inside, other=0.0)
        weight = tl.load(matrix + k * dim + column, mask=within, other=0.0)
        total = tl.fma(value[:, None] + tl.zeros_like(total), weight[None, :] + tl.zeros_like(total), total)
    tl.store(out + at[:, None] * dim + column[None, :], total, mask=inside[:, None] & within[None, :])


def transform(rows: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """float32 (n, L), (d,), (L, d), contiguous -> (n, d); see :func:`mgqe.ops.transform`."""
    (n, length), dim = rows.shape, matrix.shape[1]
    out = torch.empty((n, dim), dtype=torch.float32, device=rows.device)
    if n:
        grid = (triton.cdiv(n, ROWS), triton.cdiv(dim, COLUMNS))
        _transform[grid](rows, mean, matrix, out, n, length, dim, ROWS=ROWS, COLUMNS=COLUMNS)
    return out
