"""Steps of Adagrad by the kernels for GPUs; :class:`mgqe.RowwiseAdagrad` has the same in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mgqe.ops._triton import triton_on

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_COLUMNS = 512


def _kernels_for(parameter: Tensor, values: Tensor) -> Any:
    fits = parameter.dtype in _DTYPES and values.dtype in _DTYPES and parameter.is_contiguous()
    return triton_on(parameter.device) if fits else None


def adagrad_rows(
    parameter: Tensor,
    state: Tensor,
    rows: Tensor,
    values: Tensor,
    rate: float,
    eps: float,
    decay: float,
    noise: Callable[[Tensor], Tensor] | None,
) -> bool:
    """Move the rows of a parameter ``(N, d)`` by a gradient, sparse over rows, and its state float32 ``(N,)``.

    Args:
        parameter, state: moved in place.
        rows: int64 ``(n,)``, in range; they may come several times.
        values: ``(n, d)``.
        rate, eps, decay: the learning rate, what keeps a division by zero away, the weight decay.
        noise: draws int32 from 0 to 2^16 - 1 in a tensor's shape, which round a parameter of bfloat16 at random.

    Returns:
        whether there was a kernel that did it; else nothing is moved.
    """
    kernels = _kernels_for(parameter, values) if parameter.shape[1] <= _MAX_COLUMNS else None
    if kernels is None:
        return False
    kernels.move_rows(parameter.detach(), state, rows, values.contiguous(), rate, eps, decay, noise and noise(values))
    return True


def adagrad_all(
    parameter: Tensor,
    state: Tensor,
    gradient: Tensor,
    rate: float,
    eps: float,
    decay: float,
    noise: Callable[[Tensor], Tensor] | None,
) -> bool:
    """As :func:`adagrad_rows`, with one accumulator per element and a dense gradient."""
    kernels = _kernels_for(parameter, gradient)
    if kernels is None:
        return False
    kernels.move_all(parameter.detach(), state, gradient.contiguous(), rate, eps, decay, noise and noise(gradient))
    return True
