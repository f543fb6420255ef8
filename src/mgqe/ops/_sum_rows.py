"""Rows summed by an index: what a look-up that repeats rows does to their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.ops._library import check, library_on


def sum_rows(rows: Tensor, index: Tensor, num_sums: int) -> Tensor:
    """sums[k] = the sum of rows[i] with index[i] == k: the transpose of ``index_select``.

    Runs eagerly only; not differentiable.

    Args:
        rows: float32 ``(n, d)``.
        index: int64 ``(n,)``, from 0 to ``num_sums - 1``.
        num_sums: k.

    Returns:
        float32 ``(num_sums, d)``. On the CPU additions run in the order of rows whatever the number of threads.

    Raises:
        IndexError: an index out of range. Those on a GPU are trusted: a check would wait.
    """
    lib = library_on(rows.device) if rows.dtype == torch.float32 else None
    if lib is None:
        return torch.zeros((num_sums, rows.shape[1]), dtype=rows.dtype, device=rows.device).index_add(0, index, rows)
    rows, index = rows.detach().contiguous(), index.contiguous()
    sums = torch.empty((num_sums, rows.shape[1]), dtype=torch.float32, device="cpu")
    status = lib.mgqe_sum_rows(
        rows.data_ptr(), index.data_ptr(), *rows.shape, num_sums, sums.data_ptr(), torch.get_num_threads()
    )
    check(status, lambda: IndexError(f"an index is out of range (valid: 0 to {num_sums - 1})"))
    return sums
