"""Pure-torch twins of the kernels that take rows of all tiers at once; see :mod:`mgqe.ops.reference`.

Codes agree with the kernels bit for bit, sums up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.ops import reference
from mgqe.ops.layout.searches import Searches


def nearest(
    rows: Tensor,
    tiers: Tensor | None,
    book: Tensor,
    searches: Searches,
    weights: Tensor | float,
    factor: float,
    steps: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of rows, the numbers that they name, weighted errors and the loss.

    See :func:`mgqe.ops.triton_kernels.assign.nearest`. Codes that a tier's rows do not have are 0 here.
    """
    codes = torch.zeros((rows.shape[0], searches.num_codes), dtype=torch.int32, device=rows.device)
    taken = torch.zeros_like(rows)
    for search in searches.all:
        columns = slice(search.coordinate, search.coordinate + search.width)
        t, k = (torch.arange(size, device=rows.device) for size in (search.width, max(search.counts)))
        numbers = book[search.entry + t // search.piece * search.stride + k[:, None] * search.piece + t % search.piece]
        if steps is not None:
            numbers = (numbers * steps[0][columns] / steps[1][columns]).round().clamp(-127, 127)
        centroids = numbers if steps is None else numbers * steps[1][columns]
        for tier, count in enumerate(search.counts):
            if count:
                found = reference.assign(rows[:, columns], centroids[None, :count], None)[:, 0]
                mine = torch.ones_like(found, dtype=torch.bool) if tiers is None else tiers == tier
                codes[:, search.column] = torch.where(mine, found, codes[:, search.column])
                taken[:, columns] = torch.where(mine[:, None], numbers[found.long()], taken[:, columns])
    taken += rows - rows
    difference = rows - (taken if steps is None else taken * steps[1])
    errors = (weights[:, None] if isinstance(weights, Tensor) else weights) * difference
    return codes, taken, errors, factor * (errors * difference).sum()


def scatter(
    errors: Tensor,
    tiers: Tensor | None,
    codes: Tensor,
    searches: Searches,
    scale: Tensor,
    factor: float,
    units: Tensor | None = None,
) -> Tensor:
    """Sums of errors by the numbers that codes name; see :func:`mgqe.ops.triton_kernels.assign.scatter`."""
    errors = errors * (scale * factor)
    values = errors if units is None else errors * units
    sums = values.new_zeros(searches.num_numbers)
    return sums.index_add_(0, searches.places(codes, tiers).view(-1), values.reshape(-1))
