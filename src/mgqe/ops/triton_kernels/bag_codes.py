"""Bags of frozen rows straight from packed codes: what the codes name is summed, and multiplied once per bag."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mgqe.ops.triton_kernels.codes import read_numbers
from mgqe.ops.triton_kernels.lookup import GpuTable
from mgqe.ops.triton_kernels.on_device import on_its_gpu
from mgqe.ops.triton_kernels.tuning import tuned

MAX_COORDINATES, MAX_COLUMNS = 64, 128  # of a program, at a time


@triton.jit
def _sums(
    ids,
    tiers,
    places,
    addresses,
    row_bytes,
    fields,
    book,
    weights,
    begin,
    end,
    coordinate,
    length,
    padding_idx,
    IS_MEAN: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    """Of bags (BAGS,): sums or means of what codes name at coordinates (C,), and of the ids' weights, 1 for none.

    The l-th ids of all bags together: each bag adds in the order of its ids. What is masked adds 0.
    """
    sums = tl.zeros((begin.shape[0], coordinate.shape[0]), tl.float32)
    shares = tl.zeros(begin.shape, tl.float32)
    counted = tl.zeros(begin.shape, tl.int64)
    for step in range(0, tl.max(end - begin, 0)):
        at = begin + step
        counts = at < end
        counts = counts & (tl.load(ids + at, mask=counts, other=0) != padding_idx)
        tier = tl.load(tiers + at, mask=counts, other=0)
        place = tl.load(places + at, mask=counts, other=0)
        value = read_numbers(addresses, row_bytes, fields, book, tier, place, counts, coordinate, length)
        value = value.to(tl.float32)
        weight = counts.to(tl.float32)
        if HAS_WEIGHTS:
            weight = tl.load(weights + at, mask=counts, other=0.0)
            value = value * weight[:, None]
        sums += value
        shares += weight
        counted += counts.to(tl.int64)
    if IS_MEAN:
        number = tl.maximum(counted, 1).to(tl.float32)
        shares = tl.div_rn(shares, number)
        sums = tl.div_rn(sums, number[:, None] + tl.zeros_like(sums))
    return sums, shares


@tuned(
    {"BAGS": 8, "num_warps": 4},
    {"BAGS": 4, "num_warps": 4},
    {"BAGS": 16, "num_warps": 4},
    {"BAGS": 16, "num_warps": 8},
    key=("length", "dim", "HAS_MATRIX", "HAS_SCALES"),
    rows="num_ids",
)
@triton.jit(do_not_specialize=["num_ids", "num_bags", "length", "dim", "padding_idx"])
def _bag_codes(
    ids,
    tiers,
    places,
    addresses,
    row_bytes,
    fields,
    book,
    offsets,
    weights,
    mean,
    matrix,
    scales,
    out,
    num_ids,
    num_bags,
    length,
    dim,
    padding_idx,
    IS_MEAN: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_MATRIX: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    BAGS: tl.constexpr,
    COORDINATES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Bags (B, d). With a matrix a program has all coordinates of its bags and some columns, else some coordinates."""
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    inside = bag < num_bags
    begin = tl.load(offsets + bag, mask=inside, other=0)
    end = tl.load(offsets + bag + 1, mask=bag + 1 < num_bags, other=num_ids)
    end = tl.where(inside, end, begin)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    within = column < dim
    if HAS_MATRIX:
        lane = tl.arange(0, COORDINATES)
        center = tl.load(mean + column, mask=within, other=0.0)[None, :]
        total = tl.zeros((BAGS, COLUMNS), tl.float32)
        shift = total
        for start in range(0, length, COORDINATES):
            sums, shares = _sums(
                ids, tiers, places, addresses, row_bytes, fields, book, weights, begin, end, start + lane, length,
                padding_idx, IS_MEAN, HAS_WEIGHTS,
            )  # fmt: skip
            shift = shares[:, None] * center
            if not HAS_SCALES:
                total = tl.where(start == 0, shift, total)
            for k in range(0, tl.minimum(length - start, COORDINATES)):
                # Products are added in the order of coordinates, as on the CPU, so that each is taken from its lane.
                value = tl.sum(tl.where(lane[None, :] == k, sums, 0.0), 1)
                weight = tl.load(matrix + (start + k) * dim + column, mask=within, other=0).to(tl.float32)
                total = tl.fma(value[:, None] + tl.zeros_like(total), weight[None, :] + tl.zeros_like(total), total)
        if HAS_SCALES:
            total = shift + total * tl.load(scales + column, mask=within, other=0.0)[None, :]
    else:
        total, _ = _sums(
            ids, tiers, places, addresses, row_bytes, fields, book, weights, begin, end, column, length, padding_idx,
            IS_MEAN, HAS_WEIGHTS,
        )  # fmt: skip
    tl.store(out + bag[:, None] * dim + column[None, :], total, mask=inside[:, None] & within[None, :])


@on_its_gpu
def bag_codes(
    table: GpuTable, ids: Tensor, offsets: Tensor, mode: str, weights: Tensor | None, embedding_dim: int
) -> Tensor:
    """Sums or means of bags of a table's rows, float32 (B, d), as :func:`mgqe.ops.bag` has them; no row is written.

    Args:
        table: the table.
        ids: int64 (n,), contiguous and in range.
        offsets: int64 (B,), contiguous, where each bag starts; checked.
        mode: "sum" or "mean".
        weights: float32 (n,), contiguous, or None.
        embedding_dim: d.
    """
    num_ids, num_bags, length = ids.shape[0], offsets.shape[0], len(table.coordinates[0])
    out = torch.empty((num_bags, embedding_dim), dtype=torch.float32, device=ids.device)
    if num_ids == 0:
        return out.zero_()
    has_matrix = table.matrix is not None
    most = MAX_COLUMNS if has_matrix else MAX_COORDINATES
    columns = max(16, min(most, triton.next_power_of_2(embedding_dim)))
    _bag_codes[lambda shape: (triton.cdiv(num_bags, shape["BAGS"]), triton.cdiv(embedding_dim, columns))](
        *table.found(ids),
        table.book,
        offsets,
        out if weights is None else weights,
        table.mean if has_matrix else out,
        table.matrix if has_matrix else out,
        out if table.column_scales is None else table.column_scales,
        out,
        num_ids,
        num_bags,
        length,
        embedding_dim,
        table.padding_idx,
        IS_MEAN=mode == "mean",
        HAS_WEIGHTS=weights is not None,
        HAS_MATRIX=has_matrix,
        HAS_SCALES=table.column_scales is not None,
        COORDINATES=max(16, min(MAX_COORDINATES, triton.next_power_of_2(length))),
        COLUMNS=columns,
        enable_fp_fusion=False,
    )
    return out
