"""Centroids of mixed tables: weighted k-means in each subspace, nested where tiers share a codebook."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mgqe import ops
from mgqe.codec.capacity import Capacity
from mgqe.codec.kmeans import draw_places

ITERATIONS = 15
LEAST_ROWS = 8_192  # that centroids are fitted on, if there are so many
ROWS_PER_CENTROID = 64  # that more rows are fitted on for
LEVEL_ROWS = 65_536  # numbers that levels are fitted on
LEVEL_STEPS = 120  # of the largest level
SPREAD_SHARE = 2  # one of so many of them is drawn from at the start


def fit_codebooks(
    coordinates: Sequence[Tensor], weights: Sequence[Tensor], capacity: Capacity, generator: torch.Generator
) -> list[Tensor]:
    """The flat codebooks of a mixed table, float32.

    In a shared codebook the centroids that a tier of few bits reaches are fitted on its rows; then the others on the
    rows of the tiers that reach further, with the first ones fixed.

    Args:
        coordinates: of each tier's rows, or of a sample of them, (n_g, L) float32.
        weights: how much each row counts, (n_g,).
        generator: on the CPU; the result depends on nothing else.
    """
    books = []
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
    fitted: dict[tuple[int, int], Tensor] = {}
    for g, tier in enumerate(capacity.tiers):
        for bits in sorted(set(tier.code_bits)):
            mine = torch.tensor([b == bits for b in tier.code_bits])
            values = (coordinates[g][:, mine] / deviations[mine].where(deviations[mine] > 0, 1.0)).reshape(-1, 1)
            counts = weights[g].repeat_interleave(int(mine.sum()))
            if len(values) > LEVEL_ROWS:
                places = draw_places(len(values), LEVEL_ROWS, generator)
                values, counts = values[places], counts[places]
            levels = weighted_kmeans(values, counts, 1 << bits, generator, values.new_zeros(0, 1))
            fitted[tier.codebook, bits] = levels.flatten().sort().values
    step = max(float(levels.abs().amax()) for levels in fitted.values()) / LEVEL_STEPS or 1.0
    books = []
    for number, (length,) in enumerate(capacity.codebook_shapes):
        book = coordinates[0].new_zeros(length)
        (tier,) = (tier for tier in capacity.tiers if tier.codebook == number)
        for j, (piece, bits) in enumerate(zip(capacity.pieces_of_codebook(number), tier.code_bits, strict=True)):
            levels = (fitted[number, bits] / step).round() * step
            book[piece.entry : piece.entry + len(levels)] = levels * deviations[j]
        books.append(book)
    return books


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
    if len(rows) > (limit := max(LEAST_ROWS, ROWS_PER_CENTROID * num_centroids)):
        rows, weights = _sample(rows, weights, limit, generator)
    if num_centroids == 1:
        return ((weights @ rows) / weights.sum().clamp(min=1e-30)).unsqueeze(0)
    centroids = torch.cat([fixed, _spread_start(rows, weights, fixed, new, generator)])
    for _ in range(ITERATIONS):
        codes = ops.assign(rows, centroids.unsqueeze(0).contiguous(), None)
        sums, counts = ops.scatter(rows, codes, weights, 1, *centroids.shape)
        live = counts[0] > 0
        live[: len(fixed)] = False
        fitted = torch.where(live.unsqueeze(1), sums[0] / counts[0].clamp(min=1e-30).unsqueeze(1), centroids)
        if not bool(live[len(fixed) :].all()):
            fitted = _move_unused(rows, weights, codes, fitted, ~live, len(fixed))
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
