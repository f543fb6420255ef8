"""Training by the kernels for GPUs as operators that graphs can hold: for torch.compile(fullgraph=True).

Eager steps take :func:`mgqe.ops.quantize_by_tier` and its like, whose gradients are written out in
:mod:`mgqe.nn.quantizers`. A graph of torch.compile has operators alone: here are the same kernels as such, with their
gradients, and with torch's twins where there are no kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mgqe.ops import _transform, reference, reference_by_tier
from mgqe.ops._by_tier import row_weights
from mgqe.ops._checks import same_device
from mgqe.ops._triton import triton_on
from mgqe.ops.layout.searches import searches_of


def quantize_in_graph(
    rows: Tensor,
    counts: Tensor | None,
    tiers: Tensor | None,
    book: Tensor,
    searches: Sequence[int],
    dim: int,
    commitment: float,
    units: Tensor | None = None,
    steps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows of all tiers through their codes, and the loss of codebook and commitment.

    Args:
        rows: float32 ``(n, L)``; differentiable, through the loss.
        counts: int64 ``(n,)``, how often each row counts in the loss; None for once.
        tiers: integers ``(n,)``, each row's tier; None where there is one.
        book: float32, the flat codebooks; differentiable, through the loss.
        searches: ``Searches.numbers`` of where the tiers' centroids are in them.
        dim: how many numbers of a row the loss is a mean over.
        commitment: beta.
        units, steps: float32 ``(L,)`` each, or None: a centroid is its numbers times the units, in whole steps.

    Returns:
        float32 ``(n, L)``, the numbers that the codes name, in steps if there are any, NaN where the row is not finite,
        without a gradient; and the loss, a float32 scalar.

    Raises:
        ValueError: tensors on several devices.
    """
    taken, loss, _, _ = torch.ops.mgqe.quantize_in_graph(
        rows, counts, tiers, book, units, steps, list(searches), dim, commitment
    )
    return taken.detach(), loss


def transform_in_graph(
    rows: Tensor, shift: Tensor | None, mean: Tensor | None, matrix: Tensor, column_scales: Tensor | None
) -> Tensor:
    """``mean + column_scales * ((rows - shift) @ matrix)``, with the bits of :func:`mgqe.ops.transform`.

    Args:
        rows: float32 ``(n, L)``; differentiable, as nothing else is.
        shift, mean: float32 ``(L,)`` and ``(d,)``; None for zeros.
        matrix: float32 ``(L, d)``.
        column_scales: float32 ``(d,)``; None for ones.
    """
    made: Tensor = torch.ops.mgqe.transform(rows, shift, mean, matrix, column_scales)
    return made


# ---- codes -------------------------------------------------------------------------------------------------------


def _quantize(
    rows: Tensor,
    counts: Tensor | None,
    tiers: Tensor | None,
    book: Tensor,
    units: Tensor | None,
    steps: Tensor | None,
    searches: Sequence[int],
    dim: int,
    commitment: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    same_device(rows=rows, counts=counts, tiers=tiers, book=book, units=units, steps=steps)
    given = (
        rows.contiguous(),
        tiers,
        book.contiguous(),
        searches_of(tuple(searches)),
        row_weights(counts, rows.shape[0], dim),
        1 + commitment,
        None if units is None or steps is None else (units, steps),
    )
    codes, taken, errors, loss = (triton_on(rows.device) or reference_by_tier).nearest(*given)
    return taken, loss, codes, errors


def _quantize_fake(
    rows: Tensor,
    counts: Tensor | None,
    tiers: Tensor | None,
    book: Tensor,
    units: Tensor | None,
    steps: Tensor | None,
    searches: Sequence[int],
    dim: int,
    commitment: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    codes = rows.new_empty((rows.shape[0], searches[0]), dtype=torch.int32)
    return torch.empty_like(rows), rows.new_empty(()), codes, torch.empty_like(rows)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, tiers, _, units, _, ctx.searches, _, ctx.commitment = inputs
    _, _, codes, errors = output
    ctx.save_for_backward(tiers, units, codes, errors)


def _quantize_backward(ctx: Any, of_taken: Tensor, of_loss: Tensor, *_: Any) -> tuple[Any, ...]:
    """The loss's goes to the rows, times beta, and to the centroids chosen; see :mod:`mgqe.nn.quantizers.autograd`."""
    tiers, units, codes, errors = ctx.saved_tensors
    of_rows = of_book = None
    if ctx.needs_input_grad[0]:
        of_rows = errors * (of_loss * (2 * ctx.commitment))
    if ctx.needs_input_grad[3]:
        of_book = torch.ops.mgqe.scatter_in_graph(errors, tiers, codes, of_loss, units, ctx.searches, -2.0)
    return of_rows, None, None, of_book, None, None, None, None, None


_op = torch.library.custom_op(
    "mgqe::quantize_in_graph",
    _quantize,
    mutates_args=(),
    schema=(
        "(Tensor rows, Tensor? counts, Tensor? tiers, Tensor book, Tensor? units, Tensor? steps, int[] searches, "
        "int dim, float commitment) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
)
_op.register_fake(_quantize_fake)
_op.register_autograd(_quantize_backward, setup_context=_keep)


def _scatter(
    errors: Tensor,
    tiers: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    units: Tensor | None,
    searches: Sequence[int],
    factor: float,
) -> Tensor:
    kernels = triton_on(errors.device) or reference_by_tier
    found: Tensor = kernels.scatter(
        errors.contiguous(), tiers, codes, searches_of(tuple(searches)), scale.contiguous(), factor, units
    )
    return found


def _scatter_fake(
    errors: Tensor,
    tiers: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    units: Tensor | None,
    searches: Sequence[int],
    factor: float,
) -> Tensor:
    return errors.new_empty((searches[1],))


torch.library.custom_op(
    "mgqe::scatter_in_graph",
    _scatter,
    mutates_args=(),
    schema=(
        "(Tensor errors, Tensor? tiers, Tensor codes, Tensor scale, Tensor? units, int[] searches, float factor) "
        "-> Tensor"
    ),
).register_fake(_scatter_fake)


# ---- rows times a matrix -----------------------------------------------------------------------------------------


def _matrix_product(
    rows: Tensor, shift: Tensor | None, mean: Tensor | None, matrix: Tensor, column_scales: Tensor | None
) -> Tensor:
    same_device(rows=rows, shift=shift, mean=mean, matrix=matrix, column_scales=column_scales)
    if (kernels := triton_on(rows.device)) is not None:
        made: Tensor = kernels.transform(rows.contiguous(), mean, matrix.contiguous(), shift, column_scales)
        return made
    mean = matrix.new_zeros(matrix.shape[1]) if mean is None else mean
    rows = rows if shift is None else rows - shift
    if column_scales is not None:
        return reference.transform(rows, mean, matrix, column_scales)
    return _transform.transform(rows.contiguous(), mean, matrix.contiguous())


def _matrix_fake(
    rows: Tensor, shift: Tensor | None, mean: Tensor | None, matrix: Tensor, column_scales: Tensor | None
) -> Tensor:
    return rows.new_empty((rows.shape[0], matrix.shape[1]))


def _keep_matrix(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[3], inputs[4])


def _matrix_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    matrix, column_scales = ctx.saved_tensors
    grad = grad if column_scales is None else grad * column_scales
    return grad @ matrix.T, None, None, None, None


_op = torch.library.custom_op(
    "mgqe::transform",
    _matrix_product,
    mutates_args=(),
    schema="(Tensor rows, Tensor? shift, Tensor? mean, Tensor matrix, Tensor? column_scales) -> Tensor",
)
_op.register_fake(_matrix_fake)
_op.register_autograd(_matrix_backward, setup_context=_keep_matrix)
