"""Whether a call can run now, or has to go through ``torch.ops`` so that a tracer can record it."""

from __future__ import annotations

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)


def runs_now(*tensors: Tensor | None) -> bool:
    """False under torch.compile / torch.export and for fake or other subclassed tensors, which have no memory."""
    if torch.compiler.is_compiling():
        return False
    return all(t is None or type(t) in _PLAIN for t in tensors)
