"""Rows added to a table after it was made: vectors checked and encoded, codes in buffers with room to grow.

Appended rows never move the rows before them, which may be a mapped file: they become extents, ranges of ids that
the kernels read as further tiers.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor

from mgqe.checks.ids import FLOAT_DTYPES, as_int64, check_dense, check_device
from mgqe.checks.rows import plain_vectors
from mgqe.checks.scalars import as_int


@dataclass(frozen=True)
class Origin:
    """The file that a table was last read from or written to.

    Attributes:
        target: the file, links resolved.
        fingerprint: of its content, see :mod:`mgqe.table.appended`.
        num_embeddings: ids in it, appended files included.
    """

    target: str
    fingerprint: str
    num_embeddings: int


class WriterLock:
    """A lock that is free again in a forked process, whose copy no thread is left to release."""

    _all: ClassVar[WeakSet[WriterLock]] = WeakSet()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        WriterLock._all.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    @classmethod
    def renew_all(cls) -> None:
        """Give every lock a new one, in a process that was just forked."""
        for lock in cls._all:
            lock._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WriterLock.renew_all)


class GrowthBuffer:
    """Packed rows with spare room, so that appending row by row copies each row O(1) times.

    Only the holder of the table's writer lock calls methods. Readers hold views of a prefix, which is never written
    again: rows go in behind :attr:`used` alone.
    """

    @torch.inference_mode(False)  # a tensor made in inference mode could not be written outside of it
    def __init__(self, rows: Tensor, capacity: int) -> None:
        self.storage = torch.empty((capacity, rows.shape[1]), dtype=torch.uint8, device=rows.device)
        self.storage[: rows.shape[0]] = rows
        self.used = rows.shape[0]

    def write(self, rows: Tensor) -> Tensor:
        """Rows (n, row_bytes) behind those in use -> a view of all of them."""
        end = self.used + rows.shape[0]
        self.storage[self.used : end] = rows
        self.used = end
        return self.storage[:end]


@dataclass(frozen=True, eq=False)
class Extent:
    """A range of appended ids, all of one tier.

    Attributes:
        tier: whose subspaces, centroids and codebook the rows have.
        rows: uint8 (n, row_bytes), n >= 1.
        buffer: what ``rows`` is a prefix of; None where there is no room behind it.
    """

    tier: int
    rows: Tensor
    buffer: GrowthBuffer | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory, spare room included."""
        return self.rows.nbytes if self.buffer is None else self.buffer.storage.nbytes

    def extended(self, rows: Tensor) -> Extent:
        """This extent and more rows behind; the extent itself stays valid."""
        size, needed = self.rows.shape[0], self.rows.shape[0] + rows.shape[0]
        buffer = self.buffer
        # Another table, or a change that was never published, may have written behind these rows already.
        if buffer is None or buffer.used != size or needed > buffer.storage.shape[0]:
            buffer = GrowthBuffer(self.rows, max(2 * size, needed))
        return Extent(self.tier, buffer.write(rows), buffer)


def check_tier(tier: int | None, num_tiers: int) -> int:
    """The tier that appended ids go to, by default the last; raises ValueError for one that does not exist."""
    if tier is None:
        return num_tiers - 1
    tier = as_int("tier", tier)
    if not 0 <= tier < num_tiers:
        raise ValueError(f"tier must be in 0 .. {num_tiers - 1} (0 the most frequent), got {tier}")
    return tier


def check_fallback(vector: Any, embedding_dim: int, device: torch.device) -> Tensor:
    """A row (d,) for unknown ids as contiguous float32, a copy; errors as those of :func:`check_vectors`."""
    vector = plain_vectors(vector, "the fallback")
    if tuple(vector.shape) != (embedding_dim,):
        raise ValueError(
            f"the fallback must have shape ({embedding_dim},), got {tuple(vector.shape)}: the table has "
            f"embedding_dim={embedding_dim}"
        )
    return check_vectors(vector[None], embedding_dim, device, "the fallback")[0].clone()


def check_vectors(vectors: Any, embedding_dim: int, device: torch.device, name: str = "vectors") -> Tensor:
    """Vectors (n, d), a tensor, an array or a list, as contiguous float32; ``name``: the argument's, for the message.

    Raises:
        TypeError: no floats, or a tensor of float64. ValueError: another shape or device, NaN or infinity.
    """
    rows = plain_vectors(vectors, name)
    if rows.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {rows.dtype}: convert with .float()")
    check_dense(rows, name)
    if rows.ndim != 2 or rows.shape[1] != embedding_dim:
        raise ValueError(
            f"{name} must have shape (n, embedding_dim={embedding_dim}), got {tuple(rows.shape)}: "
            "for a single vector pass vector[None]"
        )
    if rows.device != device:
        verb = "are" if name == "vectors" else "is"
        raise ValueError(f"{name} {verb} on {rows.device}, the table on {device}: move one with .to()")
    finite = rows.detach().isfinite().all(dim=1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        if name != "vectors":
            raise ValueError(f"{name} holds NaN or infinity")
        raise ValueError(f"vectors[{first}] holds NaN or infinity: leave such rows out, or repair what made them")
    return rows.detach().to(torch.float32).contiguous()


def check_update_ids(ids: Tensor, num_embeddings: int, padding_idx: int | None, device: torch.device) -> Tensor:
    """Ids (n,) as int64: each in range, none twice, none the padding.

    Raises:
        TypeError: not integers. IndexError: out of range. ValueError: another shape or device, a repeated id, or the
            padding.
    """
    rows = as_int64(ids)
    if rows.ndim != 1:
        raise ValueError(f"ids must have shape (n,), got {tuple(rows.shape)}")
    check_device(rows, device)
    outside = rows[(rows < 0) | (rows >= num_embeddings)]
    if outside.numel():
        raise IndexError(
            f"id {int(outside[0])} is out of range: the table has num_embeddings={num_embeddings}; append() adds ids"
        )
    distinct, counts = torch.unique(rows, return_counts=True)
    if distinct.numel() != rows.numel():
        repeated = int(distinct[counts > 1][0])
        raise ValueError(f"ids holds {repeated} more than once, and only one vector can win: keep the one you want")
    if padding_idx is not None and bool((rows == padding_idx).any()):
        raise ValueError(f"ids holds padding_idx={padding_idx}, which always looks up as zeros: leave it out")
    return rows
