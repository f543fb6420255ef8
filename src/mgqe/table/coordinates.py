"""A table of the coordinates of another table's rows, and the matrix that is left for others to multiply with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from mgqe.codec.capacity import TierShape
from mgqe.codec.layout import TableLayout
from mgqe.codec.transform import Transform
from mgqe.table.snapshot import Snapshot

ALIGNED = 16  # numbers of a vector, by which look-ups write fastest
SPAN_ERROR = 1e-5  # of a fallback's length, that may be lost


def in_coordinates(snapshot: Snapshot, transform: Transform, with_mean: bool) -> tuple[Snapshot, Tensor]:
    """A table of the rows' coordinates that shares their codes, and a matrix, float32; see CompactTable.coordinates."""
    layout, values = snapshot.base, transform.values.double().cpu()
    mean = transform.mean.double().cpu()
    further = _further(layout, with_mean)
    if with_mean:
        values = torch.cat([values, mean[None]])
    values = pad(values, (0, 0, 0, layout.num_coordinates + further - len(values)))
    held = None
    if layout.whole:
        # Coordinates stay whole numbers, under the identity, which kernels skip. They come out in steps that move a
        # row by as much, so that what multiplies them next holds numbers of the size that it had.
        lengths = values.norm(dim=1)
        lengths = torch.where(lengths > 0, lengths, 1.0).float()
        values = values / lengths.double()[:, None]
        zeros, eye = torch.zeros(len(values)), torch.eye(len(values), dtype=torch.int8)
        held = Transform(zeros.to(snapshot.device), eye.to(snapshot.device), None, lengths.to(snapshot.device))
    fallback = snapshot.fallback
    if fallback is not None:
        found = _solved(fallback.double().cpu() - (0.0 if with_mean else mean), values)
        fallback = found.float().to(snapshot.device)
    first = [1.0 if with_mean else 0.0, *[0.0] * further][:further]
    table = replace(
        snapshot,
        base=_resized(layout, further, layout.matrix_dtype if held else None),
        centroids=tuple(torch.cat([book, book.new_tensor(first)]) for book in snapshot.centroids),
        scales=tuple(pad(each, (0, int(further > 0)), value=1.0) if len(each) else each for each in snapshot.scales),
        transform=held,
        fallback=fallback,
    )
    return table, values.float().to(snapshot.device)


def _further(layout: TableLayout, with_mean: bool) -> int:
    """How many coordinates there are to be behind a table's own, all in one subspace."""
    if layout.whole and set(layout.widths) != {1}:
        return -(layout.num_coordinates + with_mean) % ALIGNED + with_mean
    return int(with_mean)  # a wider subspace would keep kernels from looking levels up in registers


def _resized(layout: TableLayout, further: int, matrix_dtype: str | None) -> TableLayout:
    """With a further subspace of so many coordinates, in which rows have centroid 0, which takes no bits."""
    widths, more_bits = ((*layout.widths, further), (0,)) if further else (layout.widths, ())
    tiers = tuple(TierShape.mixed(tier.ids, (*tier.code_bits, *more_bits), tier.codebook) for tier in layout.tiers)
    return replace(layout, tiers=tiers, widths=widths, embedding_dim=sum(widths), matrix_dtype=matrix_dtype)


def _solved(goal: Tensor, matrix: Tensor) -> Tensor:
    """The coordinates that the matrix turns into this vector."""
    found: Tensor = torch.linalg.pinv(matrix.T) @ goal
    if float((found @ matrix - goal).norm()) > SPAN_ERROR * max(float(goal.norm()), 1e-30):
        raise ValueError(
            "the table's fallback is no vector that coordinates can give: choose one between rows, such as "
            "table.lookup(ids).mean(0), or drop it by with_fallback(None)"
        )
    return found
