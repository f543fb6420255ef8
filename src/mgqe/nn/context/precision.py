"""Codes are chosen in full precision, whatever autocast makes of the layers around."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Method = TypeVar("Method", bound=Callable[..., Any])


def in_full_precision(method: Method) -> Method:
    """A method of a layer (with a buffer ``tier_sizes``) that autocast does not reach.

    In half precision a distance to a centroid may come out smaller than that to the nearest one, and training would
    see other codes than the frozen table has.
    """

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        device = self.tier_sizes.device.type
        if not torch.is_autocast_enabled(device):
            return method(self, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]
