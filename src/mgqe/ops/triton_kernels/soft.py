"""Steps of DPQ-SX for all subspaces and tiers at once: no tensor of responses, (n, D, K), is written.

Responses are linear in rows, so that their statistics follow from those of the rows: with the mean m and the
covariance C of a subspace's rows, a key k has mean responses <m, k> and variance <k, C k>. What the softmax gives back
to keys is summed up by kernels; how the statistics depend on rows and keys is a correction of rank one for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mgqe.ops.layout.searches import Searches, search_table
from mgqe.ops.triton_kernels.on_device import on_its_gpu

ROWS = 64  # of a program
CENTROIDS = 64  # that a program compares at a time; fewer where there are fewer
PART = 1024  # rows whose moments a program adds up
FIELDS = tl.constexpr(7)  # of a search, before its counts; see mgqe.ops.layout.searches.search_table
MISSING = tl.constexpr(1 << 30)  # a code that no centroid has
LOWEST = tl.constexpr(-3.0e38)  # below all responses, and a number


@triton.jit(do_not_specialize=["num_rows", "dim", "num_tiers", "span"])
def _moments(
    rows,
    tiers,
    counts,
    searches,
    partial,
    num_rows,
    dim,
    num_tiers,
    span,
    HAS_TIERS: tl.constexpr,
    HAS_COUNTS: tl.constexpr,
    PART: tl.constexpr,
):
    """Of a part of the rows, for each search and tier: their number, and sums of numbers and of products of two."""
    part, s, tier = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    at = part * PART + tl.arange(0, PART)
    field = searches + s * (FIELDS + num_tiers)
    coordinate, width = tl.load(field), tl.load(field + 1)
    mine = at < tl.where(tl.load(field + FIELDS + tier) > 0, num_rows, 0)
    if HAS_TIERS:
        mine = mine & (tl.load(tiers + at, mask=mine, other=0).to(tl.int32) == tier)
    if HAS_COUNTS:
        mine = mine & (tl.load(counts + at, mask=mine, other=0) > 0)
    out = partial + ((part * tl.num_programs(1) + s) * num_tiers + tier) * span
    row = rows + at * dim + coordinate
    tl.store(out, tl.sum(mine.to(tl.float64), 0))
    for t in range(0, width):
        x = tl.load(row + t, mask=mine, other=0.0).to(tl.float64)
        tl.store(out + 1 + t, tl.sum(x, 0))
        for u in range(0, width):
            y = tl.load(row + u, mask=mine, other=0.0).to(tl.float64)
            tl.store(out + 1 + width + t * width + u, tl.sum(x * y, 0))


@triton.jit
def _covariance(moments, size, width, t, u):
    mean = tl.load(moments + 1 + t) / size * (tl.load(moments + 1 + u) / size)
    return (tl.load(moments + 1 + width + t * width + u) / size - mean).to(tl.float32)


@triton.jit(do_not_specialize=["tier", "num_tiers", "most", "span", "momentum", "eps"])
def _fold(
    keys,
    searches,
    moments,
    running_mean,
    running_variance,
    means,
    scales,
    tier,
    num_tiers,
    most,
    span,
    momentum,
    eps,
    CENTROIDS: tl.constexpr,
):
    """Of a tier, for each key: the mean of its responses, and one by their standard deviation. A batch of one row has
    none, and takes the running ones, which others move."""
    s = tl.program_id(0)
    field = searches + s * (FIELDS + num_tiers)
    width, entry, piece, stride = tl.load(field + 1), tl.load(field + 2), tl.load(field + 3), tl.load(field + 4)
    count = tl.load(field + FIELDS + tier)
    moments += (s * num_tiers + tier) * span
    size = tl.load(moments)
    several = size > 1.0
    least = tl.maximum(size, 1.0)
    for start in range(0, count, CENTROIDS):
        k = start + tl.arange(0, CENTROIDS)
        there, moves = k < count, k < tl.where(several, count, 0)
        mean, variance = tl.zeros((CENTROIDS,), tl.float32), tl.zeros((CENTROIDS,), tl.float32)
        for t in range(0, width):
            a = tl.load(keys + entry + t // piece * stride + k * piece + t % piece, mask=there, other=0.0)
            mean += a * (tl.load(moments + 1 + t) / least).to(tl.float32)
            for u in range(0, width):
                b = tl.load(keys + entry + u // piece * stride + k * piece + u % piece, mask=there, other=0.0)
                variance += a * b * _covariance(moments, least, width, t, u)
        variance = tl.where(variance < 0.0, 0.0, variance)
        running = tl.load(field + 5) * count + k
        old_mean = tl.load(running_mean + running, mask=there, other=0.0).to(tl.float32)
        old_variance = tl.load(running_variance + running, mask=there, other=0.0).to(tl.float32)
        unbiased = variance * (least / tl.maximum(size - 1.0, 1.0)).to(tl.float32)
        tl.store(running_mean + running, old_mean + momentum * (mean - old_mean), mask=moves)
        tl.store(running_variance + running, old_variance + momentum * (unbiased - old_variance), mask=moves)
        out = (tier * tl.num_programs(0) + s) * most + k
        tl.store(means + out, tl.where(several, mean, old_mean), mask=there)
        tl.store(scales + out, 1.0 / tl.sqrt(tl.where(several, variance, old_variance) + eps), mask=there)


@triton.jit
def _products(row, book, entry, piece, stride, width, mine, k, used):
    """Inner products (ROWS, CENTROIDS) of rows with the entries k of a codebook."""
    dots = tl.zeros((mine.shape[0], k.shape[0]), tl.float32)
    for t in range(0, width):
        x = tl.load(row + t, mask=mine, other=0.0)
        c = tl.load(book + entry + t // piece * stride + k * piece + t % piece, mask=used, other=0.0)
        dots += x[:, None] * c[None, :]
    return dots


@triton.jit
def _logits(row, keys, means, scales, entry, piece, stride, width, mine, k, read, stat):
    """Normalised responses (ROWS, CENTROIDS) of rows to keys k."""
    mean, scale = tl.load(means + stat, mask=read, other=0.0), tl.load(scales + stat, mask=read, other=0.0)
    used = tl.max(read.to(tl.int32), 0) > 0
    return (_products(row, keys, entry, piece, stride, width, mine, k, used) - mean) * scale


@triton.jit(do_not_specialize=["num_rows", "dim", "out_dim", "num_codes", "num_tiers", "most"])
def _choose(
    rows,
    tiers,
    keys,
    values,
    searches,
    value_searches,
    means,
    scales,
    codes,
    vectors,
    sums,
    num_rows,
    dim,
    out_dim,
    num_codes,
    num_tiers,
    most,
    HAS_TIERS: tl.constexpr,
    ROWS: tl.constexpr,
    CENTROIDS: tl.constexpr,
):
    """The key of the largest normalised response, its value, and the logarithm of the sum of their exponentials."""
    at, s = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    number = tl.num_programs(1)
    field = searches + s * (FIELDS + num_tiers)
    width, entry, piece, stride = tl.load(field + 1), tl.load(field + 2), tl.load(field + 3), tl.load(field + 4)
    inside = at < num_rows
    tier = tl.zeros((ROWS,), tl.int64)
    if HAS_TIERS:
        tier = tl.load(tiers + at, mask=inside, other=0).to(tl.int64)
    count = tl.load(field + FIELDS + tier, mask=inside, other=0)
    mine = count > 0
    row = rows + at * dim + tl.load(field)
    best, total = tl.full((ROWS,), LOWEST, tl.float32), tl.zeros((ROWS,), tl.float32)
    chosen = tl.full((ROWS,), MISSING, tl.int32)
    for start in range(0, tl.max(count, 0), CENTROIDS):
        k = start + tl.arange(0, CENTROIDS)
        there = k[None, :] < count[:, None]
        stat = (tier[:, None] * number + s) * most + k[None, :]
        logit = _logits(row, keys, means, scales, entry, piece, stride, width, mine, k, there, stat)
        usable = tl.where(there & (logit == logit), logit, float("-inf"))
        top = tl.max(usable, 1)
        equal = there & (logit == logit) & (usable == top[:, None])
        first = tl.min(tl.where(equal, k[None, :].to(tl.int32), MISSING), 1)
        better = (first < MISSING) & ((top > best) | (chosen == MISSING))
        chosen = tl.where(better, first, chosen)
        higher = tl.maximum(best, top)
        total = total * tl.exp(best - higher) + tl.sum(tl.where(there, tl.exp(logit - higher[:, None]), 0.0), 1)
        best = higher
    chosen = tl.where(chosen == MISSING, 0, chosen)
    tl.store(codes + at * num_codes + tl.load(field + 5), chosen, mask=mine)
    tl.store(sums + at * number + s, best + tl.log(tl.where(mine, total, 1.0)), mask=mine)
    not_finite = tl.zeros((ROWS,), tl.float32)
    for t in range(0, width):
        x = tl.load(row + t, mask=mine, other=0.0)
        not_finite += x - x
    field = value_searches + s * (FIELDS + num_tiers)
    width, entry, piece, stride = tl.load(field + 1), tl.load(field + 2), tl.load(field + 3), tl.load(field + 4)
    out = vectors + at * out_dim + tl.load(field)
    for t in range(0, width):
        value = tl.load(values + entry + t // piece * stride + chosen * piece + t % piece, mask=mine, other=0.0)
        tl.store(out + t, value + not_finite, mask=mine)


@triton.jit(do_not_specialize=["num_rows", "dim", "out_dim", "num_tiers", "most", "room"])
def _soften(
    rows,
    tiers,
    keys,
    values,
    searches,
    value_searches,
    means,
    scales,
    sums,
    grad,
    of_keys,
    of_rows,
    num_rows,
    dim,
    out_dim,
    num_tiers,
    most,
    room,
    HAS_TIERS: tl.constexpr,
    ROWS: tl.constexpr,
    CENTROIDS: tl.constexpr,
):
    """Back through the softmax. h, the gradient of normalised responses: its sums with the rows, for each tier and key,
    and with the keys, for each row."""
    at, s = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    number = tl.num_programs(1)
    field = searches + s * (FIELDS + num_tiers)
    width, entry, piece, stride = tl.load(field + 1), tl.load(field + 2), tl.load(field + 3), tl.load(field + 4)
    other = value_searches + s * (FIELDS + num_tiers)
    v_width, v_entry, v_piece, v_stride = (
        tl.load(other + 1),
        tl.load(other + 2),
        tl.load(other + 3),
        tl.load(other + 4),
    )
    inside = at < num_rows
    tier = tl.zeros((ROWS,), tl.int64)
    if HAS_TIERS:
        tier = tl.load(tiers + at, mask=inside, other=0).to(tl.int64)
    count = tl.load(field + FIELDS + tier, mask=inside, other=0)
    mine = count > 0
    row, back = rows + at * dim + tl.load(field), of_rows + at * dim + tl.load(field)
    given = grad + at * out_dim + tl.load(other)
    total = tl.load(sums + at * number + s, mask=mine, other=0.0)
    last = tl.max(count, 0)
    average = tl.zeros((ROWS,), tl.float32)
    for start in range(0, last, CENTROIDS):
        k = start + tl.arange(0, CENTROIDS)
        there = k[None, :] < count[:, None]
        stat = (tier[:, None] * number + s) * most + k[None, :]
        logit = _logits(row, keys, means, scales, entry, piece, stride, width, mine, k, there, stat)
        share = tl.where(there, tl.exp(logit - total[:, None]), 0.0)
        gain = _products(given, values, v_entry, v_piece, v_stride, v_width, mine, k, k < last)
        average += tl.sum(share * gain, 1)
    for start in range(0, last, CENTROIDS):
        k = start + tl.arange(0, CENTROIDS)
        there = k[None, :] < count[:, None]
        stat = (tier[:, None] * number + s) * most + k[None, :]
        logit = _logits(row, keys, means, scales, entry, piece, stride, width, mine, k, there, stat)
        share = tl.where(there, tl.exp(logit - total[:, None]), 0.0)
        gain = _products(given, values, v_entry, v_piece, v_stride, v_width, mine, k, k < last)
        h = share * (gain - average[:, None])
        scaled = h * tl.load(scales + stat, mask=there, other=0.0)
        for t in range(0, width):
            c = tl.load(keys + entry + t // piece * stride + k * piece + t % piece, mask=k < last, other=0.0)
            tl.atomic_add(back + t, tl.sum(scaled * c[None, :], 1), mask=mine)
        for g in range(0, num_tiers):
            of_tier = tl.where((tier == g)[:, None], h, 0.0)
            out = of_keys + ((g * number + s) * most + k) * room
            sum_of_h = tl.sum(of_tier, 0)
            tl.atomic_add(out, sum_of_h, mask=sum_of_h != 0.0)
            for t in range(0, width):
                x = tl.load(row + t, mask=mine, other=0.0)
                product = tl.sum(of_tier * x[:, None], 0)
                tl.atomic_add(out + 1 + t, product, mask=product != 0.0)


@triton.jit(do_not_specialize=["num_tiers", "most", "span", "room"])
def _unfold(
    keys,
    searches,
    moments,
    means,
    scales,
    of_keys,
    grad_keys,
    pulls,
    num_tiers,
    most,
    span,
    room,
    CENTROIDS: tl.constexpr,
):
    """Of each search and tier: the keys' gradient, through the statistics, too; and the vector u and the matrix W by
    which these pull at a row q: by its share times u + W (q - mean)."""
    s, tier = tl.program_id(0), tl.program_id(1)
    number = tl.num_programs(0)
    field = searches + s * (FIELDS + num_tiers)
    width, entry, piece, stride = tl.load(field + 1), tl.load(field + 2), tl.load(field + 3), tl.load(field + 4)
    count = tl.load(field + FIELDS + tier)
    moments += (s * num_tiers + tier) * span
    pulls += (s * num_tiers + tier) * span
    size = tl.load(moments)
    several = tl.where(size > 1.0, 1.0, 0.0)
    least = tl.maximum(size, 1.0)
    for t in range(0, width):
        u_t = tl.zeros((CENTROIDS,), tl.float32)
        for start in range(0, count, CENTROIDS):
            k = start + tl.arange(0, CENTROIDS)
            there = k < count
            at = (tier * number + s) * most + k
            mean, scale = tl.load(means + at, mask=there, other=0.0), tl.load(scales + at, mask=there, other=0.0)
            sums = of_keys + at * room
            h = tl.load(sums, mask=there, other=0.0)
            along = -mean * h
            spread = tl.zeros((CENTROIDS,), tl.float32)
            for u in range(0, width):
                c = tl.load(keys + entry + u // piece * stride + k * piece + u % piece, mask=there, other=0.0)
                along += tl.load(sums + 1 + u, mask=there, other=0.0) * c
                spread += c * _covariance(moments, least, width, t, u)
            along *= scale  # the sum of h times the normalised responses
            of_mean = (tl.load(moments + 1 + t) / least).to(tl.float32)
            through = several.to(tl.float32) * (h * of_mean + along * scale * spread)
            change = scale * (tl.load(sums + 1 + t, mask=there, other=0.0) - through)
            place = entry + t // piece * stride + k * piece + t % piece
            tl.atomic_add(grad_keys + place, change, mask=there)
            u_t += scale * h * tl.load(keys + place, mask=there, other=0.0)
        tl.store(pulls + 1 + t, tl.sum(u_t, 0) * several.to(tl.float32))
        for v in range(0, width):
            w_tv = tl.zeros((CENTROIDS,), tl.float32)
            for start in range(0, count, CENTROIDS):
                k = start + tl.arange(0, CENTROIDS)
                there = k < count
                at = (tier * number + s) * most + k
                mean, scale = tl.load(means + at, mask=there, other=0.0), tl.load(scales + at, mask=there, other=0.0)
                sums = of_keys + at * room
                along = -mean * tl.load(sums, mask=there, other=0.0)
                for u in range(0, width):
                    c = tl.load(keys + entry + u // piece * stride + k * piece + u % piece, mask=there, other=0.0)
                    along += tl.load(sums + 1 + u, mask=there, other=0.0) * c
                a = tl.load(keys + entry + t // piece * stride + k * piece + t % piece, mask=there, other=0.0)
                b = tl.load(keys + entry + v // piece * stride + k * piece + v % piece, mask=there, other=0.0)
                w_tv += scale * scale * scale * along * a * b
            tl.store(pulls + 1 + width + t * width + v, tl.sum(w_tv, 0) * several.to(tl.float32))


@triton.jit(do_not_specialize=["num_rows", "dim", "num_tiers", "span"])
def _settle(
    rows,
    tiers,
    counts,
    searches,
    moments,
    pulls,
    of_rows,
    num_rows,
    dim,
    num_tiers,
    span,
    HAS_TIERS: tl.constexpr,
    HAS_COUNTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Takes from each row's gradient what the statistics pull at it."""
    at, s = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    field = searches + s * (FIELDS + num_tiers)
    coordinate, width = tl.load(field), tl.load(field + 1)
    inside = at < num_rows
    tier = tl.zeros((ROWS,), tl.int64)
    if HAS_TIERS:
        tier = tl.load(tiers + at, mask=inside, other=0).to(tl.int64)
    mine = inside & (tl.load(field + FIELDS + tier, mask=inside, other=0) > 0)
    if HAS_COUNTS:
        mine = mine & (tl.load(counts + at, mask=mine, other=0) > 0)
    first = (s * num_tiers + tier) * span
    size = tl.load(moments + first, mask=mine, other=1.0)
    row = rows + at * dim + coordinate
    for t in range(0, width):
        pull = tl.load(pulls + first + 1 + t, mask=mine, other=0.0)
        for u in range(0, width):
            mean = (tl.load(moments + first + 1 + u, mask=mine, other=0.0) / size).to(tl.float32)
            apart = tl.load(row + u, mask=mine, other=0.0) - mean
            pull += tl.load(pulls + first + 1 + width + t * width + u, mask=mine, other=0.0) * apart
        tl.atomic_add(of_rows + at * dim + coordinate + t, -pull / size.to(tl.float32), mask=mine)


class SoftChoice(NamedTuple):
    """Rows through the keys that win a softmax; see :func:`choose_softly`."""

    codes: Tensor
    vectors: Tensor
    moments: Tensor
    means: Tensor
    scales: Tensor
    sums: Tensor


@on_its_gpu
def choose_softly(
    rows: Tensor,
    tiers: Tensor | None,
    counts: Tensor | None,
    keys: Tensor,
    values: Tensor,
    searches: tuple[Searches, Searches],
    running: Sequence[tuple[Tensor, Tensor]],
    momentum: float,
    eps: float,
) -> SoftChoice:
    """Codes of rows in training, by responses that are normalised by their own statistics.

    Args:
        rows: float32 (n, L), contiguous.
        tiers: integers (n,), each row's tier; None where there is one.
        counts: int64 (n,), 0 for rows that the statistics leave out; None: none is.
        keys, values: float32, flat and contiguous.
        searches: of keys, and of values, in one order.
        running: of each tier, mean and variance of responses (D_g, K_g), moved in place.
        momentum: how far the running statistics move.
        eps: what is added to variances.

    Returns:
        codes int32 (n, D); the values that they name (n, L'), NaN where the row is not finite; and what
        :func:`soft_gradients` needs.
    """
    of_keys, of_values = searches
    (n, length), number, num_tiers = rows.shape, len(of_keys.all), of_keys.num_tiers
    table, value_table = search_table(of_keys, rows.device), search_table(of_values, rows.device)
    span, most, block = of_keys.num_moments, of_keys.most, _block(of_keys)
    partial = torch.zeros((triton.cdiv(n, PART), number, num_tiers, span), dtype=torch.float64, device=rows.device)
    given = {"HAS_TIERS": tiers is not None, "HAS_COUNTS": counts is not None}
    tiers, counts = (rows if each is None else each for each in (tiers, counts))
    if n:
        _moments[(partial.shape[0], number, num_tiers)](
            rows, tiers, counts, table, partial, n, length, num_tiers, span, **given, PART=PART
        )
    moments = partial.sum(0)
    means, scales = (rows.new_empty((num_tiers, number, most)) for _ in range(2))
    for tier, (mean, variance) in enumerate(running):
        _fold[(number,)](
            keys, table, moments, mean, variance, means, scales, tier, num_tiers, most, span, momentum, eps,
            CENTROIDS=block,
        )  # fmt: skip
    out_dim = of_values.length
    codes = torch.empty((n, of_keys.num_codes), dtype=torch.int32, device=rows.device)
    vectors, sums = rows.new_empty((n, out_dim)), rows.new_empty((n, number))
    if n:
        _choose[(triton.cdiv(n, ROWS), number)](
            rows, tiers, keys, values, table, value_table, means, scales, codes, vectors, sums,
            n, length, out_dim, of_keys.num_codes, num_tiers, most,
            HAS_TIERS=given["HAS_TIERS"], ROWS=ROWS, CENTROIDS=block,
        )  # fmt: skip
    return SoftChoice(codes, vectors, moments, means, scales, sums)


@on_its_gpu
def soft_gradients(
    made: SoftChoice,
    grad: Tensor,
    rows: Tensor,
    tiers: Tensor | None,
    counts: Tensor | None,
    keys: Tensor,
    values: Tensor,
    searches: tuple[Searches, Searches],
) -> tuple[Tensor, Tensor]:
    """The gradients of rows (n, L) and of flat keys, of the vectors' float32 (n, L'), contiguous.

    Other arguments are those of :func:`choose_softly`.
    """
    of_keys, of_values = searches
    (n, length), number, num_tiers = rows.shape, len(of_keys.all), of_keys.num_tiers
    table, value_table = search_table(of_keys, rows.device), search_table(of_values, rows.device)
    span, most, block = of_keys.num_moments, of_keys.most, _block(of_keys)
    room = 1 + max(search.width for search in of_keys.all)
    sums_of_keys = rows.new_zeros((num_tiers, number, most, room))
    of_rows, grad_keys = torch.zeros_like(rows), torch.zeros_like(keys)
    given = {"HAS_TIERS": tiers is not None, "HAS_COUNTS": counts is not None}
    tiers, counts = (rows if each is None else each for each in (tiers, counts))
    if n == 0:
        return of_rows, grad_keys
    _soften[(triton.cdiv(n, ROWS), number)](
        rows, tiers, keys, values, table, value_table, made.means, made.scales, made.sums, grad, sums_of_keys, of_rows,
        n, length, grad.shape[1], num_tiers, most, room,
        HAS_TIERS=given["HAS_TIERS"], ROWS=ROWS, CENTROIDS=block,
    )  # fmt: skip
    pulls = rows.new_empty((number, num_tiers, span))
    _unfold[(number, num_tiers)](
        keys, table, made.moments, made.means, made.scales, sums_of_keys, grad_keys, pulls,
        num_tiers, most, span, room, CENTROIDS=block,
    )  # fmt: skip
    _settle[(triton.cdiv(n, ROWS), number)](
        rows, tiers, counts, table, made.moments, pulls, of_rows, n, length, num_tiers, span, **given, ROWS=ROWS
    )
    return of_rows, grad_keys


def _block(searches: Searches) -> int:
    return max(16, min(CENTROIDS, 1 << (searches.most - 1).bit_length()))
