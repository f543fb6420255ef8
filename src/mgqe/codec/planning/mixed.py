"""The mixed table that is expected to lose least within a budget of bytes: axes, subspaces, and bits per tier."""

from __future__ import annotations

from collections.abc import Sequence
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
        cost: what all rows' errors are expected to cost together: comparable between tables whose metrics are.
    """

    choice: Choice
    tiers: Tiers
    capacity: Capacity
    axes: Axes
    nbytes: int
    loss: float
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
    ) -> Sample:
        """From a table (N, d), how often each id occurs, and which id is padding; at most ``limit`` rows of a tier."""
        n = rows.shape[0]
        weights = np.ones(n) if counts is None else (counts.cpu().double().numpy() + 1.0) ** counts_power
        if padding_idx is not None and n > 1:
            weights[padding_idx] = 0.0
        weights /= weights.mean()
        tiers = Tiers.from_sizes([n])
        if counts is not None and len(fractions) > 1:
            tiers = Tiers.from_counts(counts, fractions=fractions)
        tier_of = np.repeat(np.arange(tiers.num_tiers), tiers.sizes) if tiers.tier_of is None else tiers.tier_of.numpy()
        mass = np.bincount(tier_of, weights, minlength=tiers.num_tiers)
        generator = torch.Generator("cpu").manual_seed(0)
        chosen = [_some(tiers.members(g), limit, generator) for g in range(tiers.num_tiers)]
        ids = torch.cat(chosen)
        sampled = rows.detach()[ids.to(rows.device)].cpu().double().numpy()
        places = ids.numpy()  # numpy takes a tensor of one element for a number
        shares = np.concatenate(
            [np.full(len(some), size / max(1, len(some))) for some, size in zip(chosen, tiers.sizes, strict=True)]
        )
        return cls(sampled, weights[places] * shares, tier_of[places], tiers, mass)


def _some(ids: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    return ids if len(ids) <= limit else ids[draw_places(len(ids), limit, generator)]


def plan_mixed(sample: Sample, choice: Choice, budget: int, padding_idx: int | None = None) -> MixedPlan | None:
    """The best mixed table of a sample's rows within so many bytes; None where nothing fits."""
    axes = Axes.of(sample.rows, sample.weights, choice.metric)
    spectrum = spectrum_of(axes.coordinates(sample.rows), sample)
    d = sample.rows.shape[1]
    best: MixedPlan | None = None
    for code_bits in CODE_BITS:
        capacity = _capacity(spectrum, sample.tiers, d, choice, budget, padding_idx, code_bits)
        if capacity is None:
            continue
        loss = spectrum.loss(capacity.widths, [tier.code_bits for tier in capacity.tiers])
        if best is None or loss < best.loss:
            nbytes = frozen_nbytes(sample.tiers, capacity, padding_idx, choice.centroid_dtype)
            cost = loss * float(sample.mass @ spectrum.variances.sum(1)) * axes.cost
            best = MixedPlan(choice, sample.tiers, capacity, axes, nbytes, loss, cost)
    return best


def fit_plan(plan: MixedPlan, sample: Sample, generator: torch.Generator) -> FittedPlan:
    """Centroids for a plan, by weighted k-means on the sample that it was made of."""
    coordinates = plan.capacity.num_coordinates
    z = torch.from_numpy(plan.axes.coordinates(sample.rows)[:, :coordinates]).float()
    weights = torch.from_numpy(sample.weights).float()
    masks = [torch.from_numpy(sample.tier_of == g) for g in range(plan.tiers.num_tiers)]
    books = fit_codebooks([z[mask] for mask in masks], [weights[mask] for mask in masks], plan.capacity, generator)
    mean, decoder = torch.from_numpy(plan.axes.mean), torch.from_numpy(plan.axes.decoder[:coordinates])
    spread = ((weights @ z.square()) / weights.sum()).sqrt()
    units = torch.where(spread > 0, spread, 1.0)
    return FittedPlan(plan, Transform.of(mean, decoder, plan.choice.matrix_dtype), tuple(books), units)


def least_nbytes(num_embeddings: int, embedding_dim: int, padding_idx: int | None) -> int:
    """Bytes of the smallest mixed table of this size: one code of one bit per row."""
    capacity = Capacity(embedding_dim, (TierShape.mixed(num_embeddings, (1,)),), True, False, (1,), "int8")
    return frozen_nbytes(Tiers.from_sizes([num_embeddings]), capacity, padding_idx, "int8") + HEADER_SLACK


def centroid_room(embedding_dim: int) -> int:
    """How many numbers of centroids a plan may have at most."""
    return MOST_TIERS * embedding_dim << MAX_BITS


def spectrum_of(coordinates: np.ndarray, sample: Sample) -> Spectrum:
    """The variances of each tier; an id's weight counts within its tier, too."""
    tiers = sample.tiers
    variances = np.zeros((tiers.num_tiers, coordinates.shape[1]))
    for g in range(tiers.num_tiers):
        mine = sample.tier_of == g
        if (total := sample.weights[mine].sum()) > 0:
            variances[g] = sample.weights[mine] @ coordinates[mine] ** 2 / total
    return Spectrum(variances, sample.mass / np.maximum(1, np.array(tiers.sizes)), tiers.sizes)


def _capacity(
    spectrum: Spectrum, tiers: Tiers, d: int, choice: Choice, budget: int, padding_idx: int | None, code_bits: float
) -> Capacity | None:
    """Subspaces of about so many bits, and their bits, within the budget."""
    item = {"float32": 4, "float16": 2, "int8": 1}[choice.centroid_dtype]
    books = 1 if choice.share_codebook else tiers.num_tiers
    rate = 8 * budget / max(1, sum(spectrum.sizes))  # bits per row, if all bytes were codes
    best, widths = None, joined(spectrum.total, rate, code_bits)
    for _ in range(ROUNDS):
        empty = _of(tiers, d, widths, [[0] * len(widths)] * tiers.num_tiers, choice)
        frame = frozen_nbytes(tiers, empty, padding_idx, choice.centroid_dtype) + HEADER_SLACK
        if frame > budget:
            if len(widths) == 1 and widths[0] == 1:
                return None
            rate *= 0.5
            widths = joined(spectrum.total, rate, code_bits) if rate > 1 else (1,)
            continue
        room = budget - frame + item * sum(widths) * books
        bits = give_bits(spectrum, widths, room, item, choice.share_codebook, MAX_BITS)
        used = max((j + 1 for tier in bits for j, b in enumerate(tier) if b), default=1)
        if used < len(widths):  # coordinates that get no bits anywhere cost a row of the matrix
            widths = widths[:used]
            continue
        best = _of(tiers, d, widths, bits, choice)
        reached = float(np.array(spectrum.sizes) @ np.array([sum(b) for b in bits])) / max(1, sum(spectrum.sizes))
        if abs(reached - rate) < 0.03 * rate + 0.5:
            break
        rate = 0.5 * (rate + reached)
        widths = joined(spectrum.total, rate, code_bits)
    return best


ROUNDS = 8
HEADER_SLACK = 48  # bytes that digits of numbers and checksums of longer tensors may add


def _of(tiers: Tiers, d: int, widths: Sequence[int], bits: Sequence[Sequence[int]], choice: Choice) -> Capacity:
    shapes = tuple(
        TierShape.mixed(size, tuple(b), 0 if choice.share_codebook else g)
        for g, (size, b) in enumerate(zip(tiers.sizes, bits, strict=True))
    )
    return Capacity(d, shapes, choice.share_codebook, False, tuple(widths), choice.matrix_dtype)
