"""Pure-torch twins of the training kernels of mixed tables; see :mod:`mgqe.ops.reference`.

Codes and vectors agree with the native kernels bit for bit, sums up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mgqe.ops import reference
from mgqe.ops._mixed_coder import MixedCoder
from mgqe.ops.flat_index import flat_index


def quantize_mixed(
    rows: Tensor, counts: Tensor, tier_rows: Sequence[int], coder: MixedCoder, values: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, vectors, errors and the loss; see :func:`mgqe.ops.quantize_mixed`."""
    centred, scales = rows - coder.mean, coder.encoder_scales
    if scales is not None:
        z = centred * scales
    else:
        z = reference.transform(centred, torch.zeros_like(coder.encoder[0]), coder.encoder)
    codes, chosen = [], []
    for tier, part in enumerate(torch.split(z, list(tier_rows))):
        layout, numbers = coder.layouts[tier], numbers_of(coder, values, tier)
        index = flat_index(layout, z.device)
        centroids = numbers if coder.steps is None else numbers * coder.steps[index.coordinate]
        codes.append(reference.assign_mixed(part, centroids, layout))
        chosen.append(numbers[index.places(codes[-1])])
    taken = torch.cat(chosen)
    difference = z - (taken if coder.steps is None else taken * coder.steps)
    weights = counts.float() / (counts.sum().clamp(min=1) * rows.shape[1])
    errors = weights[:, None] * difference
    vectors = reference.transform(taken, coder.mean, coder.matrix, coder.column_scales)
    return torch.cat(codes), vectors + (rows - rows), errors, (errors * difference).sum()


def numbers_of(coder: MixedCoder, values: Tensor, tier: int) -> Tensor:
    """What the matrix takes for the values of a tier's codebook."""
    book = coder.book(values, tier)
    if coder.steps is None:
        return book
    coordinate = flat_index(coder.layouts[tier], values.device).coordinate
    return (book * coder.units[coordinate] / coder.steps[coordinate]).round().clamp(-127, 127)


def scatter_mixed(
    grad: Tensor, codes: Tensor, tier_rows: Sequence[int], coder: MixedCoder, scale: Tensor, size: int
) -> Tensor:
    """Sums of gradients by the values that codes chose; see :func:`mgqe.ops.scatter_mixed`."""
    sums = grad.new_zeros(size)
    grad = grad * (coder.units * scale)
    parts = zip(torch.split(grad, list(tier_rows)), torch.split(codes, list(tier_rows)), strict=True)
    for tier, (part, chosen) in enumerate(parts):
        places = flat_index(coder.layouts[tier], grad.device).places(chosen)
        coder.book(sums, tier).index_add_(0, places.reshape(-1), part.reshape(-1))
    return sums
