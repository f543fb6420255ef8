"""What several baselines have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.frozen import FLOATS


def refuse_max_norm(owner: object, max_norm: float | None) -> None:
    """Composed rows are no single parameter that nn.Embedding's max_norm could shorten."""
    if max_norm is not None:
        raise ValueError(
            f"{type(owner).__name__} has no row of its own to renormalise: leave max_norm=None "
            f"(got {max_norm}), or normalise the output"
        )


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise TypeError for a dtype that a frozen table could not hold."""
    if dtype is not None and dtype not in FLOATS:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, got {dtype}")


def kept(weight: Tensor) -> Tensor:
    """A parameter's values as a frozen table keeps them: a copy on the CPU, in its own dtype.

    Raises ValueError if they hold NaN or infinity, TypeError for a dtype that tables do not hold.
    """
    check_dtype(weight.dtype)
    values = weight.detach().cpu().clone(memory_format=torch.contiguous_format)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the weights hold NaN or infinity: the training diverged, go back to a checkpoint")
    return values
