"""Decoding of unpacked codes and its transpose, the two halves of a codebook's forward and backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mgqe.checks.scalars import as_int
from mgqe.checks.waiting import reads_wait
from mgqe.ops import reference
from mgqe.ops._checks import all_below, code_error, code_matrix, codebook_layout, float_matrix, same_device
from mgqe.ops._eager import runs_now
from mgqe.ops._library import check, library_on


def gather(codes: Tensor, codebook: Tensor) -> Tensor:
    """Rows decoded from codes: ``e_ij = C[j, code_ij]`` (DPQ, arXiv 1908.09756, eq. 2).

    The codebook may be finer than the codes: with ``Dc == D * r`` pieces of ``sc`` dimensions, code k of
    subspace j selects the concatenation of ``codebook[j * r + i, k]`` for i < r, so that coarse and fine
    tiers share one codebook. ``Dc == 1`` with ``D > 1`` is one codebook for all subspaces.

    Differentiable in ``codebook``; its gradient is :func:`scatter`.

    Args:
        codes: integers ``(n, D)``, each in ``[0, Kc)``.
        codebook: ``(Dc, Kc, sc)``, float32, float16 or bfloat16.

    Returns:
        float32 ``(n, d)`` with ``d = Dc * sc``, or ``D * sc`` for a shared codebook.

    Raises:
        IndexError: a code outside the codebook (nothing is read). Codes on a GPU are trusted: a check would wait.
        TypeError, ValueError: dtypes, shapes or devices that do not fit.
    """
    if not runs_now(codes, codebook) or (codebook.requires_grad and torch.is_grad_enabled()):
        rows: Tensor = torch.ops.mgqe.gather(codes, codebook)
        return rows
    return _gather(codes, codebook)


def _row_width(codes: Tensor, codebook: Tensor) -> int:
    if codebook.dim() != 3 or 0 in codebook.shape:
        raise ValueError(f"codebook must have shape (pieces, num_centroids, width), got {tuple(codebook.shape)}")
    repeat = codebook_layout(codes.shape[1], codebook.shape[0])
    return codes.shape[1] * repeat * codebook.shape[2]


def _gather(codes: Tensor, codebook: Tensor) -> Tensor:
    codes = code_matrix(codes)
    dim = _row_width(codes, codebook)
    same_device(codes=codes, codebook=codebook)
    codebook = float_matrix("codebook", codebook, 3)
    n, num_subspaces = codes.shape
    lib = library_on(codes.device)
    if lib is None:
        _refuse_bad_codes(codes, codebook.shape[1])
        return reference.gather(codes, codebook)
    rows = torch.empty(n, dim, dtype=torch.float32, device=codes.device)
    status = lib.mgqe_gather(
        codes.data_ptr(),
        codebook.data_ptr(),
        n,
        num_subspaces,
        *codebook.shape,
        rows.data_ptr(),
        torch.get_num_threads(),
    )
    check(status, lambda: code_error(codes, codebook.shape[1]))
    return rows


def decode_error(rows: Tensor, codes: Tensor, codebook: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`gather`, and how far rows are from what they decode to, in one pass over memory.

    Runs eagerly only; not differentiable.

    Args:
        rows: ``(n, d)``, float32, float16 or bfloat16.
        codes, codebook: as for :func:`gather`.
        weights: ``(n,)``.

    Returns:
        float32 ``vectors (n, d)``, decoded, NaN where the row is not finite; ``errors (n, d)``,
        ``weights[i] * (row - decoded)``; and ``losses (n,)``, ``weights[i] * ||row - decoded||^2``.

    Raises:
        as :func:`gather`.
    """
    codes = code_matrix(codes)
    dim = _row_width(codes, codebook)
    same_device(rows=rows, codes=codes, codebook=codebook, weights=weights)
    rows, codebook = float_matrix("rows", rows, 2), float_matrix("codebook", codebook, 3)
    weights = float_matrix("weights", weights, 1)
    n, num_subspaces = codes.shape
    if tuple(rows.shape) != (n, dim) or tuple(weights.shape) != (n,):
        raise ValueError(f"rows must be {(n, dim)} and weights {(n,)}, got {tuple(rows.shape)}, {tuple(weights.shape)}")
    lib = library_on(codes.device)
    if lib is None:
        _refuse_bad_codes(codes, codebook.shape[1])
        return reference.decode_error(rows, codes, codebook, weights)
    vectors, errors, losses = torch.empty_like(rows), torch.empty_like(rows), torch.empty_like(weights)
    status = lib.mgqe_decode_error(
        rows.data_ptr(),
        codes.data_ptr(),
        codebook.data_ptr(),
        weights.data_ptr(),
        n,
        num_subspaces,
        *codebook.shape,
        vectors.data_ptr(),
        errors.data_ptr(),
        losses.data_ptr(),
        torch.get_num_threads(),
    )
    check(status, lambda: code_error(codes, codebook.shape[1]))
    return vectors, errors, losses


def _refuse_bad_codes(codes: Tensor, num_centroids: int) -> None:
    """On a GPU every training step would have to wait for the answer."""
    if codes.device.type == "cpu" and not reads_wait(codes.device) and not all_below(codes, num_centroids):
        raise code_error(codes, num_centroids)


_gather_op = torch.library.custom_op(
    "mgqe::gather", _gather, mutates_args=(), schema="(Tensor codes, Tensor codebook) -> Tensor"
)


@_gather_op.register_fake
def _gather_fake(codes: Tensor, codebook: Tensor) -> Tensor:
    return codebook.new_empty((codes.shape[0], _row_width(codes, codebook)), dtype=torch.float32)


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    codes, codebook = inputs
    ctx.save_for_backward(codes)
    ctx.codebook_shape = codebook.shape
    ctx.codebook_dtype = codebook.dtype


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
    (codes,) = ctx.saved_tensors
    sums, _ = torch.ops.mgqe.scatter(grad, codes, None, *ctx.codebook_shape)
    return None, sums.to(ctx.codebook_dtype)


_gather_op.register_autograd(_gather_backward, setup_context=_keep_for_backward)


def scatter(
    grad: Tensor, codes: Tensor, weights: Tensor | None, pieces: int, num_centroids: int, width: int
) -> tuple[Tensor, Tensor]:
    """Sums rows into the codebook entries that their codes chose: the transpose of :func:`gather`.

    Args:
        grad: ``(n, d)``, float32, float16 or bfloat16 (summed in float32).
        codes: integers ``(n, D)`` in ``[0, num_centroids)``.
        weights: ``(n,)`` or None for ones.
        pieces, num_centroids, width: the codebook's shape ``(Dc, Kc, sc)``, as in :func:`gather`.

    Differentiable in ``grad``; its gradient is :func:`gather`.

    Returns:
        float32 ``sums (Dc, Kc, sc)`` of weights[i] * grad[i]'s pieces, and ``counts (Dc, Kc)`` of weights[i].
        On the CPU additions run in the order of rows whatever the number of threads.

    Raises:
        IndexError: a code out of range (nothing is added). Codes on a GPU are trusted: a check would wait.
        TypeError, ValueError: dtypes, shapes or devices that do not fit.
    """
    pieces, num_centroids = as_int("pieces", pieces), as_int("num_centroids", num_centroids)
    width = as_int("width", width)
    if not runs_now(grad, codes, weights) or (grad.requires_grad and torch.is_grad_enabled()):
        traced: tuple[Tensor, Tensor] = torch.ops.mgqe.scatter(grad, codes, weights, pieces, num_centroids, width)
        return traced
    return _scatter(grad, codes, weights, pieces, num_centroids, width)


def _check_scatter_shapes(
    grad: Tensor, codes: Tensor, weights: Tensor | None, pieces: int, num_centroids: int, width: int
) -> None:
    if min(pieces, num_centroids, width) < 1:
        raise ValueError(f"the codebook's shape must be positive, got {(pieces, num_centroids, width)}")
    if codes.dim() != 2 or codes.shape[1] < 1:
        raise ValueError(f"codes must have shape (n, num_subspaces), got {tuple(codes.shape)}")
    n, num_subspaces = codes.shape
    dim = num_subspaces * codebook_layout(num_subspaces, pieces) * width
    if tuple(grad.shape) != (n, dim):
        raise ValueError(f"grad must have shape {(n, dim)} for these codes and codebook, got {tuple(grad.shape)}")
    if weights is not None and tuple(weights.shape) != (n,):
        raise ValueError(f"weights must have shape {(n,)}, got {tuple(weights.shape)}")


def _scatter(
    grad: Tensor, codes: Tensor, weights: Tensor | None, pieces: int, num_centroids: int, width: int
) -> tuple[Tensor, Tensor]:
    _check_scatter_shapes(grad, codes, weights, pieces, num_centroids, width)
    codes = code_matrix(codes)
    same_device(grad=grad, codes=codes, weights=weights)
    grad = float_matrix("grad", grad, 2)
    weights = None if weights is None else float_matrix("weights", weights, 1)
    lib = library_on(grad.device)
    if lib is None:
        _refuse_bad_codes(codes, num_centroids)
        return reference.scatter(grad, codes, weights, pieces, num_centroids, width)
    sums = torch.empty(pieces, num_centroids, width, dtype=torch.float32, device=grad.device)
    counts = torch.empty(pieces, num_centroids, dtype=torch.float32, device=grad.device)
    status = lib.mgqe_scatter(
        grad.data_ptr(),
        codes.data_ptr(),
        None if weights is None else weights.data_ptr(),
        codes.shape[0],
        codes.shape[1],
        pieces,
        num_centroids,
        width,
        sums.data_ptr(),
        counts.data_ptr(),
        torch.get_num_threads(),
    )
    check(status, lambda: code_error(codes, num_centroids))
    return sums, counts


_scatter_op = torch.library.custom_op(
    "mgqe::scatter",
    _scatter,
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor codes, Tensor? weights, SymInt pieces, SymInt num_centroids, SymInt width) "
        "-> (Tensor, Tensor)"
    ),
)


@_scatter_op.register_fake
def _scatter_fake(
    grad: Tensor, codes: Tensor, weights: Tensor | None, pieces: int, num_centroids: int, width: int
) -> tuple[Tensor, Tensor]:
    _check_scatter_shapes(grad, codes, weights, pieces, num_centroids, width)
    sums = grad.new_empty((pieces, num_centroids, width), dtype=torch.float32)
    return sums, grad.new_empty((pieces, num_centroids), dtype=torch.float32)


def _keep_codes(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, codes, weights, *_ = inputs
    ctx.save_for_backward(codes, weights)
    ctx.dtype = grad.dtype


def _scatter_backward(ctx: Any, sums: Tensor, counts: Tensor) -> tuple[Tensor | None, ...]:
    codes, weights = ctx.saved_tensors
    rows = torch.ops.mgqe.gather(codes, sums)
    rows = rows if weights is None else rows * weights.unsqueeze(-1)
    return rows.to(ctx.dtype), None, None, None, None, None


_scatter_op.register_autograd(_scatter_backward, setup_context=_keep_codes)
