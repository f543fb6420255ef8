"""Centroids of mixed tables: weighted k-means in each subspace, nested where tiers share a codebook.

Subspaces of one coordinate are fitted by :mod:`mgqe.codec.scalar`, the others by Lloyd's algorithm on a sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mgqe import ops
from mgqe.codec.capacity import BY_COLUMNS, Capacity
from mgqe.codec.kmeans import draw_places
from mgqe.codec.scalar import Numbers, best_step, in_steps

ITERATIONS = 15
FINAL_ITERATIONS = 8  # on all rows, after those on a sample
LEAST_ROWS = 8_192  # that centroids are fitted on, if there are so many
ROWS_PER_CENTROID = 64  # that more rows are fitted on for
LEVEL_ROWS = 262_144  # numbers that levels are fitted on
INT8_STEPS = 127  # of the largest centroid
LEVEL_STEPS = 120  # of the largest one where steps stay as they are, so that training may raise it
SPREAD_SHARE = 2  # one of so many of them is drawn from at the start


def fit_codebooks(
    coordinates: Sequence[Tensor],
    weights: Sequence[Tensor],
    capacity: Capacity,
    generator: torch.Generator,
    centroid_dtype: str = "float32",
) -> list[Tensor]:
    """The flat codebooks of a mixed table, float32.

    In a shared codebook the centroids that a tier of few bits reaches are fitted on its rows; then the others on the
    rows of the tiers that reach further, with the first ones fixed.

    Args:
        coordinates: of each tier's rows, or of a sample of them, (n_g, L) float32.
        weights: how much each row counts, (n_g,).
        generator: on the CPU; the result depends on nothing else.
        centroid_dtype: how the file will hold them. int8 steps follow the largest centroid of a subspace, which is cut
            where a subspace of one coordinate loses less so.
    """
    books = []
    whole_steps = (LEVEL_STEPS if capacity.matrix_dtype == BY_COLUMNS else INT8_STEPS) * (centroid_dtype == "int8")
    for number, (length,) in enumerate(capacity.codebook_shapes):
        readers = [g for g, tier in enumerate(capacity.tiers) if tier.codebook == number]
        book = coordinates[0].new_zeros(length)
        for j, piece in enumerate(capacity.pieces(readers[0])):
            centroids = coordinates[0].new_zeros(0, piece.width)
            reaches = {g: capacity.tiers[g].code_bits[j] for g in readers}
            for bits in sorted(set(reaches.values())):
                columns = slice(piece.coordinate, piece.coordinate + piece.width)
                rows = torch.cat([coordinates[g][:, columns] for g in readers if reaches[g] == bits])
                counts = torch.cat([weights[g] for g in readers if reaches[g] == bits])
                if piece.width == 1 and len(rows) and not len(centroids):
                    centroids = _scalars(rows, counts, 1 << bits, whole_steps)
                else:
                    centroids = weighted_kmeans(rows.contiguous(), counts, 1 << bits, generator, centroids)
            book[piece.entry : piece.entry + centroids.numel()] = centroids.flatten()
        books.append(book)
    return books


def fit_levels(
    coordinates: Sequence[Tensor],
    weights: Sequence[Tensor],
    capacity: Capacity,
    deviations: Tensor,
    generator: torch.Generator,
) -> list[Tensor]:
    """The flat codebooks of a table whose coordinates share their centroids: levels times a coordinate's deviation.

    Levels are fitted for each number of bits of each tier, on all its coordinates with codes of so many bits, each
    divided by its deviation (L,). They are multiples of 1 / LEVEL_STEPS of the largest one of the table.
    """
    numbers: dict[tuple[int, int], Numbers] = {}
    for g, tier in enumerate(capacity.tiers):
        for bits in sorted(set(tier.code_bits)):
            mine = torch.tensor([b == bits for b in tier.code_bits])
            values = (coordinates[g][:, mine] / deviations[mine].where(deviations[mine] > 0, 1.0)).reshape(-1)
            counts = torch.outer(weights[g], deviations[mine].square()).reshape(-1)  # of errors in their own units
            if len(values) > LEVEL_ROWS:
                places = draw_places(len(values), LEVEL_ROWS, generator)
                values, counts = values[places], counts[places]
            numbers[tier.codebook, bits] = Numbers.of(values.cpu().numpy(), counts.cpu().numpy())
    levels = {key: each.levels(1 << key[1]) for key, each in numbers.items()}
    step = best_step([*numbers.values()], [*levels.values()], LEVEL_STEPS)
    books = []
    for number, (length,) in enumerate(capacity.codebook_shapes):
        book = coordinates[0].new_zeros(length)
        (tier,) = (tier for tier in capacity.tiers if tier.codebook == number)
        for j, (piece, bits) in enumerate(zip(capacity.pieces_of_codebook(number), tier.code_bits, strict=True)):
            stored = book.new_tensor(in_steps(levels[number, bits], step, LEVEL_STEPS))
            book[piece.entry : piece.entry + len(stored)] = stored * deviations[j]
        books.append(book)
    return books


def _scalars(rows: Tensor, weights: Tensor, num_centroids: int, whole_steps: int) -> Tensor:
    """Centroids (K, 1) of rows (n, 1), n at least 1; cut where so many whole steps of the largest one would be coarse.

    whole_steps: 0 where centroids are held as floats.
    """
    numbers = Numbers.of(rows.flatten().cpu().numpy(), weights.cpu().numpy())
    levels = numbers.levels(num_centroids)
    if whole_steps:
        largest = best_step([numbers], [levels], whole_steps) * whole_steps
        levels = np.clip(levels, -largest, largest)
    return rows.new_tensor(levels).unsqueeze(1)


def weighted_kmeans(
    rows: Tensor, weights: Tensor, num_centroids: int, generator: torch.Generator, fixed: Tensor
) -> Tensor:
    """Lloyd's algorithm from centroids far apart, the first of which are fixed.

    Args:
        rows: (n, w) float32.
        weights: (n,) how much each counts, 0 or more.
        fixed: (H, w).

    Returns:
        (num_centroids, w).
    """
    new = num_centroids - len(fixed)
    if new <= 0:
        return fixed[:num_centroids]
    if not len(rows):
        return torch.cat([fixed, rows.new_zeros(new, rows.shape[1])])
    if num_centroids == 1:
        return ((weights @ rows) / weights.sum().clamp(min=1e-30)).unsqueeze(0)
    some, of_some = rows, weights
    if len(rows) > (limit := max(LEAST_ROWS, ROWS_PER_CENTROID * num_centroids)):
        some, of_some = _sample(rows, weights, limit, generator)
    centroids = torch.cat([fixed, _spread_start(some, of_some, fixed, new, generator)])
    centroids = _lloyd(some, of_some, centroids, len(fixed), ITERATIONS)
    return centroids if some is rows else _lloyd(rows, weights, centroids, len(fixed), FINAL_ITERATIONS)


def _lloyd(rows: Tensor, weights: Tensor, centroids: Tensor, fixed: int, iterations: int) -> Tensor:
    """Centroids (K, w) after at most so many iterations of Lloyd's algorithm; the first ``fixed`` stay."""
    for _ in range(iterations):
        codes = ops.assign(rows, centroids.unsqueeze(0).contiguous(), None)
        sums, counts = ops.scatter(rows, codes, weights, 1, *centroids.shape)
        live = counts[0] > 0
        live[:fixed] = False
        fitted = torch.where(live.unsqueeze(1), sums[0] / counts[0].clamp(min=1e-30).unsqueeze(1), centroids)
        if not bool(live[fixed:].all()):
            fitted = _move_unused(rows, weights, codes, fitted, ~live, fixed)
        if torch.equal(fitted, centroids):
            break
        centroids = fitted
    return centroids


def _sample(rows: Tensor, weights: Tensor, limit: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """At most ``limit`` rows with their weights: those that count more than their share, and some of the others.

    A row without which the others would stand for something else is never left out; the weights of the others are
    raised so that they stand for all of their kind.
    """
    is_heavy = weights.double() * limit > weights.double().sum()
    heavy, light = is_heavy.nonzero().flatten(), (~is_heavy).nonzero().flatten()
    count = min(limit - len(heavy), len(light))
    drawn = light[draw_places(len(light), count, generator).to(rows.device)]
    scale = len(light) / max(1, count)
    return torch.cat([rows[heavy], rows[drawn]]), torch.cat([weights[heavy], weights[drawn] * scale])


def _move_unused(rows: Tensor, weights: Tensor, codes: Tensor, centroids: Tensor, unused: Tensor, fixed: int) -> Tensor:
    """Centroids that no row chooses, on the rows that lose most; the first ``fixed`` stay."""
    unused = unused.clone()
    unused[:fixed] = False
    errors = (rows - centroids[codes[:, 0].long()]).square().sum(1) * weights
    worst = errors.argsort(descending=True)[: int(unused.sum())]
    centroids = centroids.clone()
    centroids[unused.nonzero().squeeze(1)[: len(worst)]] = rows[worst]
    return centroids


def _spread_start(rows: Tensor, weights: Tensor, fixed: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii, 2007): rows drawn by weight times squared distance to the nearest so far."""
    if len(rows) > LEAST_ROWS // SPREAD_SHARE:
        rows, weights = _sample(rows, weights, max(LEAST_ROWS, len(rows)) // SPREAD_SHARE, generator)
    columns = rows.T.contiguous()  # sums over few numbers of many rows are slow

    def away(centroid: Tensor) -> Tensor:
        return (columns - centroid.unsqueeze(1)).square_().sum(0)

    near = torch.full((len(rows),), torch.inf, device=rows.device)
    for centroid in fixed:
        near = torch.minimum(near, away(centroid))
    chosen = rows.new_empty(num, rows.shape[1])
    draws = torch.rand(num, generator=generator, dtype=torch.float64, device="cpu").to(rows.device)
    for k in range(num):
        mass = (weights if k == 0 and not len(fixed) else weights * near).cumsum(0, dtype=torch.float64)
        place = torch.searchsorted(mass, draws[k] * mass[-1]).clamp(max=len(rows) - 1)
        chosen[k] = rows[place]
        near = torch.minimum(near, away(chosen[k]))
    return chosen
