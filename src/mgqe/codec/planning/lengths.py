"""Tiers by the lengths of rows, for tables without counts: where they end so that bits are unequal as rows are.

A tier of n rows whose mean square is s needs (n d / 2) log2(s / theta) bits for an error of theta per number (see
:mod:`mgqe.codec.planning.waterfill`). So the tiers that need fewest bits for the same error are those with the least
sum of n log s, which dynamic programming finds over rows in order. At the same bits a sum that is less by N log f
leaves an error that is f times smaller.
"""

from __future__ import annotations

import math

import numpy as np

CELLS = 256  # that rows of about the same square are counted in
FLOOR = 1e-4  # of the mean square: shorter rows get hardly any bits, however short they are
LONG = 100.0  # times the mean square of all rows: whatever it gains, since few such rows make stored numbers coarse
TWO_PAY, MORE_PAY = 1.25, 1.1  # times smaller errors, for which two tiers, and more of them, may slow look-ups down


def sizes_by_length(squares: np.ndarray, most: int) -> list[tuple[int, ...]]:
    """The number of rows in each tier, the longest first: of one tier, and of each number of tiers that pays.

    Args:
        squares: (N,), the square of each row's length, N at least 1.
        most: tiers.
    """
    counts, sums = _cells(squares)
    rows, totals = (np.concatenate([[0.0], np.cumsum(each)]) for each in (counts, sums))
    n, total = rows[None, :] - rows[:, None], totals[None, :] - totals[:, None]
    cost = np.full(n.shape, np.inf)  # of the rows from one place to another, as a tier
    later = np.triu_indices(len(rows), 1)
    cost[later] = n[later] * np.log(total[later] / n[later])
    best, starts = cost[0], []  # of tiers up to each place; where the last one of them starts
    found: list[tuple[int, ...]] = [(len(squares),)]
    reached = best[-1]
    for _ in range(2, min(most, len(counts)) + 1):
        through = best[:, None] + cost
        starts.append(through.argmin(0))
        best = through.min(0)
        ends = [len(counts)]
        for start in reversed(starts):
            ends.append(int(start[ends[-1]]))
        places = [0, *reversed(ends)]
        times_smaller = math.exp((reached - best[-1]) / len(squares))
        longer = total[0, places[1]] / n[0, places[1]] / (total[0, -1] / n[0, -1])
        if times_smaller >= (TWO_PAY if len(found) == 1 else MORE_PAY) or (len(found) == 1 and longer >= LONG):
            found.append(tuple(int(size) for size in np.diff(rows[places])))
            reached = best[-1]
    return found


def _cells(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many rows have about the same square, and the sum of their squares, the longest rows first."""
    least = max(FLOOR * float(squares.mean(dtype=np.float64)), np.finfo(np.float64).tiny)
    floored = np.maximum(squares.astype(np.float64), least)
    logs = np.log(floored)
    width = max(float(logs.max() - logs.min()), 1e-12) / CELLS
    cell = np.minimum(((logs.max() - logs) / width).astype(np.int64), CELLS - 1)
    counts, sums = np.bincount(cell), np.bincount(cell, floored)
    return counts[counts > 0], sums[counts > 0]
