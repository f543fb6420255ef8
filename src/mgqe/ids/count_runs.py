"""Counts that never rise from row to row, as runs: 100 million interactions have at most 14,142 different counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CountRuns:
    """Rows ends[i - 1] to ends[i] - 1 have count values[i].

    Attributes:
        values: int64 (m,), falling, at least 1.
        ends: int64 (m,), rising; the last is N.
    """

    values: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray) -> CountRuns:
        """From counts in frequency order: int64 (N,)."""
        last = np.flatnonzero(np.append(counts[1:] != counts[:-1], True)) if len(counts) else np.empty(0, np.int64)
        return cls(counts[last].astype(np.int64), (last + 1).astype(np.int64))

    def expand(self) -> np.ndarray:
        """One count a row: int64 (N,)."""
        return np.repeat(self.values, np.diff(self.ends, prepend=0))

    def head(self, rows: int) -> int:
        """Sum of the first ``rows`` counts."""
        ends = np.minimum(self.ends, rows)
        return int((self.values * np.diff(ends, prepend=0)).sum())
