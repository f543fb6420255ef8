"""Shapes of mixed tables within a budget: widths of subspaces, bits per tier, and the best of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mgqe.codec.axes import Axes
from mgqe.codec.capacity import BY_COLUMNS, Capacity, TierShape
from mgqe.codec.layout import frozen_nbytes
from mgqe.codec.metric import Metric
from mgqe.codec.planning.speed import Frequencies, speed_rank
from mgqe.codec.planning.waterfill import LEAST_BITS, Spectrum, bits_at, give_bits, joined
from mgqe.codec.tiers import Tiers
from mgqe.ops.layout.packed_format import LEVEL_BITS

CODE_BITS = (3.0, 4.0, 5.0, 6.0, 7.0, 8.0)  # of a code on average, that are tried
# Shapes that are fast: codes of one coordinate each, which share their levels; and fewer coordinates.
LEVELS = 0.0
SPARE_SHAPES = ((LEVELS, LEAST_BITS), (LEVELS, 0.25), (8.0, 0.25), (8.0, 0.5))
SLACK, LEVELS_SLACK = 0.05, 0.1  # of the bits, that speed may cost
SPEED, SIZE = "speed", "size"
PREFERENCES = (SPEED, SIZE)  # what a plan does with shapes that lose about as little: the fastest, or the least loss
LEVELS_FROM = 3.0  # bits of a code, from which arithmetic beats look-ups; fewer make searches slow
MAX_BITS = 8
FULL_BOOKS = 3  # tiers whose codes may all have MAX_BITS; more tiers must do with as many centroids
ROUNDS = 8  # divisions into subspaces that are tried for each number of bits per code
LEAST_RATE = 1.0  # bits per row, below which there is one coordinate


def centroid_room(embedding_dim: int) -> int:
    """How many numbers of centroids a plan may have at most; layers that are to be planned have a parameter of them."""
    return FULL_BOOKS * embedding_dim << MAX_BITS


def check_preference(prefer: object) -> None:
    """Raise ValueError for what is no preference of a plan."""
    if prefer not in PREFERENCES:
        raise ValueError(f"prefer must be one of {PREFERENCES}, got {prefer!r}")


def check_prefer_tail(prefer_tail: object, counts: object) -> None:
    """Raise ValueError where rare ids are preferred and no counts say which ones are rare."""
    if prefer_tail and counts is None:
        raise ValueError(
            "prefer_tail=True lets rare ids count as much as frequent ones, and without counts all ids count alike: "
            "give counts (N,) too, or leave prefer_tail out"
        )


@dataclass(frozen=True)
class Choice:
    """What a plan leaves open: how ids are weighted and divided, what an error costs, how centroids are shared.

    Attributes:
        counts_power: an id weighs (count + 1) to this power.
        fractions: the share of the ids in each tier, the most frequent first.
        metric: what an error costs.
        share_codebook: one codebook for all tiers, nested; otherwise one for each.
        centroid_dtype: how the file holds centroids.
        prefer: "speed": of the shapes that lose about as little the one that looks up fastest; "size": the one that
            loses least.
        by_length: the longest rows are in the first tier, not the most frequent ids.
    """

    counts_power: float
    fractions: tuple[float, ...]
    metric: Metric
    share_codebook: bool = False
    centroid_dtype: str = "int8"
    prefer: str = SPEED
    by_length: bool = False


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Coordinates that rows may be coded in.

    Attributes:
        axes: what they are.
        spectrum: what there is to lose in each.
        matrix_errors: (d,), what the rounding of the matrix adds to the error, per unit of a coordinate's variance.
        total: what there is to lose in all ids together, in the metric.
        matrix_dtype: how the file holds the matrix.
        turned: whether rows are multiplied with a matrix; else coordinates are their own numbers.
    """

    axes: Axes
    spectrum: Spectrum
    matrix_errors: np.ndarray
    total: float
    matrix_dtype: str = BY_COLUMNS
    turned: bool = True


@dataclass(frozen=True, eq=False)
class Shape:
    """A shape within the budget.

    Attributes:
        coordinates: that rows are coded in.
        capacity: the widths and bits.
        lost: (m,), the squared error that an id of each tier is expected to keep.
        loss: the share of what there is to lose.
    """

    coordinates: Coordinates
    capacity: Capacity
    lost: np.ndarray
    loss: float

    def bits(self, ids: int) -> float:
        """Of a row's codes, on average."""
        return sum(tier.ids * sum(tier.code_bits) for tier in self.capacity.tiers) / max(1, ids)

    def rank(self, asked: Frequencies) -> int:
        """Of a look-up's time, with ids asked for like that."""
        return speed_rank(self.capacity, asked, self.coordinates.turned)


def best_shape(
    coordinates: Sequence[Coordinates],
    tiers: Tiers,
    choice: Choice,
    budget: int,
    padding_idx: int | None,
    asked: Frequencies,
) -> Shape | None:
    """Of the shapes within so many bytes the best by the choice's preference; None where nothing fits.

    coordinates: those of the metric first, in which the loss is measured. With column scales there are fast shapes, of
    which it may be one that loses a little more (:func:`fastest`). In the rows' own axes there are levels alone.
    """
    shapes: list[Shape] = []
    for each in coordinates:
        spectrum, d = each.spectrum, each.spectrum.variances.shape[1]
        for code_bits, least_bits in _kinds(each):
            for capacity in _capacities(each, tiers, choice, budget, padding_idx, code_bits, least_bits):
                kept = capacity.num_coordinates
                if kept < d and not each.turned:
                    continue
                if sum(size for (size,) in capacity.codebook_shapes) > centroid_room(d):
                    continue
                lost = spectrum.lost(capacity.widths, [tier.code_bits for tier in capacity.tiers])
                lost += spectrum.variances[:, :kept] @ each.matrix_errors[:kept]
                # Of all shapes as a share of the same total: errors in own axes cost what they cost in the metric.
                loss = spectrum.loss(lost) * each.total / max(coordinates[0].total, 1e-300)
                shapes.append(Shape(each, capacity, lost, loss))
    if not shapes:
        return None
    if choice.prefer == SPEED and coordinates[0].matrix_dtype == BY_COLUMNS:
        return fastest(shapes, asked)
    return min(shapes, key=lambda shape: (shape.loss, shape.rank(asked)))


def _kinds(coordinates: Coordinates) -> Iterable[tuple[float, float]]:
    """The bits of a code, and the fewest of a coordinate, that are tried in these coordinates."""
    if not coordinates.turned:
        return [(LEVELS, -1.0)]  # all numbers of a row
    spare = SPARE_SHAPES if coordinates.matrix_dtype == BY_COLUMNS else ()
    return [*((code_bits, LEAST_BITS) for code_bits in CODE_BITS), *spare]


def fastest(shapes: Sequence[Shape], asked: Frequencies) -> Shape:
    """The shape that looks up ids fastest, of those that lose no more than the best one would with SLACK fewer bits.

    With LEVELS_SLACK fewer bits, shapes with levels, if a code has LEVELS_FROM bits or more on average. Of shapes that
    are as fast (:func:`mgqe.codec.planning.speed.speed_rank`) the one that loses least.
    """
    least = min(shapes, key=lambda shape: shape.loss)
    bits = least.bits(asked.ids)

    def good(shape: Shape) -> bool:
        levels = shape.capacity.has_levels
        if levels and shape.bits(asked.ids) < LEVELS_FROM * len(shape.capacity.widths):
            return shape is least
        slack = LEVELS_SLACK if levels else SLACK
        return bool(shape.loss <= least.loss * 4.0 ** (slack * bits / least.capacity.num_coordinates))

    return min(filter(good, shapes), key=lambda shape: (shape.rank(asked), shape.loss))


def _capacities(
    coordinates: Coordinates,
    tiers: Tiers,
    choice: Choice,
    budget: int,
    padding_idx: int | None,
    code_bits: float,
    least_bits: float,
) -> Iterator[Capacity]:
    """Subspaces of about so many bits, or of one coordinate (LEVELS), and their bits, within the budget.

    Coordinates are joined by the bits per row that rows are expected to get, from all bytes of the budget down to what
    they turn out to get.
    """
    spectrum = coordinates.spectrum
    ids = max(1, sum(spectrum.sizes))
    rate = min(8.0 * budget / ids, float(MAX_BITS * spectrum.variances.shape[1]))
    for _ in range(ROUNDS):
        capacity = None
        while capacity is None:
            widths = _widths(spectrum.total, rate, code_bits, least_bits)
            capacity = _with_bits(coordinates, tiers, choice, budget, padding_idx, widths)
            if capacity is None and rate <= LEAST_RATE:
                return
            rate *= 1.0 if capacity is not None else 0.5
        yield capacity
        reached = sum(size * sum(tier.code_bits) for size, tier in zip(spectrum.sizes, capacity.tiers)) / ids
        if abs(reached - rate) < 0.03 * rate + 0.5:
            return
        rate = 0.5 * (rate + reached)


def _widths(variances: np.ndarray, rate: float, code_bits: float, least_bits: float) -> tuple[int, ...]:
    if rate <= LEAST_RATE:
        return (1,)
    if code_bits == LEVELS:
        return (1,) * max(1, int((bits_at(variances, rate) > least_bits).sum()))
    return joined(variances, rate, code_bits, least_bits)


def _with_bits(
    coordinates: Coordinates,
    tiers: Tiers,
    choice: Choice,
    budget: int,
    padding_idx: int | None,
    widths: tuple[int, ...],
) -> Capacity | None:
    """Bits for subspaces of these widths, less those that get none in any tier; None where no bits fit."""
    spectrum, matrix_dtype = coordinates.spectrum, coordinates.matrix_dtype
    item = {"float32": 4, "float16": 2, "int8": 1}[choice.centroid_dtype]
    books = 1 if choice.share_codebook else tiers.num_tiers
    spare = 0  # bytes for a longer header: more digits, more checksums
    while True:
        empty = _of(coordinates, tiers, widths, [[0] * len(widths)] * tiers.num_tiers, choice)
        frame = frozen_nbytes(tiers, empty, padding_idx, choice.centroid_dtype) + spare
        if frame > budget:
            return None
        room = budget - frame + item * sum(widths) * books
        most = LEVEL_BITS if matrix_dtype == BY_COLUMNS and set(widths) == {1} else MAX_BITS
        bits = give_bits(spectrum, widths, room, item, choice.share_codebook, most)
        used = max((j + 1 for tier in bits for j, b in enumerate(tier) if b), default=1)
        if used < len(widths):
            widths = widths[:used]  # the others would cost a row of the matrix each
            continue
        capacity = _of(coordinates, tiers, widths, bits, choice)
        if (over := frozen_nbytes(tiers, capacity, padding_idx, choice.centroid_dtype) - budget) <= 0:
            return capacity
        spare += over


def _of(
    coordinates: Coordinates, tiers: Tiers, widths: Sequence[int], bits: Sequence[Sequence[int]], choice: Choice
) -> Capacity:
    shapes = tuple(
        TierShape.mixed(size, tuple(b), 0 if choice.share_codebook else g)
        for g, (size, b) in enumerate(zip(tiers.sizes, bits, strict=True))
    )
    d = coordinates.spectrum.variances.shape[1]
    return Capacity(d, shapes, choice.share_codebook, False, tuple(widths), coordinates.matrix_dtype)
