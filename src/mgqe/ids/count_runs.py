"""Counts in falling order, stored as runs of equal counts, since many ids share a count.

100 million interactions have at most 14,142 different counts, because 1 + 2 + ... + 14,142 is as many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CountRuns:
    """Run i: rows ends[i - 1] to ends[i] - 1 have the count values[i].

    Attributes:
        values: int64 (m,), falling, each at least 1.
        ends: int64 (m,), rising; the last one is N.
    """

    values: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray) -> CountRuns:
        """From falling counts: int64 (N,)."""
        last = np.flatnonzero(np.append(counts[1:] != counts[:-1], True)) if len(counts) else np.empty(0, np.int64)
        return cls(counts[last].astype(np.int64), (last + 1).astype(np.int64))

    def expand(self) -> np.ndarray:
        """The count of each row: int64 (N,)."""
        return np.repeat(self.values, np.diff(self.ends, prepend=0))

    def sum_of_first(self, rows: int) -> int:
        """Sum of the first ``rows`` counts."""
        ends = np.minimum(self.ends, rows)
        return int((self.values * np.diff(ends, prepend=0)).sum())
