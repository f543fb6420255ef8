"""Normal tensors in torch.inference_mode, whose own tensors cannot be trained, changed in place or compiled later."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def outside_inference(function: Function) -> Function:
    """Decorator: within torch.inference_mode the call runs as under torch.no_grad, so that it makes normal tensors."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]


def as_normal(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy of one that was made in torch.inference_mode."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False), torch.no_grad():
        return tensor.clone()
