"""Levels of single numbers: one-dimensional k-means, which is quick enough to be done well (Lloyd, 1957; Max, 1960).

Numbers in order make every cell a range, and sums over a range are differences of running sums: an iteration of Lloyd's
algorithm over any count of numbers takes as long as finding K - 1 places.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

MAX_ITERATIONS = 500
ENOUGH = 1e-12  # of what one level loses: a cell that loses less is not divided
PEAKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # of the largest level, to which levels may be cut


@dataclass(frozen=True, eq=False)
class Numbers:
    """Weighted numbers in ascending order.

    Attributes:
        values: (n,) float64. mass, sums, squares: (n + 1,), the running sums of w, w v and w v^2, from 0.
    """

    values: np.ndarray
    mass: np.ndarray
    sums: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, weights: np.ndarray) -> Numbers:
        """Of values and weights (n,); those without weight are left out, unless none has any."""
        if (weights > 0).any():
            values, weights = values[weights > 0], weights[weights > 0]
        order = np.argsort(values, kind="stable")
        values, weights = values[order].astype(np.float64), weights[order].astype(np.float64)
        weighted = weights * values
        parts = weights, weighted, weighted * values
        return cls(values, *(np.concatenate([[0.0], np.cumsum(part)]) for part in parts))

    def levels(self, num_levels: int) -> np.ndarray:
        """The levels (K,), ascending, that lose least of the squares: what Lloyd's algorithm finds from good cells.

        Of fewer different numbers than levels the last one is repeated; of no numbers all levels are 0.
        """
        if not len(self.values):
            return np.zeros(num_levels)
        ends = self._cells(num_levels)
        for _ in range(MAX_ITERATIONS):
            moved = self._ends(self._means(ends))
            if np.array_equal(moved, ends):
                break
            ends = moved
        levels = self._means(ends)
        return np.concatenate([levels, np.repeat(levels[-1:], num_levels - len(levels))])

    def loss(self, levels: np.ndarray) -> float:
        """The weighted squares of what each number is away from its nearest level; levels ascending."""
        ends = self._ends(levels)
        mass, sums, squares = (np.diff(each[ends]) for each in (self.mass, self.sums, self.squares))
        return float((squares - 2 * levels * sums + levels**2 * mass).sum())

    def _ends(self, levels: np.ndarray) -> np.ndarray:
        """(K + 1,): the numbers nearest to each level are those from one end to the next."""
        inner = np.searchsorted(self.values, (levels[1:] + levels[:-1]) / 2, side="right")
        return np.concatenate([[0], inner, [len(self.values)]])

    def _means(self, ends: np.ndarray) -> np.ndarray:
        """Of the numbers between the ends; of none, the number at its end."""
        mass = np.diff(self.mass[ends])
        here = self.values[np.minimum(ends[:-1], len(self.values) - 1)]
        means: np.ndarray = np.where(mass > 0, np.diff(self.sums[ends]) / np.maximum(mass, 1e-300), here)
        return means

    def _cells(self, count: int) -> np.ndarray:
        """Ends of at most so many cells: the one that loses most is divided at its mean, until there are enough."""
        cells = [(-self._lost(0, len(self.values)), 0, len(self.values))]
        least = -ENOUGH * cells[0][0]
        while len(cells) < count and -cells[0][0] > least:
            _, start, stop = cells[0]
            mean = (self.sums[stop] - self.sums[start]) / (self.mass[stop] - self.mass[start])
            cut = start + int(np.searchsorted(self.values[start:stop], mean, side="right"))
            cut = min(max(cut, start + 1), stop - 1)
            heapq.heapreplace(cells, (-self._lost(start, cut), start, cut))
            heapq.heappush(cells, (-self._lost(cut, stop), cut, stop))
        return np.array([*sorted(start for _, start, _ in cells), len(self.values)])

    def _lost(self, start: int, stop: int) -> float:
        """The weighted squares about the mean of the numbers from start to stop."""
        mass, total = self.mass[stop] - self.mass[start], self.sums[stop] - self.sums[start]
        if stop - start < 2 or mass <= 0:
            return 0.0
        return float(self.squares[stop] - self.squares[start] - total * total / mass)


def best_step(numbers: list[Numbers], levels: list[np.ndarray], whole_steps: int) -> float:
    """The step of which levels are stored as whole multiples, at most so many: the one that loses least.

    Levels beyond the last multiple are cut to it: a few numbers far out would else cost the digits of all others.
    """
    peak = max((float(np.abs(each).max()) for each in levels), default=0.0)
    if peak <= 0:
        return 1.0
    steps = [peak * share / whole_steps for share in PEAKS]

    def loss(step: float) -> float:
        return sum(n.loss(in_steps(x, step, whole_steps)) for n, x in zip(numbers, levels, strict=True))

    return min(steps, key=loss)


def in_steps(levels: np.ndarray, step: float, whole_steps: int) -> np.ndarray:
    """Levels in whole multiples of a step, at most so many on either side."""
    result: np.ndarray = np.clip(np.round(levels / step), -whole_steps, whole_steps) * step
    return result
