"""The mixed table that is expected to lose least within a budget of bytes: axes, subspaces, and bits per tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mgqe.codec.axes import Axes
from mgqe.codec.capacity import BY_COLUMNS, Capacity, TierShape
from mgqe.codec.fit import LEVEL_STEPS, fit_codebooks, fit_levels
from mgqe.codec.kmeans import draw_places
from mgqe.codec.layout import MAX_WHOLE_COORDINATES, frozen_nbytes
from mgqe.codec.mixed import flat_index, gather_mixed, nearest_mixed_codes, round_flat, round_to_steps, whole_steps
from mgqe.codec.planning.rate import LARGEST
from mgqe.codec.planning.shapes import SPEED, Choice, Coordinates, best_shape
from mgqe.codec.planning.speed import Frequencies, lookup_share
from mgqe.codec.planning.waterfill import Spectrum
from mgqe.codec.tiers import Tiers
from mgqe.codec.transform import Transform
from mgqe.ops.layout.pieces import Piece

SAMPLE_ROWS = 65_536  # of a tier
WHOLE_ROWS = 16_384  # of a table, from which look-ups take long enough for a matrix with column scales to pay
RowReader = Callable[[Tensor], Tensor]  # ids int64 (n,) on the CPU -> their rows (n, d)
FAR_OUT = 2 * LARGEST  # standard deviations
BY_ROWS_FROM = 16.0  # times the variance of another tier: steps that are the same in both are coarse for that
WEIGHT_SHARES = 16  # by which a plan sees how unequal the weights of a tier are


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
        turned: whether rows are multiplied with a matrix; else coordinates are their own numbers.
    """

    choice: Choice
    tiers: Tiers
    capacity: Capacity
    axes: Axes
    nbytes: int
    loss: float
    errors: tuple[float, ...]
    cost: float
    turned: bool = True

    def lookup_share(self, counts: Tensor | None) -> float:
        """The share of nn.Embedding's time that look-ups are expected to take; counts (N,): of ids, if known."""
        return lookup_share(self.capacity, Frequencies.of(self.tiers.num_embeddings, counts), self.turned)


@dataclass(frozen=True, eq=False)
class FittedPlan:
    """A plan with its centroids.

    Attributes:
        plan: the plan.
        transform: the mean and the matrix as a file holds them.
        codebooks: flat, float32.
        units: (L,), the standard deviation of each coordinate.
        steps: (L,), what 1 of a stored centroid is in each coordinate, where the matrix has column scales: the matrix
            is in units of them. Else None.
    """

    plan: MixedPlan
    transform: Transform
    codebooks: tuple[Tensor, ...]
    units: Tensor
    steps: Tensor | None = None

    def decoded(self, rows: Tensor) -> Tensor:
        """Rows (N, d), all of the table, as look-ups of the frozen table would return them."""
        plan, result = self.plan, torch.empty(rows.shape, dtype=torch.float32, device="cpu")
        encoder = torch.from_numpy(plan.axes.encoder[:, : plan.capacity.num_coordinates])
        for g in range(plan.tiers.num_tiers):
            pieces = plan.capacity.pieces(g)
            book = self._rounded(self.codebooks[plan.capacity.codebook_of[g]], pieces)
            for ids in plan.tiers.member_chunks(g, SAMPLE_ROWS):
                z = (rows.detach()[ids.to(rows.device)].cpu().double() - self.transform.mean) @ encoder
                codes = nearest_mixed_codes(z.float(), book, pieces)
                z_hat = gather_mixed(codes, book, pieces)
                z_hat = z_hat if self.steps is None else whole_steps(z_hat, self.steps)
                result[ids] = torch.addmm(self.transform.mean, z_hat, self.transform.values)
        return result

    def _rounded(self, book: Tensor, pieces: tuple[Piece, ...]) -> Tensor:
        if self.steps is not None:
            return round_to_steps(book, self.steps, pieces)
        return round_flat(book, pieces, self.plan.choice.centroid_dtype)


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of a table to plan and fit by: all of them, or some of each tier.

    Attributes:
        rows: float64 (n, d). weights: (n,), how much each row's error counts. tier_of: (n,), its tier.
        tiers: the partition of all ids. mass: (m,), the weights of all ids of each tier together.
        asked: how often each id is looked up.
    """

    rows: np.ndarray
    weights: np.ndarray
    tier_of: np.ndarray
    tiers: Tiers
    mass: np.ndarray
    asked: Frequencies

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
        order: Tensor | None = None,
    ) -> Sample:
        """From a table (N, d), how often each id occurs, and which id is padding; at most ``limit`` rows of a tier.

        Tiers are made by ``order`` (N,), the largest first, by default by the counts. There is one tier where neither
        is known, or all are zero. ``read`` gives rows of ids; without it they are those of the table, of which else
        only the shape counts.
        """
        n = rows.shape[0]
        weights = np.ones(n) if counts is None else (counts.detach().cpu().double().numpy() + 1.0) ** counts_power
        if padding_idx is not None and n > 1:
            weights[padding_idx] = 0.0
        weights /= weights.mean()
        tiers = Tiers.from_sizes([n])
        order = counts if order is None else order
        if order is not None and len(fractions) > 1 and bool(order.any()):
            tiers = Tiers.from_counts(order, fractions=fractions)
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
        return cls(sampled, weights[places] * shares, tier_of[places], tiers, mass, Frequencies.of(n, counts))


def _some(ids: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    return ids if len(ids) <= limit else ids[draw_places(len(ids), limit, generator)]


@dataclass(frozen=True, eq=False)
class MixedProblem:
    """Rows to be planned, with what their plans for any number of bytes have in common.

    Attributes:
        sample, choice: the rows, and what a plan leaves open.
        coordinates: that are tried: those of the metric, and those of the rows themselves where these may be as good
            and are faster.
        padding_idx: the id that looks up as zeros, or None.
    """

    sample: Sample
    choice: Choice
    coordinates: tuple[Coordinates, ...]
    padding_idx: int | None

    @classmethod
    def of(
        cls, sample: Sample, choice: Choice, padding_idx: int | None = None, axes: Axes | None = None
    ) -> MixedProblem:
        """Of a sample's rows. axes: the only coordinates; by default those of the rows in the choice's metric."""
        tried = axes or Axes.of(sample.rows, sample.weights, choice.metric)
        spectrum = spectrum_of(tried.coordinates(sample.rows), sample, choice.centroid_dtype)
        dtypes = _matrix_dtypes(sample, choice, spectrum)
        coordinates = [_coordinates(sample, tried, spectrum, dtype) for dtype in dtypes]
        if BY_COLUMNS in dtypes and axes is None:
            own = Axes.own(sample.rows, sample.weights, choice.metric)
            spectrum = spectrum_of(own.coordinates(sample.rows), sample, choice.centroid_dtype)
            coordinates.append(_coordinates(sample, own, spectrum, BY_COLUMNS, turned=False))
        return cls(sample, choice, tuple(coordinates), padding_idx)

    def plan(self, budget: int) -> MixedPlan | None:
        """The best mixed table of the rows within so many bytes; None where nothing fits."""
        sample, choice, padding_idx = self.sample, self.choice, self.padding_idx
        shape = best_shape(self.coordinates, sample.tiers, choice, budget, padding_idx, sample.asked)
        if shape is None:
            return None
        squares = shape.coordinates.spectrum.variances.sum(1)
        errors = tuple(float(share) for share in shape.lost / np.maximum(squares, 1e-300))
        nbytes = frozen_nbytes(sample.tiers, shape.capacity, padding_idx, choice.centroid_dtype)
        cost, axes, turned = shape.loss * self.coordinates[0].total, shape.coordinates.axes, shape.coordinates.turned
        return MixedPlan(choice, sample.tiers, shape.capacity, axes, nbytes, shape.loss, errors, cost, turned)


def _matrix_dtypes(sample: Sample, choice: Choice, spectrum: Spectrum) -> tuple[str, ...]:
    """How matrices are held that are tried: in small tables by rows, whose scales take fewer bytes.

    By rows also where tiers are so unlike that the steps of one are too coarse for another.
    """
    if sample.tiers.num_embeddings < WHOLE_ROWS or sample.rows.shape[1] > MAX_WHOLE_COORDINATES:
        return ("int8",)
    squares = spectrum.variances.sum(1)
    unlike = bool(squares.max() > BY_ROWS_FROM * squares.min())
    return (BY_COLUMNS, "int8") if unlike or choice.prefer != SPEED else (BY_COLUMNS,)


def _coordinates(sample: Sample, axes: Axes, spectrum: Spectrum, matrix_dtype: str, turned: bool = True) -> Coordinates:
    spectrum = replace(spectrum, shares_steps=matrix_dtype == BY_COLUMNS)
    errors = np.zeros(sample.rows.shape[1])  # of scales alone, which are float32
    if turned:
        errors = _matrix_errors(axes, matrix_dtype, spectrum.total)
    total = float(sample.mass @ spectrum.variances.sum(1)) * axes.cost
    return Coordinates(axes, spectrum, errors, total, matrix_dtype, turned)


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
    levels = plan.capacity.has_levels
    if levels:
        books = fit_levels(parts, of_rows, plan.capacity, (deviations / scale).float(), generator)
    else:
        books = fit_codebooks(parts, of_rows, plan.capacity, generator, plan.choice.centroid_dtype)
    books = [book * scale for book in books]
    mean, decoder = torch.from_numpy(plan.axes.mean), torch.from_numpy(plan.axes.decoder[:coordinates])
    units = torch.where(deviations > 0, deviations, 1.0).float()
    steps = None
    matrix_dtype = plan.capacity.matrix_dtype
    assert matrix_dtype is not None  # every mixed plan has a matrix
    if matrix_dtype == BY_COLUMNS:
        steps = _steps(books, plan.capacity, units if levels else None)
        decoder = decoder * steps[:, None]
    return FittedPlan(plan, Transform.of(mean, decoder, matrix_dtype), tuple(books), units, steps)


def _steps(books: Sequence[Tensor], capacity: Capacity, units: Tensor | None) -> Tensor:
    """(L,): in each coordinate the step of which stored centroids are whole multiples, the same within a subspace.

    units: of coordinates that share their levels, which are levels times a coordinate's unit: so are the steps.
    """
    peaks = torch.stack(
        [
            torch.zeros(len(capacity.widths)).scatter_reduce(
                0, flat_index(capacity.pieces_of_codebook(number), book.device).subspace, book.abs(), "amax"
            )
            for number, book in enumerate(books)
        ]
    ).amax(0)
    if units is not None:
        return units * float((peaks / units).amax()) / LEVEL_STEPS
    steps = torch.where(peaks > 0, peaks, 1.0) / LEVEL_STEPS
    return torch.repeat_interleave(steps, torch.tensor(capacity.widths))


def least_nbytes(num_embeddings: int, embedding_dim: int, padding_idx: int | None) -> int:
    """Bytes of the smallest mixed table of this size: one code of one bit per row."""
    capacity = Capacity(embedding_dim, (TierShape.mixed(num_embeddings, (1,)),), True, False, (1,), "int8")
    return frozen_nbytes(Tiers.from_sizes([num_embeddings]), capacity, padding_idx, "int8")


def spectrum_of(coordinates: np.ndarray, sample: Sample, centroid_dtype: str = "float32") -> Spectrum:
    """The variances of each tier; an id's weight counts within its tier, too."""
    tiers = sample.tiers
    variances, peaks = (np.zeros((tiers.num_tiers, coordinates.shape[1])) for _ in range(2))
    concentration = []
    for g in range(tiers.num_tiers):
        mine = sample.tier_of == g
        weights = sample.weights[mine]
        concentration.append(_concentration(weights))
        if (total := weights.sum()) > 0:
            variances[g] = weights @ coordinates[mine] ** 2 / total
            peaks[g] = np.abs(coordinates[mine]).max(0)
    stepped = np.where(peaks**2 > FAR_OUT**2 * variances, (peaks / LARGEST) ** 2, variances)
    weights = sample.mass / np.maximum(1, np.array(tiers.sizes))
    return Spectrum(variances, weights, tiers.sizes, tuple(concentration), centroid_dtype, stepped)


def _concentration(weights: np.ndarray) -> tuple[float, ...]:
    """How many average rows one row counts, in the middle of each of so many equal shares of the weight."""
    if not len(weights) or weights.max() <= 1.0001 * weights.min() or not weights.any():
        return (1.0,)
    ordered = np.sort(weights)
    shares = (np.arange(WEIGHT_SHARES) + 0.5) / WEIGHT_SHARES
    places = np.searchsorted(ordered.cumsum(), shares * ordered.sum()).clip(max=len(ordered) - 1)
    return tuple(float(each) for each in ordered[places] / ordered.mean())


def _matrix_errors(axes: Axes, matrix_dtype: str, variances: np.ndarray) -> np.ndarray:
    """(d,): the squared error, in units of coordinates, that a coordinate of 1 gets from the rounding of the matrix.

    variances: of the coordinates, in whose units a matrix with column scales is stored.
    """
    units = np.ones(len(variances))
    if matrix_dtype == BY_COLUMNS:
        units = np.sqrt(np.maximum(variances, 1e-12 * max(variances.max(), 1e-300)))
    decoder = axes.decoder * units[:, None]
    stored = Transform.of(torch.from_numpy(axes.mean), torch.from_numpy(decoder), matrix_dtype).values
    errors: np.ndarray = (((stored.double().numpy() - decoder) @ axes.encoder) ** 2).sum(1) / units**2
    return errors
