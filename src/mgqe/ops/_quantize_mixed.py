"""Rows of a training step through the codes of a plan, and the gradient of its centroids, in one pass each."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_int64
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgqe.checks.waiting import reads_wait
from mgqe.ops import reference_mixed
from mgqe.ops._by_tier import row_weights
from mgqe.ops._checks import same_device
from mgqe.ops._library import check, library_on
from mgqe.ops._mixed_coder import MixedCoder
from mgqe.ops._triton import triton_on


class Quantized(NamedTuple):
    """Rows through their codes.

    Attributes:
        codes: int32 ``(n, D)``.
        vectors: float32 ``(n, d)``, NaN where the row is not finite.
        errors: float32 ``(n, L)``, a row's weight times how far its coordinates are from their centroids.
        loss: float32 scalar, the sum of the rows' weights times the squares of that.
    """

    codes: Tensor
    vectors: Tensor
    errors: Tensor
    loss: Tensor


def quantize_mixed(
    rows: Tensor, counts: Tensor | None, tier_rows: Sequence[int] | Tensor, coder: MixedCoder, values: Tensor
) -> Quantized:
    """Codes as of :func:`mgqe.ops.assign_mixed`, what they decode to, and how far that is from the rows.

    Runs eagerly only; not differentiable.

    Args:
        rows: float32 ``(n, d)``, tier after tier.
        counts: int64 ``(n,)``; None for ones. A row weighs its count / (the sum of counts * d).
        tier_rows: how many of the rows each tier has; where there are kernels for GPUs
            (:func:`mgqe.ops.quantizes_by_tier`) also each row's tier ``(n,)``, rows being in any order.
        coder: the plan.
        values: float32, of all codebooks.

    Raises:
        ValueError: tensors of other types, shapes or devices.
    """
    same_device(rows=rows, counts=counts, values=values, encoder=coder.encoder)
    (d, length), n = coder.encoder.shape, rows.shape[0]
    expected = (
        ("rows", rows, torch.float32, (n if isinstance(tier_rows, Tensor) else sum(tier_rows), d)),
        *((("counts", counts, torch.int64, (n,)),) if counts is not None else ()),
        ("values", values, torch.float32, (coder.num_values,)),
    )
    for name, tensor, dtype, shape in expected:
        if tensor.dtype != dtype or tensor.shape != shape:
            raise ValueError(f"{name} must be {dtype} of shape {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
    lib = library_on(rows.device)
    if lib is None and _in_any_order(tier_rows) and (kernels := triton_on(rows.device)) is not None:
        return _on_gpu(kernels, rows, counts, tier_rows, coder, values)
    counts = torch.ones(n, dtype=torch.int64, device=rows.device) if counts is None else counts
    if lib is None:
        assert not isinstance(tier_rows, Tensor)  # there are no kernels for it
        return Quantized(*reference_mixed.quantize_mixed(rows, counts, tier_rows, coder, values))
    rows, counts, values = rows.detach().contiguous(), counts.contiguous(), values.detach().contiguous()
    made = Quantized(
        torch.empty((n, len(coder.layouts[0])), dtype=torch.int32, device="cpu"),
        torch.empty_like(rows),
        torch.empty((n, length), dtype=torch.float32, device="cpu"),
        torch.empty((), dtype=torch.float32, device="cpu"),
    )
    check(
        lib.mgqe_quantize_mixed(
            byref(coder.c_coder),
            rows.data_ptr(),
            counts.data_ptr(),
            (c_int64 * len(tier_rows))(*tier_rows),
            values.data_ptr(),
            *(each.data_ptr() for each in made),
            torch.get_num_threads(),
        )
    )
    return made


def _in_any_order(tier_rows: Sequence[int] | Tensor) -> bool:
    """Whether the kernels for GPUs, which take each row's tier, can take these."""
    return isinstance(tier_rows, Tensor) or len(tier_rows) == 1


def _on_gpu(
    kernels: Any,
    rows: Tensor,
    counts: Tensor | None,
    tier_rows: Sequence[int] | Tensor,
    coder: MixedCoder,
    values: Tensor,
) -> Quantized:
    weights, tiers = row_weights(counts, *rows.shape), tier_rows if isinstance(tier_rows, Tensor) else None
    steps = None if coder.steps is None else (coder.units, coder.steps)
    z = kernels.transform(rows.detach().contiguous(), None, coder.encoder, shift=coder.mean)
    codes, taken, errors, loss = kernels.nearest(
        z, tiers, values.detach().contiguous(), coder.searches, weights, 1.0, steps
    )
    return Quantized(codes, kernels.transform(taken, coder.mean, coder.matrix, None, coder.column_scales), errors, loss)


def scatter_mixed(
    grad: Tensor, codes: Tensor, tier_rows: Sequence[int] | Tensor, coder: MixedCoder, scale: Tensor, size: int
) -> Tensor:
    """Sums gradients of coordinates into the values of the centroids that codes chose, times their units.

    Runs eagerly only; not differentiable.

    Args:
        grad: float32 ``(n, L)``, tier after tier.
        codes: int32 ``(n, D)``.
        tier_rows: as of :func:`quantize_mixed`.
        coder: the plan.
        scale: a scalar that the sums are multiplied with.
        size: how many numbers to return.

    Returns:
        float32 ``(size,)``: those of the values of all codebooks, and zeros. On the CPU additions run in the order of
        rows whatever the number of threads.

    Raises:
        IndexError: a code outside its codebook (nothing is added). Codes on a GPU are trusted: a check would wait.
    """
    same_device(grad=grad, codes=codes)
    lib = library_on(grad.device)
    if lib is None:
        if _in_any_order(tier_rows) and (kernels := triton_on(grad.device)) is not None:
            tiers = tier_rows if isinstance(tier_rows, Tensor) else None
            found: Tensor = kernels.scatter(grad, tiers, codes, coder.searches, scale, 1.0, coder.units, size)
            return found
        assert not isinstance(tier_rows, Tensor)  # there are no kernels for it
        trusted = grad.device.type != "cpu" or reads_wait(grad.device)
        if not trusted and not _in_range(codes, tier_rows, coder):
            raise _code_error()
        return reference_mixed.scatter_mixed(grad, codes, tier_rows, coder, scale, size)
    grad, codes = grad.detach().contiguous(), codes.contiguous()
    sums = torch.empty(size, dtype=torch.float32, device="cpu")
    status = lib.mgqe_scatter_mixed(
        byref(coder.c_coder),
        grad.data_ptr(),
        codes.data_ptr(),
        (c_int64 * len(tier_rows))(*tier_rows),
        float(scale),
        sums.data_ptr(),
        size,
        torch.get_num_threads(),
    )
    check(status, _code_error)
    return sums


def _in_range(codes: Tensor, tier_rows: Sequence[int], coder: MixedCoder) -> bool:
    limits = [torch.tensor([1 << piece.bits for piece in layout], device="cpu") for layout in coder.layouts]
    parts = zip(torch.split(codes, list(tier_rows)), limits, strict=True)
    return all(bool(((part >= 0) & (part < limit)).all()) for part, limit in parts)


def _code_error() -> IndexError:
    return IndexError("a code is out of range: it has more bits than those of its subspace")
