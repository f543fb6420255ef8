"""Additive codes: a row is the mean plus one centroid of each codebook, and every centroid has all coordinates.

Tier g reads the first M_g codebooks of a list. Codebooks begin as k-means of what earlier ones leave. Then codes are
chosen by beam search (Babenko and Lempitsky, 2014), with sweeps over single codes as in Martinez et al. (2016), and all
centroids together are fitted to these codes by weighted least squares, some rounds in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mgqe.codec.fit import weighted_kmeans
from mgqe.codec.layout import MAP_BITS, MAP_RANKS, TableLayout
from mgqe.codec.planning.mixed import MixedPlan, Sample, spectrum_of
from mgqe.codec.planning.waterfill import Spectrum, water_level
from mgqe.codec.transform import Transform

CHUNK = 8192  # rows that are encoded at a time
BEAM, LAST_BEAM = 8, 16  # partial sums per row that the search keeps, between rounds and for the codes of the table
SWEEPS = 2  # over single codes, after the search
ROUNDS = 5  # of least squares
FIT_ROWS = 24_576  # of all tiers, that centroids are fitted on
RIDGE = 1e-2  # rows' worth of weight that holds a centroid where it is
EFFICIENCY = 0.9  # of Shannon's bits, for the prediction that chooses the shape
MOST_CODEBOOKS = 64
COORDINATE_STEP = 4


@dataclass(frozen=True, eq=False)
class AdditivePlan:
    """The shape of an additive table.

    Attributes:
        base: the mixed plan with the same tiers, weights and axes.
        num_codebooks: M_g of each tier.
        num_centroids: K of every codebook.
        num_coordinates: L, of every centroid.
        has_matrix: centroids are in the L first coordinates, and a matrix (L, d) makes rows of them; otherwise L = d
            and centroids are stored as rows.
        nbytes: of a file with a header like that of the mixed table.
        loss: the expected share of the weighted squares that is lost.
    """

    base: MixedPlan
    num_codebooks: tuple[int, ...]
    num_centroids: int
    num_coordinates: int
    has_matrix: bool
    nbytes: int
    loss: float


def frame_bytes(plan: MixedPlan) -> int:
    """Bytes of a mixed table's file that do not depend on how rows are coded: its header and its tier map."""
    layout = TableLayout.of(plan.tiers, plan.capacity, plan.choice.centroid_dtype, None)
    shapes = layout.tensors(plan.capacity.codebook_shapes)
    maps = (MAP_BITS.format(""), MAP_RANKS.format(""))
    coded = [pair for name, pair in shapes.items() if not name.startswith(maps)]
    return plan.nbytes - sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in coded)


def additive_bytes(
    sizes: Sequence[int], codebooks: Sequence[int], centroids: int, coordinates: int, d: int, matrix: bool
) -> int:
    """Bytes of codes, int8 centroids, a scale per codebook, the int8 matrix with its scales, and the mean."""
    bits = centroids.bit_length() - 1
    codes = sum(n * -(-m * bits // 8) for n, m in zip(sizes, codebooks, strict=True))
    return codes + max(codebooks) * (centroids * coordinates + 4) + (coordinates * (d + 4) if matrix else 0) + 4 * d


def expected_error(spectrum: Spectrum, codebooks: Sequence[int], bits: int, coordinates: int) -> float:
    """The share of the weighted squares that is lost if codes reach EFFICIENCY of Shannon's bits."""
    mass, lost = spectrum.weights * np.array(spectrum.sizes), 0.0
    for g, m in enumerate(codebooks):
        coded, rest = spectrum.variances[g, :coordinates], spectrum.variances[g, coordinates:]
        level = water_level(coded, EFFICIENCY * bits * m) if m else np.inf
        lost += mass[g] * float(np.minimum(coded, level).sum() + rest.sum())
    return lost / max(float(mass @ spectrum.variances.sum(1)), 1e-300)


def plan_additive(base: MixedPlan, sample: Sample, budget: int, num_centroids: int) -> AdditivePlan | None:
    """The codebooks of each tier and the coordinates that are expected to lose least; None where nothing fits."""
    spectrum, d = spectrum_of(base.axes.coordinates(sample.rows), sample), sample.rows.shape[1]
    bits, frame, best = num_centroids.bit_length() - 1, frame_bytes(base), None
    for coordinates, matrix in [(n, True) for n in range(COORDINATE_STEP, d, COORDINATE_STEP)] + [(d, False)]:

        def nbytes(codebooks: Sequence[int], coordinates: int = coordinates, matrix: bool = matrix) -> int:
            return frame + additive_bytes(spectrum.sizes, codebooks, num_centroids, coordinates, d, matrix)

        codebooks = [0] * len(spectrum.sizes)
        error = expected_error(spectrum, codebooks, bits, coordinates)
        while True:
            steps = []
            for g in range(len(codebooks)):
                for more in (1, 2, 3, 4):
                    longer = [m + more * (h == g) for h, m in enumerate(codebooks)]
                    if longer[g] <= MOST_CODEBOOKS and nbytes(longer) <= budget:
                        next_error = expected_error(spectrum, longer, bits, coordinates)
                        gain = (error - next_error) / max(1, nbytes(longer) - nbytes(codebooks))
                        steps.append((gain, longer, next_error))
            if not steps:
                break
            _, codebooks, error = max(steps)
        if max(codebooks) and (best is None or error < best.loss):
            shape = (tuple(codebooks), num_centroids, coordinates, matrix)
            best = AdditivePlan(base, *shape, nbytes(codebooks), error)
    return best


def beam_search(rows: Tensor, books: Tensor, beam: int = BEAM, sweeps: int = SWEEPS) -> Tensor:
    """Codes (n, M) int64 of rows (n, L) with codebooks (M, K, L)."""
    if not len(books):
        return torch.zeros(len(rows), 0, dtype=torch.int64)
    return torch.cat([_sweep(chunk, books, _beam(chunk, books, beam), sweeps) for chunk in rows.split(CHUNK)])


def _beam(rows: Tensor, books: Tensor, beam: int) -> Tensor:
    n, k = len(rows), books.shape[1]
    left, codes = rows.unsqueeze(1), torch.zeros(n, 1, 0, dtype=torch.int64)
    errors = rows.square().sum(1, keepdim=True)
    for book in books:
        costs = errors.unsqueeze(2) + book.square().sum(1) - 2 * (left @ book.T)  # (n, H, K)
        errors, places = costs.flatten(1).topk(min(beam, costs[0].numel()), dim=1, largest=False)
        parents, chosen = places // k, places % k
        left = left.gather(1, parents.unsqueeze(2).expand(-1, -1, left.shape[2])) - book[chosen]
        kept = codes.gather(1, parents.unsqueeze(2).expand(-1, -1, codes.shape[2]))
        codes = torch.cat([kept, chosen.unsqueeze(2)], dim=2)
    return codes[:, 0]


def _sweep(rows: Tensor, books: Tensor, codes: Tensor, sweeps: int) -> Tensor:
    """Each code in turn becomes the best for what the others leave."""
    left, norms = rows - summed(codes, books), books.square().sum(2)
    for _ in range(sweeps):
        for m, book in enumerate(books):
            left += book[codes[:, m]]
            codes[:, m] = torch.addmm(norms[m], left, book.T, alpha=-2).argmin(1)
            left -= book[codes[:, m]]
    return codes


def summed(codes: Tensor, books: Tensor) -> Tensor:
    """The sums of the centroids that codes (n, M) choose: (n, L)."""
    result = torch.zeros(len(codes), books.shape[2])
    for m in range(codes.shape[1]):
        result += books[m, codes[:, m]]
    return result


def least_squares(rows: Sequence[Tensor], weights: Sequence[Tensor], codes: Sequence[Tensor], books: Tensor) -> Tensor:
    """The centroids (M, K, L) that leave least of each tier's rows (n, L) with codes (n, M_g), all together."""
    m, k, length = books.shape
    gram, target = torch.zeros(m, m, k * k, dtype=torch.float64), torch.zeros(m * k, length, dtype=torch.float64)
    for z, w, c in zip(rows, weights, codes, strict=True):
        for i in range(c.shape[1]):
            target[i * k : (i + 1) * k].index_add_(0, c[:, i], (w.unsqueeze(1) * z).double())
            for j in range(i + 1):
                pairs = torch.bincount(c[:, i] * k + c[:, j], w.double(), minlength=k * k)
                gram[i, j] += pairs
                if i != j:
                    gram[j, i] += pairs.view(k, k).T.flatten()
    matrix = gram.view(m, m, k, k).transpose(1, 2).reshape(m * k, m * k)
    matrix.diagonal().add_(RIDGE)
    target += RIDGE * books.double().flatten(0, 1)
    return torch.cholesky_solve(target, torch.linalg.cholesky(matrix)).float().view(m, k, length)


@dataclass(frozen=True, eq=False)
class FittedAdditive:
    """An additive table's centroids, as a file would hold them.

    Attributes:
        plan: the plan.
        books: for each tier its codebooks (M_g, K, L), in coordinates.
    """

    plan: AdditivePlan
    books: tuple[Tensor, ...]

    def decoded(self, rows: Tensor) -> Tensor:
        """Rows (N, d), all of the table, as look-ups would return them."""
        plan, axes, result = self.plan, self.plan.base.axes, torch.empty_like(rows)
        decoder = torch.from_numpy(axes.decoder[: plan.num_coordinates])
        transform = Transform.of(torch.from_numpy(axes.mean), decoder, "int8" if plan.has_matrix else "float32")
        encoder = torch.from_numpy(axes.encoder[:, : plan.num_coordinates])
        for g in range(plan.base.tiers.num_tiers):
            ids = plan.base.tiers.members(g)
            z = ((rows[ids].double() - transform.mean) @ encoder).float()
            codes = beam_search(z, self.books[g], LAST_BEAM)
            result[ids] = torch.addmm(transform.mean, summed(codes, self.books[g]), transform.values)
        return result


def fit_additive(plan: AdditivePlan, sample: Sample, generator: torch.Generator) -> FittedAdditive:
    """Centroids for a plan, on the sample that it was made of."""
    chosen = torch.randperm(len(sample.rows), generator=generator)[:FIT_ROWS].sort().values.numpy()
    z = torch.from_numpy(plan.base.axes.coordinates(sample.rows[chosen])[:, : plan.num_coordinates]).float()
    weights = torch.from_numpy(sample.weights[chosen]).float()
    masks = [torch.from_numpy(sample.tier_of[chosen] == g) for g in range(plan.base.tiers.num_tiers)]
    tiers = [(z[mask], weights[mask], m) for mask, m in zip(masks, plan.num_codebooks, strict=True)]
    books = _stored(plan, _fit(tiers, plan.num_centroids, generator))
    return FittedAdditive(plan, tuple(books[:m] for m in plan.num_codebooks))


def _fit(tiers: Sequence[tuple[Tensor, Tensor, int]], k: int, generator: torch.Generator) -> Tensor:
    """Codebooks (M, K, L), float32, for tiers of (rows, weights, codebooks that they read)."""
    left = [z.clone() for z, _, _ in tiers]
    books = torch.zeros(max(m for _, _, m in tiers), k, left[0].shape[1])
    for number in range(len(books)):
        readers = [g for g, (_, _, m) in enumerate(tiers) if m > number]
        rows, mass = torch.cat([left[g] for g in readers]), torch.cat([tiers[g][1] for g in readers])
        books[number] = weighted_kmeans(rows, mass, k, generator, rows.new_zeros(0, rows.shape[1]))
        for g in readers:
            codes = beam_search(left[g], books[number : number + 1], 1, 0)
            left[g] -= summed(codes, books[number : number + 1])
    for _ in range(ROUNDS):
        codes = [beam_search(z, books[:m]) for z, _, m in tiers]
        books = least_squares([z for z, _, _ in tiers], [w for _, w, _ in tiers], codes, books)
    return books


def _stored(plan: AdditivePlan, books: Tensor) -> Tensor:
    """Codebooks as they are after int8 with a scale for each: of coordinates, or of rows where there is no matrix."""
    decoder = torch.from_numpy(plan.base.axes.decoder).float()
    values = books if plan.has_matrix else books @ decoder
    scales = values.abs().amax((1, 2), keepdim=True).clamp(min=1e-30) / 127
    rounded = (values / scales).round().clamp(-127, 127) * scales
    return rounded if plan.has_matrix else rounded @ torch.from_numpy(plan.base.axes.encoder).float()
