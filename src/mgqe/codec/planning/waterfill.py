"""Bits where they save most: reverse water-filling over the tiers and the coordinates of a table.

A coordinate of variance v with r bits keeps an error of v 4^-r in the best case (Shannon), so that the least total
error gives every coordinate of every tier the same error theta, as far as there is so much: r = max(0, log2(w v /
theta) / 2), w the weight of an id of the tier. Codes are whole bits of a few joined coordinates and centroids take
bytes, so that theta says which coordinates are joined, and bits are then given one by one, each where it saves most
for its bytes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import numpy as np

from mgqe.codec.planning.rate import few_rows, limit, rounding

MAX_WIDTH = 32  # coordinates per subspace
UNLIKE = 4.0  # times the variance: steps that follow so much more are worth a thought
LEAST_LEVEL = -1000.0  # log2 of theta: a float has no smaller powers of two to speak of
LEAST_BITS = 0.02  # of a coordinate that is worth keeping


def water_level(variances: np.ndarray, rate: float) -> float:
    """theta for so many bits per row: sum over coordinates of max(0, log2(v / theta) / 2) = rate."""
    ordered = np.sort(variances[variances > 0])[::-1]
    if not len(ordered):
        return 1.0
    logs = np.log2(ordered)
    for count in range(len(ordered), 0, -1):
        level = (logs[:count].sum() - 2 * rate) / count
        if level <= logs[count - 1]:
            return float(2.0 ** max(level, LEAST_LEVEL))
    return float(ordered[0])


def bits_at(variances: np.ndarray, rate: float) -> np.ndarray:
    """(d,): how many of so many bits per row each coordinate gets."""
    level = water_level(variances, rate)
    result: np.ndarray = np.maximum(0.0, 0.5 * np.log2(np.maximum(variances, 1e-300) / level))
    return np.where(variances > 0, result, 0.0)


def joined(variances: np.ndarray, rate: float, bits_per_code: float, least_bits: float = LEAST_BITS) -> tuple[int, ...]:
    """Widths of subspaces: neighbouring coordinates joined up to about ``bits_per_code`` bits at so many bits per row.

    Args:
        variances: (d,), falling. Coordinates that get no more than ``least_bits`` at this rate are in no subspace.
    """
    bits = bits_at(variances, rate)
    kept = max(1, int((bits > least_bits).sum()))
    widths, start = [], 0
    while start < kept:
        width, total = 1, bits[start]
        while start + width < kept and width < MAX_WIDTH and total + bits[start + width] / 2 <= bits_per_code:
            total += bits[start + width]
            width += 1
        widths.append(width)
        start += width
    return tuple(widths)


def distortion(
    variances: np.ndarray,
    bits: int,
    rows: int,
    centroid_dtype: str = "float32",
    concentration: tuple[float, ...] = (1.0,),
    stepped: float | None = None,
) -> float:
    """The squared error that k-means codes of so many bits are expected to leave of one subspace of Gaussian rows.

    That of the best codes, times what k-means of this width loses against them and takes by fitting few rows, and what
    storing the centroids adds.

    Args:
        variances: (w,), falling.
        rows: that the centroids are fitted to.
        concentration: how many average rows one row counts, for equal shares of all weight; (1,) for equal weights. A
            row that counts much pulls its centroid as so many rows would.
        stepped: the variance that steps of stored centroids follow, where they follow other rows or numbers far out; by
            default they follow the centroids of these rows.
    """
    total = float(variances.sum())
    centroids = 1 << bits
    if stepped is None:
        stored = rounding(centroid_dtype, centroids) * len(variances) * float(variances[0])
    else:
        stored = rounding(centroid_dtype, 1 << 8) * len(variances) * stepped
    if rows <= centroids:  # each row has its own
        return min(total, stored)
    if bits == 0 or total == 0:
        return total
    count = len(variances)
    logs = np.log2(np.maximum(variances, 1e-300))
    while True:
        level = 2.0 ** ((logs[:count].sum() - 2 * bits) / count)
        if count == 1 or level <= variances[count - 1]:
            break
        count -= 1
    fitted = _fitted(count, rows / centroids, concentration)
    loss = limit(count, centroids) * 4.0 ** (bits / count) * fitted
    return min(total, float(count * level * loss + variances[count:].sum()) + stored)


@lru_cache(maxsize=4096)
def _fitted(width: int, rows_a_centroid: float, concentration: tuple[float, ...]) -> float:
    """What fitting few rows of unequal weight takes off the error."""
    return sum(few_rows(width, rows_a_centroid / each) for each in concentration) / len(concentration)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What there is to lose in each coordinate of each tier.

    Attributes:
        variances: (m, d), the mean squares of the coordinates of a tier's rows less their mean over the table.
        weights: (m,), how much the error of one id of the tier counts.
        sizes: ids of each tier.
        concentration: of each tier, how unequal the weights of its ids are; see :func:`distortion`.
        centroid_dtype: how centroids are stored.
        stepped: (m, d), the variances that the steps of stored centroids follow: those of Gaussian numbers
            with the same peak; by default the variances.
        shares_steps: whether the steps of stored centroids are the same in all tiers.
    """

    variances: np.ndarray
    weights: np.ndarray
    sizes: tuple[int, ...]
    concentration: tuple[tuple[float, ...], ...] = ()
    centroid_dtype: str = "float32"
    stepped: np.ndarray | None = None
    shares_steps: bool = False

    @property
    def total(self) -> np.ndarray:
        """(d,), the weighted mean over all ids."""
        mass = self.weights * np.array(self.sizes)
        result: np.ndarray = mass @ self.variances / max(mass.sum(), 1e-300)
        return result

    def error(self, tier: int, start: int, stop: int, bits: int) -> float:
        """The squared error of a tier's id in the subspace of the coordinates start to stop."""
        key = (tier, start, stop, bits)
        if key not in self._errors:
            unequal = self.concentration[tier] if self.concentration else (1.0,)
            variances = self.variances[tier, start:stop]
            stepped = self._stepped(tier, start, stop)
            self._errors[key] = distortion(variances, bits, self.sizes[tier], self.centroid_dtype, unequal, stepped)
        return self._errors[key]

    def _stepped(self, tier: int, start: int, stop: int) -> float | None:
        """Which variance the steps of a tier's subspace follow, if it is not its own."""
        own = float(self.variances[tier, start:stop].max())
        stepped = self.variances if self.stepped is None else self.stepped
        followed = float(stepped[slice(None) if self.shares_steps else tier, start:stop].max())
        return followed if followed > UNLIKE * own else None

    @cached_property
    def _errors(self) -> dict[tuple[int, int, int, int], float]:
        return {}

    def lost(self, widths: Sequence[int], bits: Sequence[Sequence[int]]) -> np.ndarray:
        """(m,), the squared error of an id of each tier with these subspaces and bits."""
        errors: np.ndarray = self.variances[:, sum(widths) :].sum(1)
        for g in range(len(self.sizes)):
            start = 0
            for width, b in zip(widths, bits[g], strict=True):
                errors[g] += self.error(g, start, start + width, b)
                start += width
        return errors

    def loss(self, lost: np.ndarray) -> float:
        """The weighted error, as a share of the weighted squares, of so much lost per id of each tier, (m,)."""
        mass = self.weights * np.array(self.sizes)
        return float(mass @ lost) / max(float(mass @ self.variances.sum(1)), 1e-300)


def give_bits(
    spectrum: Spectrum, widths: Sequence[int], room: int, centroid_bytes: int, share_codebook: bool, max_bits: int
) -> list[list[int]]:
    """Bits of each code of each tier within so many bytes of codes and centroids; rows fill whole bytes.

    Each bit goes where it takes most off the loss for the bytes of its codes and its centroids.
    """
    m, subspaces = len(spectrum.sizes), len(widths)
    starts = [0, *accumulate(widths)]
    bits = [[0] * subspaces for _ in range(m)]
    top = [max(0, min(max_bits, int(np.log2(max(1, size))))) for size in spectrum.sizes]
    mass = [float(weight * size) for weight, size in zip(spectrum.weights, spectrum.sizes, strict=True)]

    def error_of(g: int, j: int, b: int) -> float:
        return mass[g] * spectrum.error(g, starts[j], starts[j + 1], b)

    now = [[error_of(g, j, 0) for j in range(subspaces)] for g in range(m)]  # errors with the bits so far
    after = [[0.0] * subspaces for _ in range(m)]  # and with one more; many gains are worked out, each needs both

    def more_centroids(g: int, j: int) -> int:
        """Bytes of centroids that one more bit needs."""
        largest = max(bits[h][j] for h in range(m)) if share_codebook else bits[g][j]
        return widths[j] * centroid_bytes << bits[g][j] if bits[g][j] >= largest else 0

    def gain(g: int, j: int) -> float:
        if bits[g][j] >= top[g]:
            return -1.0
        after[g][j] = error_of(g, j, bits[g][j] + 1)
        return (now[g][j] - after[g][j]) / (spectrum.sizes[g] / 8 + more_centroids(g, j))

    used = sum(widths) * centroid_bytes * (1 if share_codebook else m)
    heap = [(-gain(g, j), g, j) for g in range(m) for j in range(subspaces)]
    heapq.heapify(heap)
    full = [False] * m
    while heap:
        negative, g, j = heapq.heappop(heap)
        # In a shared codebook another tier may have paid for the centroids since; else the gain is as it was.
        current = gain(g, j) if share_codebook else -negative
        if current <= 0 or full[g]:
            continue
        if -negative > current * (1 + 1e-12):
            heapq.heappush(heap, (-current, g, j))
            continue
        row = sum(bits[g])
        opens = spectrum.sizes[g] if row % 8 == 0 else 0  # the first bit of a byte pays for the byte
        if used + opens + more_centroids(g, j) > room:
            if opens:
                full[g] = True
            continue
        used += opens + more_centroids(g, j)
        bits[g][j] += 1
        now[g][j] = after[g][j]
        heapq.heappush(heap, (-gain(g, j), g, j))
    return bits
