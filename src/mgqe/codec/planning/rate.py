"""How much of a table's squares k-means codes are expected to lose: the prediction behind `plan`, without a table.

Rows count as Gaussian, so that a subspace of s dimensions with K centroids loses a share that depends on s and K alone,
falling as K^(-2 / s) in the end (rate-distortion theory; Zador, 1982). How much exactly was measured once with this
library's own k-means by ``benchmarks/quality/plan_calibration.py``; the figures are those of
``benchmarks/quality/results/plan-calibration.json``.
"""

from __future__ import annotations

import math
from functools import cache

WIDTHS = (1, 2, 4, 8, 16, 32)  # dimensions per subspace
BITS = range(1, 11)  # K = 2, 4, ..., 1024
# Share of the squares lost with many rows per centroid: one line for each of WIDTHS, one entry for each of BITS.
LIMITS = (
    (0.362181, 0.117343, 0.034821, 0.009490, 0.002521, 0.000602, 0.000157, 0.000041, 0.000010, 0.000004),
    (0.677289, 0.360601, 0.199341, 0.106029, 0.056273, 0.028678, 0.014816, 0.007486, 0.003704, 0.001822),
    (0.836310, 0.639375, 0.457540, 0.336189, 0.244894, 0.177799, 0.128946, 0.093224, 0.065987, 0.045535),
    (0.916034, 0.814324, 0.698886, 0.591574, 0.502314, 0.426551, 0.362809, 0.309503, 0.259481, 0.212790),
    (0.956740, 0.904246, 0.843730, 0.776022, 0.710733, 0.653466, 0.603302, 0.556156, 0.505019, 0.451655),
    (0.977653, 0.949932, 0.917574, 0.879818, 0.839153, 0.803806, 0.772463, 0.741523, 0.703917, 0.660043),
)

# (start, slope) of the power in few_rows, fitted to the same file's figures, for s = 1, 2, 4, 8, 16.
FEW = ((2.558, 0.319), (1.976, 0.280), (1.592, 0.270), (1.326, 0.263), (1.192, 0.216))
FEW_WIDTHS = len(FEW) - 1

LARGEST = 4.5  # standard deviations, of the centroids of Gaussian rows


@cache
def limit(width: int, centroids: int) -> float:
    """Share of the squares that K centroids lose on subspaces of s dimensions, if there are many rows for each.

    Between the figures that were measured, -ln(share) is a power of s; beyond the last K, ln(share) is a line in log K.
    """
    place = min(max(math.log2(width), 0.0), math.log2(WIDTHS[-1]))
    at = min(int(place), len(WIDTHS) - 2)
    low, high = (-math.log(_of_width(row, centroids)) for row in LIMITS[at : at + 2])
    return math.exp(-(low ** (at + 1 - place)) * high ** (place - at))


def _of_width(row: tuple[float, ...], centroids: int) -> float:
    bits = math.log2(max(centroids, 2))
    at = min(int(bits), BITS[-2])
    left, right = (math.log(row[BITS.index(b)]) for b in (at, at + 1))
    return math.exp(left + (bits - at) * (right - left))


def few_rows(width: int, rows_a_centroid: float) -> float:
    """What fitting few rows takes off the error: (1 - K / rows)^p, p a line in log2(rows / K); within 9%."""
    if rows_a_centroid <= 1:
        return 0.0
    place = min(math.log2(width), FEW_WIDTHS)
    at = min(int(place), FEW_WIDTHS - 1)
    (start, slope), (next_start, next_slope) = FEW[at : at + 2]
    start, slope = (x + (place - at) * (y - x) for x, y in ((start, next_start), (slope, next_slope)))
    power = start + slope * min(math.log2(rows_a_centroid), 6.0)
    return float((1.0 - 1.0 / rows_a_centroid) ** power)


def nested_factor(width: int, inherited: float) -> float:
    """How much worse the head fares in a codebook whose first centroids, this share, were fitted to other rows.

    Measured on Gaussian rows of one kind: 1.056 for s = 2 with 64 of 256 inherited, 1.175 with 128 of 256.
    """
    return 1.0 + 1.6 * inherited * inherited / width


def tier_error(width: int, centroids: int, rows: int, inherited: int = 0) -> float:
    """Of one tier, before its centroids are rounded.

    Args:
        width: s, dimensions per subspace.
        rows: ids of the tier.
        inherited: of its centroids, those that less frequent tiers fitted.
    """
    fitted = min(centroids - inherited, rows)  # on the rows of this tier; inherited ones are as they are
    return limit(width, centroids) * few_rows(width, rows / fitted) * nested_factor(width, inherited / centroids)


def rounding(centroid_dtype: str, centroids: int) -> float:
    """What storing centroids as float16 or int8 adds: the variance of the rounding, relative to the values'.

    int8 steps are 1/127 of the largest value of a subspace, which grows with K to some four standard deviations.
    """
    if centroid_dtype == "int8":
        largest = min(1.0 + 0.4 * math.log2(centroids), LARGEST)
        return (largest / 127) ** 2 / 12
    return 2.0**-24 if centroid_dtype == "float16" else 0.0
