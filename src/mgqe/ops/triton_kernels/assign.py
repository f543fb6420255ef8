"""Nearest centroids, in one kernel for all subspaces and tiers: no tensor of distances is written.

The arithmetic is that of the torch twin, operation for operation, in double precision, so that codes are the same to
the last one: ties go to the lowest index, NaN loses against every number, and nothing but NaN gives 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mgqe.ops.layout.searches import Search, Searches, search_table
from mgqe.ops.triton_kernels.on_device import on_its_gpu
from mgqe.ops.triton_kernels.tuning import tuned

ROWS = 64  # of a program that scatters
LOSS_ROWS = tl.constexpr(32)  # whose losses are one number: a program of any shape has whole ones
CENTROIDS = 64  # that a program compares at a time; fewer where there are fewer
PART = 2048  # rows whose errors a program adds up
FIELDS = tl.constexpr(7)  # of a search, before its counts; see mgqe.ops.layout.searches.search_table
FAR = tl.constexpr(2.0**40)  # of mgqe.ops.reference
MISSING = tl.constexpr(1 << 30)  # a code that no centroid has
ROUNDS = tl.constexpr(1.5 * 2.0**23)  # added and taken away: the nearest whole number, half to even


@triton.jit
def _number(book, units, steps, at, coordinate, there, HAS_STEPS: tl.constexpr):
    """A number of the codebooks; where there are steps, how many of them it is, from -127 to 127."""
    value = tl.load(book + at, mask=there, other=0.0)
    if HAS_STEPS:
        value = tl.div_rn(value * tl.load(units + coordinate), tl.load(steps + coordinate) + tl.zeros_like(value))
        value = tl.where(value > 127.0, 127.0, tl.where(value < -127.0, -127.0, value))
        value = (value + ROUNDS) - ROUNDS
    return value


@triton.jit
def _centroid(book, units, steps, at, coordinate, there, HAS_STEPS: tl.constexpr):
    value = _number(book, units, steps, at, coordinate, there, HAS_STEPS)
    return value * tl.load(steps + coordinate) if HAS_STEPS else value


@triton.jit(do_not_specialize=["num_tiers"])
def _frame(book, units, steps, searches, middle, longest, num_tiers, HAS_STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Of each search, for each tier: the middle between the least and the greatest finite number of each coordinate,
    and the greatest squared distance of a centroid from there."""
    s, tier = tl.program_id(0), tl.program_id(1)
    field = searches + s * (FIELDS + num_tiers)
    coordinate, width = tl.load(field), tl.load(field + 1)
    entry, piece, stride = tl.load(field + 2), tl.load(field + 3), tl.load(field + 4)
    middle += tl.load(field + 6) * num_tiers + tier * width
    count = tl.load(field + FIELDS + tier)
    for t in range(0, width):
        start = entry + t // piece * stride + t % piece
        low = tl.full((BLOCK,), float("inf"), tl.float32)
        high = tl.full((BLOCK,), float("-inf"), tl.float32)
        for first in range(0, count, BLOCK):
            k = first + tl.arange(0, BLOCK)
            value = _centroid(book, units, steps, start + k * piece, coordinate + t, k < count, HAS_STEPS)
            finite = tl.where(tl.abs(value) < float("inf"), value, 0.0)
            low = tl.minimum(low, tl.where(k < count, finite, float("inf")))
            high = tl.maximum(high, tl.where(k < count, finite, float("-inf")))
        tl.store(middle + t, 0.5 * tl.min(low, 0) + 0.5 * tl.max(high, 0))
    tl.debug_barrier()  # all threads see what one of them stored
    most = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        k = first + tl.arange(0, BLOCK)
        length = tl.zeros((BLOCK,), tl.float64)
        for t in range(0, width):
            at = entry + t // piece * stride + k * piece + t % piece
            value = _centroid(book, units, steps, at, coordinate + t, k < count, HAS_STEPS)
            finite = tl.where(tl.abs(value) < float("inf"), value, 0.0).to(tl.float64)
            apart = finite - tl.load(middle + t).to(tl.float64)
            length += apart * apart
        most = tl.maximum(most, tl.where(k < count, length, 0.0))
    tl.store(longest + s * num_tiers + tier, tl.max(most, 0))


@tuned(
    {"ROWS": 64, "num_warps": 4},
    {"ROWS": 32, "num_warps": 4},
    {"ROWS": 64, "num_warps": 8},
    {"ROWS": 128, "num_warps": 8},
    key=("dim", "num_codes", "num_tiers", "CENTROIDS", "HAS_BIAS", "DECODES"),
    rows="num_rows",
)
@triton.jit(do_not_specialize=["num_rows", "dim", "num_codes", "num_tiers", "weight", "factor"])
def _nearest(
    rows,
    tiers,
    book,
    bias,
    units,
    steps,
    searches,
    middle,
    longest,
    weights,
    codes,
    taken,
    errors,
    losses,
    num_rows,
    dim,
    num_codes,
    num_tiers,
    weight,
    factor,
    HAS_BIAS: tl.constexpr,
    HAS_TIERS: tl.constexpr,
    HAS_STEPS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    DECODES: tl.constexpr,
    ROWS: tl.constexpr,
    CENTROIDS: tl.constexpr,
):
    """Codes of rows; where DECODES, also the numbers that they name, the rows' weighted errors, and the losses."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    s = tl.program_id(1)
    field = searches + s * (FIELDS + num_tiers)
    coordinate, width = tl.load(field), tl.load(field + 1)
    entry, piece, stride = tl.load(field + 2), tl.load(field + 3), tl.load(field + 4)
    inside = at < num_rows
    tier = tl.zeros((ROWS,), tl.int64)
    if HAS_TIERS:
        tier = tl.load(tiers + at, mask=inside, other=0).to(tl.int64)
    count = tl.load(field + FIELDS + tier, mask=inside, other=0)
    mine = count > 0
    most = tl.max(count, 0)  # 0 where none of the rows has this subspace
    row = rows + at * dim + coordinate
    middle += tl.load(field + 6) * num_tiers + tier * width
    far = tl.zeros((ROWS,), tl.int32) > 0
    if not HAS_BIAS:
        length = tl.zeros((ROWS,), tl.float64)
        for t in range(0, width):
            apart = tl.load(row + t, mask=mine, other=0.0).to(tl.float64)
            apart -= tl.load(middle + t, mask=mine, other=0.0).to(tl.float64)
            length += apart * apart
        far = (length > FAR * tl.load(longest + s * num_tiers + tier)) & (length < float("inf"))
    best = tl.full((ROWS,), float("inf"), tl.float64)
    chosen = tl.full((ROWS,), MISSING, tl.int32)
    for start in range(0, most, CENTROIDS):
        k = start + tl.arange(0, CENTROIDS)
        read, there = k < most, k[None, :] < count[:, None]
        scores = tl.zeros((ROWS, CENTROIDS), tl.float64)
        if HAS_BIAS:
            scores += tl.load(bias + s * most + k, mask=read, other=0.0).to(tl.float64)[None, :]
        for t in range(0, width):
            x = tl.load(row + t, mask=mine, other=0.0).to(tl.float64)
            place = entry + t // piece * stride + k * piece + t % piece
            c = _centroid(book, units, steps, place, coordinate + t, read, HAS_STEPS).to(tl.float64)[None, :]
            if HAS_BIAS:
                scores = scores - x[:, None] * c
            else:
                m = tl.load(middle + t, mask=mine, other=0.0).to(tl.float64)
                left = tl.where(far, m, x)[:, None]
                right = tl.where(far, 2.0 * x - m, x)[:, None]
                scores = scores + (c - left) * (c - right)
        number = (scores == scores) & there
        usable = tl.where(number, scores, float("inf"))
        least = tl.min(usable, 1)
        first = tl.min(tl.where(number & (usable == least[:, None]), k[None, :].to(tl.int32), MISSING), 1)
        better = (first < MISSING) & ((least < best) | (chosen == MISSING))
        best, chosen = tl.where(better, least, best), tl.where(better, first, chosen)
    chosen = tl.where(chosen == MISSING, 0, chosen)
    tl.store(codes + at * num_codes + tl.load(field + 5), chosen, mask=mine)
    if DECODES:
        share = tl.zeros((ROWS,), tl.float32) + weight
        if HAS_WEIGHTS:
            share = tl.load(weights + at, mask=mine, other=0.0)
        total = tl.zeros((ROWS,), tl.float32)
        for t in range(0, width):
            x = tl.load(row + t, mask=mine, other=0.0)
            place = entry + t // piece * stride + chosen * piece + t % piece
            value = _number(book, units, steps, place, coordinate + t, mine, HAS_STEPS)
            c = value * tl.load(steps + coordinate + t) if HAS_STEPS else value
            error = share * (x - c)
            total += error * (x - c)
            tl.store(taken + at * dim + coordinate + t, value + (x - x), mask=mine)
            tl.store(errors + at * dim + coordinate + t, error, mask=mine)
        loss = factor * tl.sum(tl.reshape(tl.where(mine, total, 0.0), (ROWS // LOSS_ROWS, LOSS_ROWS)), 1)
        part = tl.program_id(0) * (ROWS // LOSS_ROWS) + tl.arange(0, ROWS // LOSS_ROWS)
        tl.store(losses + part * tl.num_programs(1) + s, loss, mask=part * LOSS_ROWS < num_rows)


@triton.jit(do_not_specialize=["num_rows", "dim", "num_codes", "num_tiers", "factor"])
def _scatter(
    errors,
    tiers,
    codes,
    units,
    searches,
    scale,
    sums,
    num_rows,
    dim,
    num_codes,
    num_tiers,
    factor,
    HAS_TIERS: tl.constexpr,
    HAS_UNITS: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    CENTROIDS: tl.constexpr,
):
    """Adds errors to the numbers that codes name: a program adds up those of a part of the rows for some centroids, so
    that what many rows choose is written once for all of them."""
    part = tl.program_id(0).to(tl.int64) * PART
    field = searches + tl.program_id(1) * (FIELDS + num_tiers)
    k = tl.program_id(2) * CENTROIDS + tl.arange(0, CENTROIDS)
    coordinate, width = tl.load(field), tl.load(field + 1)
    entry, piece, stride, column = tl.load(field + 2), tl.load(field + 3), tl.load(field + 4), tl.load(field + 5)
    for t in range(0, width):
        total = tl.zeros((CENTROIDS,), tl.float32)
        for start in range(0, tl.minimum(PART, num_rows - part).to(tl.int32), ROWS):
            at = part + start + tl.arange(0, ROWS)
            tier = tl.zeros((ROWS,), tl.int64)
            if HAS_TIERS:
                tier = tl.load(tiers + at, mask=at < num_rows, other=0).to(tl.int64)
            mine = (at < num_rows) & (tl.load(field + FIELDS + tier) > 0)
            code = tl.load(codes + at * num_codes + column, mask=mine, other=-1)
            error = tl.load(errors + at * dim + coordinate + t, mask=mine, other=0.0)
            total += tl.sum(tl.where(code[:, None] == k[None, :], error[:, None], 0.0), 0)
        total *= factor * tl.load(scale)
        if HAS_UNITS:
            total *= tl.load(units + coordinate + t)
        tl.atomic_add(sums + entry + t // piece * stride + k * piece + t % piece, total, mask=total != 0.0)


class Nearest(NamedTuple):
    """Rows through their codes; see :func:`nearest`."""

    codes: Tensor
    taken: Tensor
    errors: Tensor
    loss: Tensor


@on_its_gpu
def nearest(
    rows: Tensor,
    tiers: Tensor | None,
    book: Tensor,
    searches: Searches,
    weights: Tensor | float,
    factor: float,
    steps: tuple[Tensor, Tensor] | None = None,
) -> Nearest:
    """Codes of rows, and how far what they name is from the rows.

    Args:
        rows: float32 (n, L), contiguous.
        tiers: integers (n,), each row's tier; None where there is one.
        book: float32, contiguous: the flat codebooks.
        searches: where each tier's centroids are in them.
        weights: float32 (n,), or one number for all rows.
        factor: what the loss is multiplied with.
        steps: float32 (L,) each, units and steps: a centroid is its numbers times the units, in whole steps.

    Returns:
        codes int32 (n, D), of which rows of a tier of fewer subspaces fill the first ones; the numbers that they name
        (n, L), in steps if there are any, NaN where the row is not finite; the rows' errors times the weights (n, L);
        and the sum of weighted squares, a float32 scalar.
    """
    n = rows.shape[0]
    codes = torch.empty((n, searches.num_codes), dtype=torch.int32, device=rows.device)
    losses = rows.new_empty((triton.cdiv(n, LOSS_ROWS.value), len(searches.all)))
    made = torch.empty_like(rows), torch.empty_like(rows), losses
    _search(rows, tiers, book, searches, codes, steps=steps, made=made, weights=weights, factor=factor)
    taken, errors, _ = made
    return Nearest(codes, taken, errors, losses.sum())


@on_its_gpu
def assign(
    rows: Tensor,
    book: Tensor,
    widths: Sequence[int],
    room: Sequence[int],
    counts: Sequence[int],
    bias: Tensor | None = None,
) -> Tensor:
    """Codes int32 (n, D) of the nearest centroids; see :func:`mgqe.ops.assign` and :func:`mgqe.ops.assign_mixed`.

    Args:
        rows: float32 (n, L), contiguous.
        book: float32, contiguous: the subspaces' centroids one after another, ``room[j]`` of ``widths[j]`` numbers.
        widths: of each subspace, summing to L.
        room: of each subspace, how many centroids the book holds.
        counts: of each subspace, among how many of them its code chooses, 1 to ``room[j]``.
        bias: float32 (D, K), contiguous, where all subspaces have K centroids; or None.
    """
    codes = torch.empty((rows.shape[0], len(widths)), dtype=torch.int32, device=rows.device)
    _search(rows, None, book, _one_tier(tuple(widths), tuple(room), tuple(counts)), codes, bias)
    return codes


@lru_cache(maxsize=256)
def _one_tier(widths: tuple[int, ...], room: tuple[int, ...], counts: tuple[int, ...]) -> Searches:
    entries = list(accumulate((w * k for w, k in zip(widths, room, strict=True)), initial=0))
    starts = accumulate(widths, initial=0)
    fields = enumerate(zip(starts, widths, entries, counts, strict=False))
    return Searches(tuple(Search(at, w, e, w, 0, j, (k,)) for j, (at, w, e, k) in fields), len(widths), entries[-1])


def _search(
    rows: Tensor,
    tiers: Tensor | None,
    book: Tensor,
    searches: Searches,
    codes: Tensor,
    bias: Tensor | None = None,
    steps: tuple[Tensor, Tensor] | None = None,
    made: tuple[Tensor, Tensor, Tensor] | None = None,
    weights: Tensor | float = 0.0,
    factor: float = 1.0,
) -> None:
    """Fills in the codes, and what else is ``made``: the numbers named, the errors and the losses."""
    (n, length), number, num_tiers = rows.shape, len(searches.all), searches.num_tiers
    if n == 0:
        return
    table = search_table(searches, rows.device)
    middle = rows.new_empty(num_tiers * sum(search.width for search in searches.all))
    longest = torch.empty(number * num_tiers, dtype=torch.float64, device=rows.device)
    given = (book, *(steps or (book, book)), table, middle, longest)
    if bias is None:
        has_steps = steps is not None
        _frame[(number, num_tiers)](*given, num_tiers, HAS_STEPS=has_steps, BLOCK=256, enable_fp_fusion=False)
    _nearest[lambda shape: (triton.cdiv(n, shape["ROWS"]), number)](
        rows,
        rows if tiers is None else tiers,
        book,
        book if bias is None else bias,
        *given[1:],
        weights if isinstance(weights, Tensor) else rows,
        codes,
        *(made or (rows, rows, rows)),
        n,
        length,
        searches.num_codes,
        num_tiers,
        0.0 if isinstance(weights, Tensor) else weights,
        factor,
        HAS_BIAS=bias is not None,
        HAS_TIERS=tiers is not None,
        HAS_STEPS=steps is not None,
        HAS_WEIGHTS=isinstance(weights, Tensor),
        DECODES=made is not None,
        CENTROIDS=_block(searches),
        enable_fp_fusion=False,
    )


@on_its_gpu
def scatter(
    errors: Tensor,
    tiers: Tensor | None,
    codes: Tensor,
    searches: Searches,
    scale: Tensor,
    factor: float,
    units: Tensor | None = None,
    size: int | None = None,
) -> Tensor:
    """Sums of errors (n, L) by the numbers that codes name, times a scalar, a factor, and units (L,) if there are any.

    Returns:
        float32 (size,), zeros beyond the codebooks' numbers; by default of their number.
    """
    (n, length), number = errors.shape, len(searches.all)
    sums = errors.new_zeros(searches.num_numbers if size is None else size)
    block = _block(searches)
    if n:
        _scatter[(triton.cdiv(n, PART), number, triton.cdiv(searches.most, block))](
            errors,
            errors if tiers is None else tiers,
            codes,
            errors if units is None else units,
            search_table(searches, errors.device),
            scale,
            sums,
            n,
            length,
            searches.num_codes,
            searches.num_tiers,
            factor,
            HAS_TIERS=tiers is not None,
            HAS_UNITS=units is not None,
            PART=PART,
            ROWS=ROWS,
            CENTROIDS=block,
        )
    return sums


def _block(searches: Searches) -> int:
    return max(16, min(CENTROIDS, 1 << (searches.most - 1).bit_length()))
