"""Functions that torch.compile leaves out of its graphs, without importing the compiler before it is used."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def outside_graphs(function: Function) -> Function:
    """Decorator: as ``torch.compiler.disable``, whose own import takes longer than all of torch's.

    For functions that change Python values, for which a graph would be compiled again, or that have no static shapes.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            from mgqe.nn.context._uncompiled import call

            return call(function, *args, **kwargs)
        return function(*args, **kwargs)

    return run  # type: ignore[return-value]
