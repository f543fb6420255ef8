"""Decorators: functions outside the graphs of torch.compile, methods that autocast does not reach."""

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


def in_full_precision(method: Function) -> Function:
    """A method of a layer (with a buffer ``tier_sizes``) that autocast does not reach.

    In half precision a distance to a centroid may come out smaller than that to the nearest one, and training would
    see other codes than the frozen table has.
    """

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        device = self.tier_sizes.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return method(self, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]
