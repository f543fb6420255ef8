"""Whether reading a number of a tensor makes the program wait for a device, as on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_pretended = False


def reads_wait(device: torch.device) -> bool:
    """Whether the program would wait for all work on the device before it could read a number that is there.

    A training step must not read numbers there, and its tensors must have shapes that follow from those of its inputs.
    """
    return _pretended or device.type == "cuda"


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Tensors on the CPU take the ways of those on a GPU: no native kernels, static shapes, late errors. For tests."""
    global _pretended
    before, _pretended = _pretended, True
    try:
        yield
    finally:
        _pretended = before
