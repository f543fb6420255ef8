"""Rows times a small matrix, with one rounding per product, so that every machine gives the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.ops import reference
from mgqe.ops._eager import runs_now
from mgqe.ops._library import check, library_on
from mgqe.ops._triton import triton_on


def transform(rows: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """mean + rows @ matrix, added up in the order of the rows' numbers, whatever the batch and the machine.

    Args:
        rows: float32 ``(n, L)``, contiguous.
        mean: float32 ``(d,)``.
        matrix: float32 ``(L, d)``, contiguous.

    Returns:
        float32 ``(n, d)``; the native kernel and the torch twin agree bit for bit.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    tensors = (rows, mean, matrix)
    fits = rows.dim() == matrix.dim() == 2 and rows.shape[1] == matrix.shape[0] and mean.shape == matrix.shape[1:]
    if not fits or any(t.dtype != torch.float32 or t.device != rows.device for t in tensors):
        came = ", ".join(f"{t.dtype} {tuple(t.shape)} on {t.device}" for t in tensors)
        raise ValueError(f"expected float32 rows (n, L), a mean (d,) and a matrix (L, d) on one device, got {came}")
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    lib = library_on(rows.device) if runs_now(*tensors) and not differentiable else None
    if lib is None:
        kernels = triton_on(rows.device) if runs_now(*tensors) and not differentiable else None
        if kernels is not None:
            made: Tensor = kernels.transform(rows.contiguous(), mean.contiguous(), matrix.contiguous())
            return made
        return reference.transform(rows, mean, matrix)
    rows, mean, matrix = (t.detach().contiguous() for t in tensors)
    out = torch.empty(rows.shape[0], matrix.shape[1], dtype=torch.float32, device="cpu")
    check(
        lib.mgqe_transform(
            rows.data_ptr(),
            *rows.shape,
            mean.data_ptr(),
            matrix.data_ptr(),
            matrix.shape[1],
            out.data_ptr(),
            torch.get_num_threads(),
        )
    )
    return out
