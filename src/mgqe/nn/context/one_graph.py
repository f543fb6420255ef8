"""Whether the passes of layers are part of one graph, in which nothing changes Python's values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_active = False


def in_one_graph() -> bool:
    """Whether they are; see :func:`mgqe.one_graph`."""
    return _active


@contextmanager
def passes_in_one_graph() -> Iterator[None]:
    """Within, they are."""
    global _active
    before, _active = _active, True
    try:
        yield
    finally:
        _active = before
