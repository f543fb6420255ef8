"""The values of a field: counted, those that are frequent enough numbered, the others hashed or one row for all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mgqe.files.atomic import fill_file
from mgqe.ids import IdMap
from mgqe.ids.strings import hash_integers

MISSING = -(2**63)  # stands for a value that the log does not have
OTHER = MISSING + 1  # stands for all values that are too rare to have a row


class FieldCounter:
    """Counts a field's values exactly, or by their hashes once there are more than `hash_size` of them.

    With `hash_size` it takes memory for that many, otherwise for all different values.
    """

    def __init__(self, hash_size: int | None = None) -> None:
        self.hash_size = hash_size
        self.values = self.counts = np.empty(0, np.int64)
        self.buckets: np.ndarray | None = None
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_pending = 0

    def add(self, values: np.ndarray) -> None:
        """Count values, int64 (n,)."""
        distinct, counts = np.unique(values, return_counts=True)
        if self.buckets is not None:
            self._add_to_buckets(distinct, counts)
            return
        self._pending.append((distinct, counts))
        self._num_pending += len(distinct)
        if self._num_pending > max(len(self.values), 2**16):  # so that each value is merged a few times only
            self._merge()

    def _merge(self) -> None:
        values, counts = (
            np.concatenate(parts) for parts in zip((self.values, self.counts), *self._pending, strict=True)
        )
        self._pending, self._num_pending = [], 0
        self.values, inverse = np.unique(values, return_inverse=True)
        self.counts = np.bincount(inverse, counts, len(self.values)).astype(np.int64)
        if self.hash_size is not None and len(self.values) > self.hash_size:
            self.buckets = np.zeros(self.hash_size, np.int64)
            self._add_to_buckets(self.values, self.counts)
            self.values = self.counts = np.empty(0, np.int64)

    def _add_to_buckets(self, values: np.ndarray, counts: np.ndarray) -> None:
        assert self.buckets is not None
        np.add.at(self.buckets, hash_rows(values, len(self.buckets)), counts)

    def vocabulary(self, min_count: int) -> Vocabulary:
        """Rows by frequency: values that occur `min_count` times, and one row for the others; or the buckets."""
        if self._pending:
            self._merge()
        if self.buckets is not None:
            return Vocabulary(None, self.buckets)
        kept = self.counts >= min_count
        values = np.append(self.values[kept], OTHER)
        counts = np.append(self.counts[kept], self.counts[~kept].sum())
        order = np.lexsort((values, -counts))
        return Vocabulary(values[order], counts[order])


@dataclass(frozen=True)
class Vocabulary:
    """The rows of a field. values: int64 (n,), MISSING and OTHER among them; None: rows are hashes. counts: int64 (n,),
    how often each row occurs in the training part."""

    values: np.ndarray | None
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @cached_property
    def _map(self) -> tuple[IdMap, int]:
        assert self.values is not None
        return IdMap.from_ids(self.values), int(np.flatnonzero(self.values == OTHER)[0])

    def rows(self, values: np.ndarray) -> np.ndarray:
        """The row of each value: uint32 (n,)."""
        if self.values is None:
            return hash_rows(values, len(self)).astype(np.uint32)
        known, other = self._map
        rows: np.ndarray = known.rows(values, unknown=other).numpy().astype(np.uint32)
        return rows

    @property
    def tensor(self) -> Tensor:
        """The counts."""
        return torch.from_numpy(self.counts.copy())

    def save(self, path: Path) -> None:
        """Write a Parquet file."""
        columns = {"count": self.counts} if self.values is None else {"value": self.values, "count": self.counts}
        fill_file(path, pl.DataFrame(columns).write_parquet)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read a file that `save` wrote."""
        frame = pl.read_parquet(path)
        values = frame["value"].to_numpy() if "value" in frame.columns else None
        return cls(values, frame["count"].to_numpy())


def hash_rows(values: np.ndarray, size: int) -> np.ndarray:
    """A row below `size` for each value, int64 (n,) -> int64 (n,)."""
    rows: np.ndarray = (hash_integers(values.view(np.uint64), 0) % np.uint64(size)).astype(np.int64)
    return rows
