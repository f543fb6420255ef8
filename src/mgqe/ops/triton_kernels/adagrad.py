"""Adagrad: of the rows of a sparse gradient with one accumulator per row, and of whole tensors with one per element.

The rows of a gradient may come several times. They are sorted, so that equal ones lie in one run. One kernel adds up
each block's part of every run, another takes a run's parts together and moves its row: no two programs add to the same
number, and a result does not depend on which of them is first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mgqe.ops.triton_kernels.on_device import on_its_gpu

BLOCK = 16  # positions of a gradient per program
PARTS = 32  # of a run that goes over several blocks, taken together at a time
ELEMENTS = 1024  # of a program


@triton.jit(do_not_specialize=["num", "dim"])
def _sum_runs(rows, order, values, sums, num, dim, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """At each position the sum of what its block has for its row."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at, column = first + tl.arange(0, BLOCK), tl.arange(0, COLUMNS)
    within = column < dim
    row = tl.load(rows + at, mask=at < num, other=-1)
    total = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for step in range(0, tl.minimum(num - first, BLOCK).to(tl.int32)):
        other, place = tl.load(rows + first + step), tl.load(order + first + step)
        value = tl.load(values + place * dim + column, mask=within, other=0.0).to(tl.float32)
        total += tl.where((row == other)[:, None], value[None, :], 0.0)
    tl.store(sums + at[:, None] * dim + column[None, :], total, mask=(at < num)[:, None] & within[None, :])


@triton.jit
def _rounded(value, noise, where, mask, HAS_NOISE: tl.constexpr):
    """Float32; where there is noise, rounded at random to what bfloat16 has; see mgqe.nn.optim.round_at_random."""
    if HAS_NOISE:
        bits = value.to(tl.int32, bitcast=True) + tl.load(noise + where, mask=mask, other=0)
        upper = (bits & -65536).to(tl.float32, bitcast=True)
        value = tl.where(tl.abs(value) < float("inf"), upper, value)
    return value


@triton.jit(do_not_specialize=["num", "dim", "rate", "eps", "decay"])
def _move_rows(
    rows,
    sums,
    parameter,
    state,
    noise,
    num,
    dim,
    rate,
    eps,
    decay,
    HAS_DECAY: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at, column = first + tl.arange(0, BLOCK), tl.arange(0, COLUMNS)
    within, inside = column < dim, at < num
    row = tl.load(rows + at, mask=inside, other=-1)
    begins = inside & (row != tl.load(rows + at - 1, mask=inside & (at > 0), other=-1))
    place = at[:, None] * dim + column[None, :]
    here = begins[:, None] & within[None, :]
    gradient = tl.load(sums + place, mask=here, other=0.0)
    # The last run of the block may go on in later ones.
    last_row = tl.load(rows + tl.minimum(first + BLOCK, num) - 1)
    is_last = begins & (row == last_row)
    goes_on = tl.max(is_last.to(tl.int32), 0)
    start = first + BLOCK
    while goes_on > 0:
        part = start + tl.arange(0, PARTS).to(tl.int64) * BLOCK
        same = tl.load(rows + part, mask=part < num, other=-1) == last_row
        more = tl.load(sums + part[:, None] * dim + column[None, :], mask=same[:, None] & within[None, :], other=0.0)
        gradient += tl.where(is_last[:, None], tl.sum(more, 0)[None, :], 0.0)
        goes_on = tl.min(same.to(tl.int32), 0)
        start += PARTS * BLOCK
    to = row[:, None] * dim + column[None, :]
    current = tl.load(parameter + to, mask=here, other=0.0).to(tl.float32)
    if HAS_DECAY:
        gradient += decay * current
    total = tl.load(state + row, mask=begins, other=0.0) + tl.sum(gradient * gradient, 1) / dim
    tl.store(state + row, total, mask=begins)
    scale = tl.where(total == 0.0, 0.0, -rate / (tl.sqrt(total) + eps))
    moved = _rounded(current + gradient * scale[:, None], noise, place, here, HAS_NOISE)
    tl.store(parameter + to, moved.to(parameter.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["num", "rate", "eps", "decay"])
def _move_all(
    gradients,
    parameter,
    state,
    noise,
    num,
    rate,
    eps,
    decay,
    HAS_DECAY: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = at < num
    gradient = tl.load(gradients + at, mask=inside, other=0.0).to(tl.float32)
    current = tl.load(parameter + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DECAY:
        gradient += decay * current
    total = tl.load(state + at, mask=inside, other=0.0) + gradient * gradient
    tl.store(state + at, total, mask=inside)
    scale = tl.where(total == 0.0, 0.0, -rate / (tl.sqrt(total) + eps))
    moved = _rounded(current + gradient * scale, noise, at, inside, HAS_NOISE)
    tl.store(parameter + at, moved.to(parameter.dtype.element_ty), mask=inside)


@on_its_gpu
def move_rows(
    parameter: Tensor,
    state: Tensor,
    rows: Tensor,
    values: Tensor,
    rate: float,
    eps: float,
    decay: float,
    noise: Tensor | None,
) -> None:
    """One step of row-wise Adagrad, in place.

    Args:
        parameter: (N, d), contiguous, d at most 512, of float32, float16 or bfloat16.
        state: float32 (N,), the sums of mean squares.
        rows, values: int64 (n,) and (n, d), the gradient; rows may come several times.
        rate, eps, decay: the learning rate, what keeps a division by zero away, the weight decay.
        noise: int32 (n, d) from 0 to 2^16 - 1, by which a parameter of bfloat16 is rounded; None: to nearest.
    """
    num, dim = values.shape
    if num == 0:
        return
    rows, order = rows.sort(stable=True)
    sums = torch.empty((num, dim), dtype=torch.float32, device=values.device)
    grid, columns = (triton.cdiv(num, BLOCK),), max(16, triton.next_power_of_2(dim))
    _sum_runs[grid](rows, order, values, sums, num, dim, BLOCK=BLOCK, COLUMNS=columns)
    _move_rows[grid](
        rows,
        sums,
        parameter,
        state,
        state if noise is None else noise,
        num,
        dim,
        rate,
        eps,
        decay,
        HAS_DECAY=decay != 0,
        HAS_NOISE=noise is not None,
        BLOCK=BLOCK,
        PARTS=PARTS,
        COLUMNS=columns,
    )


@on_its_gpu
def move_all(
    parameter: Tensor, state: Tensor, gradient: Tensor, rate: float, eps: float, decay: float, noise: Tensor | None
) -> None:
    """One step of Adagrad, in place: as :func:`move_rows` with tensors of the parameter's shape, contiguous."""
    num = parameter.numel()
    if num:
        _move_all[(triton.cdiv(num, ELEMENTS),)](
            gradient,
            parameter,
            state,
            state if noise is None else noise,
            num,
            rate,
            eps,
            decay,
            HAS_DECAY=decay != 0,
            HAS_NOISE=noise is not None,
            ELEMENTS=ELEMENTS,
        )
