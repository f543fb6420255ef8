"""What a look-up is expected to take: to compare shapes with each other, and a plan with nn.Embedding.

An estimate, for many ids at once on one core of a server with AVX-512 VBMI and VNNI. A row is found, its codes are
unpacked, their centroids copied (or looked up in registers, where coordinates share levels), and coordinates that are
turned are multiplied with the matrix. The rows of frequent ids stay in the caches, which hold more codes than rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from mgqe.codec.capacity import BY_COLUMNS, OfTiers

COPIED = 8  # coordinates that are copied at once
LINE = 64  # bytes of a cache line
NEAR, FAR = 2 << 20, 32 << 20  # bytes that a core's own cache holds, and its share of the last one


@dataclass(frozen=True)
class Costs:
    """Nanoseconds; fitted by ``python -m benchmarks.speed.lookup_model``.

    Attributes:
        row: to find a row.
        number: of a vector, to be written.
        level: of a code whose levels are in registers.
        copy: of up to COPIED coordinates of a centroid.
        product: of a coordinate and a number of the matrix, both whole.
        float_product: the same in float32.
        line: of codes that are in no cache; they are fetched ahead.
        full_number: of nn.Embedding, to be copied.
        near_line, far_line: of nn.Embedding's rows, not in the core's own cache; in none.
    """

    row: float = 3
    number: float = 0.15
    level: float = 0.15
    copy: float = 0.94
    product: float = 0.0024
    float_product: float = 0.011
    line: float = 0.49
    full_number: float = 0.54
    near_line: float = 1.6
    far_line: float = 3.5


COSTS = Costs()


@dataclass(frozen=True, eq=False)
class Frequencies:
    """Which ids look-ups ask for.

    Attributes:
        ids: N.
        counts: (N,), how often each id occurs; None for ids alike.
    """

    ids: int
    counts: Tensor | None = None

    @classmethod
    def of(cls, ids: int, counts: Tensor | None) -> Frequencies:
        """By how often each id occurs, (N,); all alike without counts, and where all are zeros."""
        return cls(ids, None if counts is None or not bool(counts.any()) else counts)

    @cached_property
    def cumulated(self) -> np.ndarray | None:
        """(N,), the share of the look-ups that the most frequent 1, 2, ... ids get; None for ids alike."""
        if self.counts is None:
            return None
        ordered = np.sort(self.counts.detach().cpu().double().numpy())[::-1]
        shares: np.ndarray = ordered.cumsum() / ordered.sum()
        return shares

    def beyond(self, rows: float) -> float:
        """The share of the look-ups of other ids than so many most frequent ones."""
        if rows >= self.ids:
            return 0.0
        if self.cumulated is None:
            return 1.0 - rows / self.ids
        return 1.0 - float(self.cumulated[int(rows) - 1]) if rows >= 1 else 1.0


def lookup_cost(shape: OfTiers, turned: bool = True, costs: Costs = COSTS) -> float:
    """Nanoseconds per row of what is in the caches. turned: whether rows are multiplied with a matrix."""
    d, tier = shape.embedding_dim, max(shape.tiers, key=lambda tier: tier.num_subspaces)
    if shape.has_levels:
        decoded = costs.level * tier.num_subspaces
    else:
        widths = shape.widths or (d // tier.num_subspaces,) * tier.num_subspaces
        decoded = costs.copy * sum(-(-width // COPIED) for width in widths)
    if shape.matrix_dtype is not None and turned:
        product = costs.product if shape.matrix_dtype == BY_COLUMNS else costs.float_product
        decoded += product * shape.num_coordinates * d
    return costs.row + costs.number * d + decoded


def full_cost(embedding_dim: int, asked: Frequencies, costs: Costs = COSTS) -> float:
    """Nanoseconds per row of nn.Embedding."""
    nbytes = 4 * embedding_dim
    missed = costs.near_line * asked.beyond(NEAR / nbytes) + costs.far_line * asked.beyond(FAR / nbytes)
    return costs.full_number * embedding_dim + missed * -(-nbytes // LINE)


def lookup_time(shape: OfTiers, asked: Frequencies, turned: bool = True, costs: Costs = COSTS) -> float:
    """Nanoseconds per row that a look-up is expected to take, with ids asked for like that."""
    nbytes = sum(tier.ids * tier.row_bytes for tier in shape.tiers) / max(1, asked.ids)
    missed = costs.line * asked.beyond(FAR / max(nbytes, 1.0)) * (1.0 + nbytes / LINE)  # rows lie across lines
    return lookup_cost(shape, turned, costs) + missed


def lookup_share(shape: OfTiers, asked: Frequencies, turned: bool = True, costs: Costs = COSTS) -> float:
    """The share of nn.Embedding's time that this is, with the same ids."""
    return lookup_time(shape, asked, turned, costs) / full_cost(shape.embedding_dim, asked, costs)


def speed_rank(shape: OfTiers, asked: Frequencies, turned: bool = True, costs: Costs = COSTS) -> int:
    """By which shapes of one table are compared: :func:`lookup_time` in whole hundredths of copying a full row.

    An estimate cannot tell less apart. Which ids are asked for matters only where not all codes are in the caches: the
    tiers of a mixed table have the same subspaces, so that rows of all tiers take as long to decode.
    """
    return round(lookup_time(shape, asked, turned, costs) / (costs.full_number * shape.embedding_dim) * 100)


def in_words(share: float) -> str:
    """For plans and reports."""
    return f"look-up {share:.1f} of nn.Embedding's time, estimated"
