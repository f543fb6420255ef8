"""Memory in large pages: rows of codes lie anywhere in them, and small pages take the processor a search each."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

LARGE_PAGE = 1 << 21
FEWEST_PAGES = 2  # of which one is whole, wherever the memory begins


def empty_in_large_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As ``torch.empty`` on the CPU, in pages of 2 MiB where the system has them for those who ask (Linux).

    Args:
        shape, dtype: as of ``torch.empty``.
    """
    nbytes = prod(shape) * dtype.itemsize
    if nbytes < FEWEST_PAGES * LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(tuple(shape), dtype=dtype, device="cpu")
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # where the system was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(tuple(shape))


def join_in_large_pages(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of one type joined along their first axis, in such memory.

    Args:
        parts: at least one, on the CPU, with the same shape but for the first axis.
    """
    whole = empty_in_large_pages((sum(len(part) for part in parts), *parts[0].shape[1:]), parts[0].dtype)
    return torch.cat(tuple(parts), out=whole)
