"""Imported while something is compiled, and not before: see :mod:`mgqe.nn.context.decorators`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable  # type: ignore[untyped-decorator]
def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function eagerly."""
    return function(*args, **kwargs)
