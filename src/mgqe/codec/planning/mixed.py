"""The mixed table that is expected to lose least within a budget of bytes: axes, subspaces, and bits per tier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mgqe.codec.axes import Axes
from mgqe.codec.capacity import Capacity, TierShape
from mgqe.codec.fit import fit_codebooks
from mgqe.codec.kmeans import draw_places
from mgqe.codec.layout import frozen_nbytes
from mgqe.codec.metric import Metric
from mgqe.codec.mixed import gather_mixed, nearest_mixed_codes, round_flat
from mgqe.codec.planning.waterfill import Spectrum, give_bits, joined
from mgqe.codec.tiers import Tiers
from mgqe.codec.transform import Transform

SAMPLE_ROWS = 65_536  # of a tier
CODE_BITS = (3.0, 4.0, 5.0, 6.0, 7.0, 8.0)  # of a code on average, that are tried
MAX_BITS = 8
MOST_TIERS = 3
ROUNDS = 8  # divisions into subspaces that are tried for each number of bits per code
LEAST_RATE = 1.0  # bits per row, below which there is one coordinate
RowReader = Callable[[Tensor], Tensor]  # ids int64 (n,) on the CPU -> their rows (n, d)
WEIGHT_SHARES = 16  # by which a plan sees how unequal the weights of a tier are


@dataclass(frozen=True)
class Choice:
    """What a plan leaves open: how ids are weighted and divided, what an error costs, how centroids are shared.

    Attributes:
        counts_power: an id weighs (count + 1) to this power.
        fractions: the share of the ids in each tier, the most frequent first.
        metric: what an error costs.
        share_codebook: one codebook for all tiers, nested; otherwise one for each.
        matrix_dtype, centroid_dtype: how the file holds them.
    """

    counts_power: float
    fractions: tuple[float, ...]
    metric: Metric
    share_codebook: bool = False
    matrix_dtype: str = "int8"
    centroid_dtype: str = "int8"


@dataclass(frozen=True, eq=False)
class MixedPlan:
    """A mixed table to be fitted.

    Attributes:
        choice: what it was made by.
        tiers, capacity: the ids' partition; widths and bits.
        axes: the coordinates.
        nbytes: of the frozen table's file, exactly.
        loss: the expected share of the weighted squares, in the metric, that is lost.
        errors: the same of each tier.
        cost: what all rows' errors are expected to cost together: comparable between tables whose metrics are.
    """

    choice: Choice
    tiers: Tiers
    capacity: Capacity
    axes: Axes
    nbytes: int
    loss: float
    errors: tuple[float, ...]
    cost: float


@dataclass(frozen=True, eq=False)
class FittedPlan:
    """A plan with its centroids.

    Attributes:
        plan: the plan.
        transform: the mean and the matrix as a file holds them.
        codebooks: flat, float32.
        units: (L,), the standard deviation of each coordinate.
    """

    plan: MixedPlan
    transform: Transform
    codebooks: tuple[Tensor, ...]
    units: Tensor

    def decoded(self, rows: Tensor) -> Tensor:
        """Rows (N, d), all of the table, as look-ups of the frozen table would return them."""
        plan, result = self.plan, torch.empty(rows.shape, dtype=torch.float32, device="cpu")
        encoder = torch.from_numpy(plan.axes.encoder[:, : plan.capacity.num_coordinates])
        for g in range(plan.tiers.num_tiers):
            pieces = plan.capacity.pieces(g)
            book = round_flat(self.codebooks[plan.capacity.codebook_of[g]], pieces, plan.choice.centroid_dtype)
            for ids in plan.tiers.member_chunks(g, SAMPLE_ROWS):
                z = (rows.detach()[ids.to(rows.device)].cpu().double() - self.transform.mean) @ encoder
                codes = nearest_mixed_codes(z.float(), book, pieces)
                result[ids] = torch.addmm(self.transform.mean, gather_mixed(codes, book, pieces), self.transform.values)
        return result


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of a table to plan and fit by: all of them, or some of each tier.

    Attributes:
        rows: float64 (n, d). weights: (n,), how much each row's error counts. tier_of: (n,), its tier.
        tiers: the partition of all ids. mass: (m,), the weights of all ids of each tier together.
    """

    rows: np.ndarray
    weights: np.ndarray
    tier_of: np.ndarray
    tiers: Tiers
    mass: np.ndarray

    @classmethod
    def of(
        cls,
        rows: Tensor,
        counts: Tensor | None,
        counts_power: float,
        fractions: Sequence[float],
        padding_idx: int | None,
        limit: int = SAMPLE_ROWS,
        read: RowReader | None = None,
    ) -> Sample:
        """From a table (N, d), how often each id occurs, and which id is padding; at most ``limit`` rows of a tier.

        There is one tier where no counts are known, or all are zero. ``read`` gives rows of ids; without it they are
        those of the table, of which else only the shape counts.
        """
        n = rows.shape[0]
        weights = np.ones(n) if counts is None else (counts.detach().cpu().double().numpy() + 1.0) ** counts_power
        if padding_idx is not None and n > 1:
            weights[padding_idx] = 0.0
        weights /= weights.mean()
        tiers = Tiers.from_sizes([n])
        if counts is not None and len(fractions) > 1 and bool(counts.any()):
            tiers = Tiers.from_counts(counts, fractions=fractions)
        tier_of = np.repeat(np.arange(tiers.num_tiers), tiers.sizes) if tiers.tier_of is None else tiers.tier_of.numpy()
        mass = np.bincount(tier_of, weights, minlength=tiers.num_tiers)
        generator = torch.Generator("cpu").manual_seed(0)
        chosen = [_some(tiers.members(g), limit, generator) for g in range(tiers.num_tiers)]
        ids = torch.cat(chosen)
        sampled = (rows[ids.to(rows.device)] if read is None else read(ids)).detach().cpu().double().numpy()
        places = ids.numpy()  # numpy takes a tensor of one element for a number
        sampled[weights[places] == 0] = 0.0  # the padding, whose row may hold anything
        shares = np.concatenate(
            [np.full(len(some), size / max(1, len(some))) for some, size in zip(chosen, tiers.sizes, strict=True)]
        )
        return cls(sampled, weights[places] * shares, tier_of[places], tiers, mass)


def _some(ids: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    return ids if len(ids) <= limit else ids[draw_places(len(ids), limit, generator)]


@dataclass(frozen=True, eq=False)
class MixedProblem:
    """Rows to be planned, with what their plans for any number of bytes have in common.

    Attributes:
        sample, choice: the rows, and what a plan leaves open.
        axes: the coordinates.
        spectrum: what there is to lose in each of them.
        matrix_errors: (d,), see :func:`_matrix_errors`.
        padding_idx: the id that looks up as zeros, or None.
    """

    sample: Sample
    choice: Choice
    axes: Axes
    spectrum: Spectrum
    matrix_errors: np.ndarray
    padding_idx: int | None

    @classmethod
    def of(
        cls, sample: Sample, choice: Choice, padding_idx: int | None = None, axes: Axes | None = None
    ) -> MixedProblem:
        """Of a sample's rows. axes: the coordinates; by default those of the rows in the choice's metric."""
        axes = axes or Axes.of(sample.rows, sample.weights, choice.metric)
        spectrum = spectrum_of(axes.coordinates(sample.rows), sample, choice.centroid_dtype)
        return cls(sample, choice, axes, spectrum, _matrix_errors(axes, choice.matrix_dtype), padding_idx)

    def plan(self, budget: int) -> MixedPlan | None:
        """The best mixed table of the rows within so many bytes; None where nothing fits."""
        sample, choice, spectrum, padding_idx = self.sample, self.choice, self.spectrum, self.padding_idx
        d = sample.rows.shape[1]
        best: tuple[float, Capacity, np.ndarray] | None = None
        for code_bits in CODE_BITS:
            for capacity in _capacities(spectrum, sample.tiers, d, choice, budget, padding_idx, code_bits):
                lost = spectrum.lost(capacity.widths, [tier.code_bits for tier in capacity.tiers])
                coordinates = capacity.num_coordinates
                lost += spectrum.variances[:, :coordinates] @ self.matrix_errors[:coordinates]
                if best is None or spectrum.loss(lost) < best[0]:
                    best = spectrum.loss(lost), capacity, lost
        if best is None:
            return None
        loss, capacity, lost = best
        squares = spectrum.variances.sum(1)
        errors = tuple(float(share) for share in lost / np.maximum(squares, 1e-300))
        nbytes = frozen_nbytes(sample.tiers, capacity, padding_idx, choice.centroid_dtype)
        cost = loss * float(sample.mass @ squares) * self.axes.cost
        return MixedPlan(choice, sample.tiers, capacity, self.axes, nbytes, loss, errors, cost)


def plan_mixed(
    sample: Sample, choice: Choice, budget: int, padding_idx: int | None = None, axes: Axes | None = None
) -> MixedPlan | None:
    """The best mixed table of a sample's rows within so many bytes; see :class:`MixedProblem`."""
    return MixedProblem.of(sample, choice, padding_idx, axes).plan(budget)


def fit_plan(plan: MixedPlan, sample: Sample, generator: torch.Generator) -> FittedPlan:
    """Centroids for a plan, by weighted k-means on the sample that it was made of."""
    coordinates = plan.capacity.num_coordinates
    exact = torch.from_numpy(plan.axes.coordinates(sample.rows)[:, :coordinates])
    weights = torch.from_numpy(sample.weights)
    deviations = ((weights @ exact.square()) / weights.sum().clamp(min=1e-300)).sqrt()
    # Squares of coordinates must neither overflow nor vanish in float32.
    scale = float(deviations.max()) if bool(deviations.any()) else 1.0
    z = (exact / scale).float()
    masks = [torch.from_numpy(sample.tier_of == g) for g in range(plan.tiers.num_tiers)]
    parts, of_rows = [z[mask] for mask in masks], [weights[mask].float() for mask in masks]
    books = [book * scale for book in fit_codebooks(parts, of_rows, plan.capacity, generator)]
    mean, decoder = torch.from_numpy(plan.axes.mean), torch.from_numpy(plan.axes.decoder[:coordinates])
    units = torch.where(deviations > 0, deviations, 1.0).float()
    return FittedPlan(plan, Transform.of(mean, decoder, plan.choice.matrix_dtype), tuple(books), units)


def least_nbytes(num_embeddings: int, embedding_dim: int, padding_idx: int | None) -> int:
    """Bytes of the smallest mixed table of this size: one code of one bit per row."""
    capacity = Capacity(embedding_dim, (TierShape.mixed(num_embeddings, (1,)),), True, False, (1,), "int8")
    return frozen_nbytes(Tiers.from_sizes([num_embeddings]), capacity, padding_idx, "int8")


def centroid_room(embedding_dim: int) -> int:
    """How many numbers of centroids a plan may have at most."""
    return MOST_TIERS * embedding_dim << MAX_BITS


def spectrum_of(coordinates: np.ndarray, sample: Sample, centroid_dtype: str = "float32") -> Spectrum:
    """The variances of each tier; an id's weight counts within its tier, too."""
    tiers = sample.tiers
    variances = np.zeros((tiers.num_tiers, coordinates.shape[1]))
    concentration = []
    for g in range(tiers.num_tiers):
        mine = sample.tier_of == g
        weights = sample.weights[mine]
        concentration.append(_concentration(weights))
        if (total := weights.sum()) > 0:
            variances[g] = weights @ coordinates[mine] ** 2 / total
    weights = sample.mass / np.maximum(1, np.array(tiers.sizes))
    return Spectrum(variances, weights, tiers.sizes, tuple(concentration), centroid_dtype)


def _concentration(weights: np.ndarray) -> tuple[float, ...]:
    """How many average rows one row counts, in the middle of each of so many equal shares of the weight."""
    if not len(weights) or weights.max() <= 1.0001 * weights.min() or not weights.any():
        return (1.0,)
    ordered = np.sort(weights)
    shares = (np.arange(WEIGHT_SHARES) + 0.5) / WEIGHT_SHARES
    places = np.searchsorted(ordered.cumsum(), shares * ordered.sum()).clip(max=len(ordered) - 1)
    return tuple(float(each) for each in ordered[places] / ordered.mean())


def _matrix_errors(axes: Axes, matrix_dtype: str) -> np.ndarray:
    """(d,): the squared error, in units of coordinates, that a coordinate of 1 gets from the rounding of the matrix."""
    stored = Transform.of(torch.from_numpy(axes.mean), torch.from_numpy(axes.decoder), matrix_dtype).values
    errors: np.ndarray = (((stored.double().numpy() - axes.decoder) @ axes.encoder) ** 2).sum(1)
    return errors


def _capacities(
    spectrum: Spectrum, tiers: Tiers, d: int, choice: Choice, budget: int, padding_idx: int | None, code_bits: float
) -> Iterator[Capacity]:
    """Subspaces of about so many bits, and their bits, within the budget.

    Coordinates are joined by the bits per row that rows are expected to get, from all bytes of the budget down to what
    they turn out to get.
    """
    ids = max(1, sum(spectrum.sizes))
    rate = min(8.0 * budget / ids, float(MAX_BITS * d))
    for _ in range(ROUNDS):
        capacity = None
        while capacity is None:
            widths = joined(spectrum.total, rate, code_bits) if rate > LEAST_RATE else (1,)
            capacity = _with_bits(spectrum, tiers, d, choice, budget, padding_idx, widths)
            if capacity is None and rate <= LEAST_RATE:
                return
            rate *= 1.0 if capacity is not None else 0.5
        yield capacity
        reached = sum(size * sum(tier.code_bits) for size, tier in zip(spectrum.sizes, capacity.tiers)) / ids
        if abs(reached - rate) < 0.03 * rate + 0.5:
            return
        rate = 0.5 * (rate + reached)


def _with_bits(
    spectrum: Spectrum,
    tiers: Tiers,
    d: int,
    choice: Choice,
    budget: int,
    padding_idx: int | None,
    widths: tuple[int, ...],
) -> Capacity | None:
    """Bits for subspaces of these widths, less those that get none in any tier; None where no bits fit."""
    item = {"float32": 4, "float16": 2, "int8": 1}[choice.centroid_dtype]
    books = 1 if choice.share_codebook else tiers.num_tiers
    spare = 0  # bytes for a longer header: more digits, more checksums
    while True:
        empty = _of(tiers, d, widths, [[0] * len(widths)] * tiers.num_tiers, choice)
        frame = frozen_nbytes(tiers, empty, padding_idx, choice.centroid_dtype) + spare
        if frame > budget:
            return None
        room = budget - frame + item * sum(widths) * books
        bits = give_bits(spectrum, widths, room, item, choice.share_codebook, MAX_BITS)
        used = max((j + 1 for tier in bits for j, b in enumerate(tier) if b), default=1)
        if used < len(widths):
            widths = widths[:used]  # the others would cost a row of the matrix each
            continue
        capacity = _of(tiers, d, widths, bits, choice)
        if (over := frozen_nbytes(tiers, capacity, padding_idx, choice.centroid_dtype) - budget) <= 0:
            return capacity
        spare += over


def _of(tiers: Tiers, d: int, widths: Sequence[int], bits: Sequence[Sequence[int]], choice: Choice) -> Capacity:
    shapes = tuple(
        TierShape.mixed(size, tuple(b), 0 if choice.share_codebook else g)
        for g, (size, b) in enumerate(zip(tiers.sizes, bits, strict=True))
    )
    return Capacity(d, shapes, choice.share_codebook, False, tuple(widths), choice.matrix_dtype)
