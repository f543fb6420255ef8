"""Whether a call can run now, or has to go through ``torch.ops`` so that a tracer can record it."""

from __future__ import annotations

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)


def runs_now(*tensors: Tensor | None) -> bool:
    """False under torch.compile and torch.export, and for fake or other subclassed tensors without memory."""
    if torch.compiler.is_compiling():
        return False
    # What is no tensor at all runs too, into an error that says so. A plain loop: a generator costs as much as a
    # look-up of one id.
    for t in tensors:  # noqa: SIM110
        if type(t) not in _PLAIN and isinstance(t, Tensor):
            return False
    return True
