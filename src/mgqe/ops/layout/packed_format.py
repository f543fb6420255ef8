"""Numbers of packed codes and tier maps that the kernels and every file agree on."""

from __future__ import annotations

from collections.abc import Sequence

MAX_BITS = 16  # of a code
MAX_CENTROIDS = 1 << MAX_BITS
LEVEL_BITS = 7  # of a code at most, where coordinates share their centroids, so that kernels hold these in registers
MAX_TIERS = 256  # a tier's number is a uint8
BLOCK_BITS = 256  # of a tier map, for each rank
WORDS_PER_BLOCK = BLOCK_BITS // 64


def level_lengths(sizes: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """n_l: the ids left at each of the m - 1 levels of a tier map that splits off the tiers in this order."""
    remaining, lengths = sum(sizes[tier] for tier in order), []
    for tier in order[:-1]:
        lengths.append(remaining)
        remaining -= sizes[tier]
    return tuple(lengths)
