"""Nearest-centroid assignment: the fused argmin of DPQ-VQ (arXiv 1908.09756, eq. 4) and MGQE's tiers."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.ops import reference
from mgqe.ops._checks import float_matrix, same_device
from mgqe.ops._eager import runs_now
from mgqe.ops._library import check, library_on
from mgqe.ops._triton import triton_on
from mgqe.ops.layout.packed_format import MAX_CENTROIDS


def assign(rows: Tensor, centroids: Tensor, bias: Tensor | None = None) -> Tensor:
    """Code of the nearest centroid in every subspace.

    Without a bias the nearest by squared distance: ``codes[i, j] = argmin_k ||rows[i, j] - centroids[j, k]||^2``; with
    one, ``argmin_k bias[j, k] - <rows[i, j], centroids[j, k]>``. Either is decided in double precision, so that neither
    a mean that is large against the spread nor squares beyond float32 make a difference. The lowest k wins a tie, NaN
    scores lose against all others, and a subspace of nothing but NaN gets code 0.

    A row's codes depend on that row alone, never on the batch around it, and are the same on every
    instruction set and in the torch twin.

    Args:
        rows: ``(n, D * s)``, float32, float16 or bfloat16.
        centroids: ``(D, K, s)``, K from 1 to 65,536.
        bias: ``(D, K)`` or None.

    Returns:
        int32 codes ``(n, D)``. Not differentiable.

    Raises:
        TypeError: a tensor that is not floating point, or float64.
        ValueError: shapes that do not fit, or tensors on several devices.
    """
    if not runs_now(rows, centroids, bias):
        codes: Tensor = torch.ops.mgqe.assign(rows, centroids, bias)
        return codes
    return _assign(rows, centroids, bias)


def _checked_shape(rows: Tensor, centroids: Tensor, bias: Tensor | None) -> tuple[int, int]:
    if centroids.dim() != 3 or rows.dim() != 2:
        raise ValueError(
            f"expected rows (n, D * s) and centroids (D, K, s), got {tuple(rows.shape)} and {tuple(centroids.shape)}"
        )
    num_subspaces, num_centroids, width = centroids.shape
    if rows.shape[1] != num_subspaces * width or num_subspaces < 1 or width < 1:
        raise ValueError(
            f"rows of {rows.shape[1]} dimensions do not fit centroids {tuple(centroids.shape)}: "
            f"expected {num_subspaces} * {width} = {num_subspaces * width}"
        )
    if not 1 <= num_centroids <= MAX_CENTROIDS:
        raise ValueError(f"the number of centroids must be 1 to {MAX_CENTROIDS}, got {num_centroids}")
    if bias is not None and tuple(bias.shape) != (num_subspaces, num_centroids):
        raise ValueError(f"bias must have shape {(num_subspaces, num_centroids)}, got {tuple(bias.shape)}")
    return rows.shape[0], num_subspaces


def _assign(rows: Tensor, centroids: Tensor, bias: Tensor | None) -> Tensor:
    n, num_subspaces = _checked_shape(rows, centroids, bias)
    same_device(rows=rows, centroids=centroids, bias=bias)
    rows = float_matrix("rows", rows, 2)
    centroids = float_matrix("centroids", centroids, 3)
    bias = None if bias is None else float_matrix("bias", bias, 2)
    lib = library_on(rows.device)
    if lib is None:
        if (kernels := triton_on(rows.device)) is not None:
            subspaces, number, width = centroids.shape
            each = [number] * subspaces
            found: Tensor = kernels.assign(rows, centroids, [width] * subspaces, each, each, bias)
            return found
        return reference.assign(rows, centroids, bias)
    codes = torch.empty(n, num_subspaces, dtype=torch.int32, device=rows.device)
    check(
        lib.mgqe_assign(
            rows.data_ptr(),
            centroids.data_ptr(),
            None if bias is None else bias.data_ptr(),
            n,
            *centroids.shape,
            codes.data_ptr(),
            torch.get_num_threads(),
        )
    )
    return codes


_op = torch.library.custom_op(
    "mgqe::assign", _assign, mutates_args=(), schema="(Tensor rows, Tensor centroids, Tensor? bias) -> Tensor"
)


@_op.register_fake
def _fake(rows: Tensor, centroids: Tensor, bias: Tensor | None) -> Tensor:
    n, num_subspaces = _checked_shape(rows, centroids, bias)
    return rows.new_empty((n, num_subspaces), dtype=torch.int32)
