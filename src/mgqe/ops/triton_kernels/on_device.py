"""Kernels on the GPU that their tensors are on. Triton launches on torch's current one, which may be another."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def on_its_gpu(function: Function) -> Function:
    """Decorator of what launches kernels: within, torch's current GPU is that of the first tensor among the arguments.

    Also of a table that was laid out while another GPU was: addresses of one GPU mean nothing on another.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        device = next(each.device for each in args if isinstance(each, Tensor))
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return function(*args, **kwargs)
        with torch.cuda.device(device):
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]
