"""Nearest centroids, distances and their argmin in one kernel: no tensor of distances is written.

The arithmetic is that of the torch twin, operation for operation, in double precision, so that codes are the same to
the last one: ties go to the lowest index, NaN loses against every number, and nothing but NaN gives 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64  # of a program
CENTROIDS = 64  # that a program compares at a time; fewer where there are fewer
FAR = tl.constexpr(2.0**40)  # of mgqe.ops.reference
MISSING = tl.constexpr(1 << 30)  # a code that no centroid has


@triton.jit
def _middle(book, coordinates, middle, BLOCK: tl.constexpr):
    """Of each coordinate: the middle between the least and the greatest of its finite numbers."""
    at = tl.program_id(0)
    first, width = tl.load(coordinates + 3 * at), tl.load(coordinates + 3 * at + 1)
    count = tl.load(coordinates + 3 * at + 2)
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, count, BLOCK):
        k = start + tl.arange(0, BLOCK)
        value = tl.load(book + first + k * width, mask=k < count, other=0.0)
        finite = tl.where(tl.abs(value) < float("inf"), value, 0.0)
        low = tl.minimum(low, tl.where(k < count, finite, float("inf")))
        high = tl.maximum(high, tl.where(k < count, finite, float("-inf")))
    tl.store(middle + at, 0.5 * tl.min(low, 0) + 0.5 * tl.max(high, 0))


@triton.jit
def _longest(book, subspaces, middle, longest, BLOCK: tl.constexpr):
    """Of each subspace: the greatest squared distance of a centroid from the middle."""
    j = tl.program_id(0)
    coordinate, width = tl.load(subspaces + 4 * j), tl.load(subspaces + 4 * j + 1)
    entry, count = tl.load(subspaces + 4 * j + 2), tl.load(subspaces + 4 * j + 3)
    most = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        k = start + tl.arange(0, BLOCK)
        length = tl.zeros((BLOCK,), tl.float64)
        for t in range(0, width):
            value = tl.load(book + entry + k * width + t, mask=k < count, other=0.0)
            finite = tl.where(tl.abs(value) < float("inf"), value, 0.0).to(tl.float64)
            apart = finite - tl.load(middle + coordinate + t).to(tl.float64)
            length += apart * apart
        most = tl.maximum(most, tl.where(k < count, length, 0.0))
    tl.store(longest + j, tl.max(most, 0))


@triton.jit(do_not_specialize=["num_rows", "dim", "num_subspaces"])
def _nearest(
    rows,
    dim,
    book,
    bias,
    subspaces,
    middle,
    longest,
    codes,
    num_rows,
    num_subspaces,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    CENTROIDS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1)
    coordinate, width = tl.load(subspaces + 4 * j), tl.load(subspaces + 4 * j + 1)
    entry, count = tl.load(subspaces + 4 * j + 2), tl.load(subspaces + 4 * j + 3)
    inside = at < num_rows
    row = rows + at * dim + coordinate
    far = tl.zeros((ROWS,), tl.int32) > 0
    if not HAS_BIAS:
        length = tl.zeros((ROWS,), tl.float64)
        for t in range(0, width):
            apart = tl.load(row + t, mask=inside, other=0.0).to(tl.float64)
            apart -= tl.load(middle + coordinate + t).to(tl.float64)
            length += apart * apart
        far = (length > FAR * tl.load(longest + j)) & (length < float("inf"))
    best = tl.full((ROWS,), float("inf"), tl.float64)
    chosen = tl.full((ROWS,), MISSING, tl.int32)
    for start in range(0, count, CENTROIDS):
        k = start + tl.arange(0, CENTROIDS)
        there = k < count
        scores = tl.zeros((ROWS, CENTROIDS), tl.float64)
        if HAS_BIAS:
            scores += tl.load(bias + j * count + k, mask=there, other=0.0).to(tl.float64)[None, :]
        for t in range(0, width):
            x = tl.load(row + t, mask=inside, other=0.0).to(tl.float64)
            c = tl.load(book + entry + k * width + t, mask=there, other=0.0).to(tl.float64)[None, :]
            if HAS_BIAS:
                scores = scores - x[:, None] * c
            else:
                m = tl.load(middle + coordinate + t).to(tl.float64)
                left = tl.where(far, m, x)[:, None]
                right = tl.where(far, 2.0 * x - m, x)[:, None]
                scores = scores + (c - left) * (c - right)
        number = (scores == scores) & there[None, :]
        usable = tl.where(number, scores, float("inf"))
        least = tl.min(usable, 1)
        first = tl.min(tl.where(number & (usable == least[:, None]), k[None, :].to(tl.int32), MISSING), 1)
        better = (first < MISSING) & ((least < best) | (chosen == MISSING))
        best, chosen = tl.where(better, least, best), tl.where(better, first, chosen)
    tl.store(codes + at * num_subspaces + j, tl.where(chosen == MISSING, 0, chosen), mask=inside)


@lru_cache(maxsize=256)
def _shapes(
    widths: tuple[int, ...], room: tuple[int, ...], counts: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Of each coordinate (L, 3): its number in centroid 0, width, count; of each subspace (D, 4)."""
    entries = list(accumulate((w * k for w, k in zip(widths, room, strict=True)), initial=0))
    starts = list(accumulate(widths, initial=0))
    coordinates = [(entry + t, w, k) for entry, w, k in zip(entries, widths, counts, strict=False) for t in range(w)]
    subspaces = list(zip(starts, widths, entries, counts, strict=False))
    return torch.tensor(coordinates, device=device), torch.tensor(subspaces, device=device)


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
    n, length = rows.shape
    coordinates, subspaces = _shapes(tuple(widths), tuple(room), tuple(counts), rows.device)
    codes = torch.empty((n, len(widths)), dtype=torch.int32, device=rows.device)
    if n == 0:
        return codes
    block = max(16, min(CENTROIDS, triton.next_power_of_2(max(counts))))
    middle = torch.empty(length, dtype=torch.float32, device=rows.device)
    longest = torch.empty(len(widths), dtype=torch.float64, device=rows.device)
    if bias is None:
        _middle[(length,)](book, coordinates, middle, BLOCK=256, enable_fp_fusion=False)
        _longest[(len(widths),)](book, subspaces, middle, longest, BLOCK=256, enable_fp_fusion=False)
    _nearest[(triton.cdiv(n, ROWS), len(widths))](
        rows,
        length,
        book,
        book if bias is None else bias,
        subspaces,
        middle,
        longest,
        codes,
        n,
        len(widths),
        HAS_BIAS=bias is not None,
        ROWS=ROWS,
        CENTROIDS=block,
        enable_fp_fusion=False,
    )
    return codes
