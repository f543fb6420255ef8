"""Codebook health: where centroids start, and how dead ones come back.

With the usual scales only 8 of 256 centroids are ever chosen (docs/method.md); a k-means start on the rows
and revival keep them all alive, with nothing to tune.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mgqe import ops
from mgqe.checks.scalars import as_int
from mgqe.codec.capacity import Capacity
from mgqe.codec.equations import nearest_codes

MAX_SAMPLE_ROWS = 65_536
ROWS_PER_CENTROID = 64
WORK_LIMIT = 5e11  # multiply-adds of one k-means, which bounds rows and iterations for huge codebooks
START_ROWS = 16_384  # that several starts are compared on
SPREAD_ROWS, SPREAD_PER_CENTROID = 4_096, 16  # that k-means++ draws from
FAR_MEAN = 16.0  # standard deviations; beyond this, sums of rows lose the digits in which the rows differ
LEAST_PEAK, LARGEST_PEAK = 1e-12, 1e15  # between these squares and sums of squares stay in float32
ENOUGH = 2e-4  # of the errors; a thorough k-means ends where an iteration takes off less
REVIVE_ROWS = 16_384
REVIVE_EVERY = 100


@dataclass(frozen=True)
class KMeans:
    """How much work a k-means does.

    Attributes:
        iterations: of Lloyd's algorithm, at most.
        starts: how often to begin again; every subspace keeps its best result. Several starts are compared on a sample
            of the rows, and the best goes on with all of them, until an iteration takes off less than 0.0002 of the
            errors.
        spread: begin every second time, the first included, with centroids far apart, by k-means++ (Arthur and
            Vassilvitskii, 2007), instead of on random rows.
    """

    iterations: int = 15
    starts: int = 1
    spread: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "iterations", as_int("iterations", self.iterations, 0))
        object.__setattr__(self, "starts", as_int("starts", self.starts, 1))


KMEANS = KMeans()  # before training goes on through the codes, which moves the centroids further
THOROUGH = KMeans(iterations=50, starts=3, spread=True)  # where the codes may stay as they are


@dataclass(frozen=True)
class Frame:
    """Where sums and squares of rows keep their digits: near zero and of ordinary size.

    The identity for rows whose means are of the size of their spread, so that these give the bits they always gave.

    Attributes:
        shift: float32 (Dc, 1, sc) or (1, 1, sc), what is taken off after scaling; zeros where means are small.
        scale: a power of two.
    """

    shift: Tensor
    scale: float

    @classmethod
    def of(cls, pieces: Tensor, count: int) -> Frame | None:
        """The frame of pieces (n, D, sc) for a codebook of ``count`` pieces, D or 1; None where rows may stay."""
        if pieces.numel() == 0:
            return None
        peak = float(pieces.abs().amax())
        scale = 1.0
        if math.isfinite(peak) and peak > 0 and not LEAST_PEAK < peak < LARGEST_PEAK:
            scale = 2.0 ** -max(-126, min(126, math.frexp(peak)[1]))
        if count == 1:
            pieces = pieces.reshape(-1, 1, pieces.shape[-1])
        variance, mean = torch.var_mean(pieces * scale, dim=0, correction=0)
        far = mean.abs() > FAR_MEAN * variance.sqrt()
        if scale == 1.0 and not bool(far.any()):
            return None
        return cls(torch.where(far, mean, 0.0).unsqueeze(1), scale)

    def enter(self, book: Tensor) -> Tensor:
        """Centroids (Dc, K, sc) as seen from the frame."""
        return book * self.scale - self.shift

    def leave(self, book: Tensor) -> Tensor:
        """The inverse."""
        return (book + self.shift) / self.scale

    def rows(self, rows: Tensor) -> Tensor:
        """Rows (n, d) as seen from the frame."""
        pieces = split_pieces(rows, self.shift.shape[-1])
        return (pieces * self.scale - self.shift.squeeze(1)).flatten(1)


def start_codebooks(
    rows: Sequence[Tensor], capacity: Capacity, generator: torch.Generator, effort: KMeans = KMEANS
) -> list[Tensor]:
    """Nested k-means: centroids fitted on the rows of the tiers that can reach them.

    In a shared codebook the first K_tail centroids are fitted on the tail's rows; then the others on the rows of
    the tiers that reach further, with the first ones fixed. This beat a single fit to all rows (docs/method.md).

    Args:
        rows: each tier's rows (n_g, d) float32, or a sample of them.
        capacity: the tiers' subspaces and centroids.
        generator: on the CPU; the result depends on nothing else.

    Returns:
        one (Dc, Kc, sc) tensor per codebook.
    """
    books = []
    for number, shape in enumerate(capacity.codebook_shapes):
        readers = [(tier, rows[g]) for g, tier in enumerate(capacity.tiers) if tier.codebook == number]
        book = torch.empty(shape[0], 0, shape[2], dtype=torch.float32, device=readers[0][1].device)
        for reach in sorted({tier.num_centroids for tier, _ in readers}):
            groups = [(rows_g, tier.num_subspaces) for tier, rows_g in readers if tier.num_centroids == reach]
            book = kmeans(groups, book, reach, generator, effort)
        books.append(book.contiguous())
    return books


def sample_size(num_centroids: int, embedding_dim: int) -> int:
    """Rows of a tier that a k-means looks at: enough per centroid, but no more than it can go over once."""
    wanted = max(MAX_SAMPLE_ROWS, ROWS_PER_CENTROID * num_centroids)
    return max(num_centroids, min(wanted, int(WORK_LIMIT / (num_centroids * embedding_dim))))


def revive_size(num_centroids: int) -> int:
    """Rows of a tier that tell a dead centroid from one that is seldom chosen."""
    return max(REVIVE_ROWS, ROWS_PER_CENTROID * num_centroids)


def revive_interval(num_rows: int) -> int:
    """Training passes between two looks for dead centroids among so many rows: the cost per pass stays the same."""
    return REVIVE_EVERY * max(1, math.ceil(num_rows / REVIVE_ROWS))


def kmeans(
    groups: Sequence[tuple[Tensor, int]],
    fixed: Tensor,
    num_centroids: int,
    generator: torch.Generator,
    effort: KMeans = KMEANS,
) -> Tensor:
    """Lloyd's algorithm with the first centroids fixed, on groups of rows that may have different subspaces.

    Args:
        groups: (rows (n, d), num_subspaces) pairs that share the codebook.
        fixed: (Dc, H, sc) centroids that rows may choose, but that do not move.
        num_centroids: K, of which K - H are fitted.

    Returns:
        (Dc, K, sc); centroids that no row chooses sit on random rows.
    """
    width = fixed.shape[2]
    sampled = [
        (draw_rows(rows, sample_size(num_centroids, rows.shape[1]), generator), subspaces) for rows, subspaces in groups
    ]
    pieces = torch.cat([split_pieces(rows, width) for rows, _ in sampled])
    frame = Frame.of(pieces, fixed.shape[0])
    if frame is None:
        return _fit(sampled, pieces, fixed, num_centroids, generator, effort)
    sampled = [(frame.rows(rows), subspaces) for rows, subspaces in sampled]
    pieces = torch.cat([split_pieces(rows, width) for rows, _ in sampled])
    book = frame.leave(_fit(sampled, pieces, frame.enter(fixed), num_centroids, generator, effort))
    return torch.cat([fixed, book[:, fixed.shape[1] :]], dim=1)


def _fit(
    sampled: Sequence[tuple[Tensor, int]],
    pieces: Tensor,
    fixed: Tensor,
    num_centroids: int,
    generator: torch.Generator,
    effort: KMeans,
) -> Tensor:
    """:func:`kmeans` of rows that are sampled already; ``pieces`` are theirs."""
    count, new = fixed.shape[0], num_centroids - fixed.shape[1]

    def start(number: int) -> Tensor:
        spread = effort.spread and number % 2 == 0
        made = spread_pieces(pieces, fixed, new, generator) if spread else draw_pieces(pieces, count, new, generator)
        return torch.cat([fixed, made], dim=1)

    if effort.starts == 1:
        return _lloyd(sampled, pieces, start(0), fixed, generator, effort.iterations)
    limit = max(START_ROWS, ROWS_PER_CENTROID * num_centroids)
    fewer = [(draw_rows(rows, limit, generator), subspaces) for rows, subspaces in sampled]
    best, least = fixed, fixed.new_full((1,), float("inf"))
    for number in range(effort.starts):
        book = _lloyd(fewer, pieces, start(number), fixed, generator, effort.iterations, ENOUGH)
        errors = _errors(fewer, book)
        better = (errors < least).repeat_interleave(count // errors.numel()).view(-1, 1, 1)
        best = torch.where(better, book, best) if number else book
        least = torch.minimum(errors, least)
    if all(len(few) == len(rows) for (few, _), (rows, _) in zip(fewer, sampled, strict=True)):
        return best
    return _lloyd(sampled, pieces, best, fixed, generator, effort.iterations, ENOUGH)


def _errors(sampled: Sequence[tuple[Tensor, int]], book: Tensor) -> Tensor:
    """Squared errors of rows, for each run of subspaces that can be fitted on its own: (g,), g a divisor of Dc."""
    groups = math.gcd(book.shape[0], *(subspaces for _, subspaces in sampled))
    total = torch.zeros(groups, dtype=torch.float32, device=book.device)
    for rows, subspaces in sampled:
        decoded = ops.gather(nearest_codes(rows, book, subspaces, book.shape[1]), book)
        total += (rows - decoded).square().sum(0).view(groups, -1).sum(1)
    return total


def _lloyd(
    sampled: Sequence[tuple[Tensor, int]],
    pieces: Tensor,
    book: Tensor,
    fixed: Tensor,
    generator: torch.Generator,
    iterations: int,
    enough: float = 0.0,
) -> Tensor:
    """Lloyd's algorithm from the centroids in ``book`` (Dc, K, sc), of which the first stay as ``fixed``.

    It ends after an iteration that takes off less than ``enough`` of the errors; 0: after all iterations.
    """
    count, num_centroids, _ = book.shape
    first = fixed.shape[1]
    work = sum(rows.numel() for rows, _ in sampled) * num_centroids
    squares = sum(float(rows.double().square().sum()) for rows, _ in sampled) if enough else 0.0
    before = math.inf
    for _ in range(max(1, min(iterations, int(WORK_LIMIT / max(1, work))))):
        sums = torch.zeros_like(book)
        counts = torch.zeros(book.shape[:2], dtype=torch.float32, device=book.device)
        for rows, subspaces in sampled:
            codes = nearest_codes(rows, book, subspaces, num_centroids)
            part_sums, part_counts = ops.scatter(rows, codes, None, *book.shape)
            sums += part_sums
            counts += part_counts
        fitted = sums / counts.clamp(min=1).unsqueeze(-1)
        spare = draw_pieces(pieces, count, num_centroids, generator)
        fitted = torch.where((counts > 0).unsqueeze(-1), fitted, spare)
        fitted[:, :first] = fixed
        book = fitted
        if enough:
            products = (sums.double() * book).sum() * 2 - (counts.double() * book.double().square().sum(-1)).sum()
            errors = squares - float(products)  # of these codes with the new centroids
            if errors > (1 - enough) * before:
                break
            before = errors
    return book


def split_pieces(rows: Tensor, width: int) -> Tensor:
    """Rows (n, d) -> their pieces (n, d / width, width)."""
    return rows.reshape(rows.shape[0], rows.shape[1] // width, width)


def draw_rows(rows: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """At most ``limit`` rows at random."""
    if len(rows) <= limit:
        return rows
    return rows.index_select(0, draw_places(len(rows), limit, generator).to(rows.device))


def draw_places(size: int, limit: int, generator: torch.Generator) -> Tensor:
    """``limit`` random places below ``size`` on the CPU; without repetition unless they are few among many."""
    if size > 4 * limit:
        return torch.randint(size, (limit,), generator=generator, device="cpu")
    return torch.randperm(size, generator=generator, device="cpu")[:limit]


def draw_pieces(pieces: Tensor, count: int, num: int, generator: torch.Generator) -> Tensor:
    """Random starting centroids: (n, D, sc) pieces of rows -> (count, num, sc), count = D, or 1 for all subspaces.

    Rows are drawn without repetition while there are enough. Where there are too few, the repeats get a little
    noise, so that no two centroids are the same; with no rows at all, small noise.
    """
    if count == 1 and pieces.shape[1] != 1:
        pieces = pieces.reshape(-1, 1, pieces.shape[-1])
    rows, subspaces, width = pieces.shape
    noise = torch.randn(subspaces, num, width, generator=generator, dtype=torch.float32, device="cpu").to(pieces.device)
    if rows == 0:
        return noise * 0.01
    repeats = math.ceil(num / rows)
    # Each subspace draws for itself, so that its revived centroids do not all come from the rows of another.
    picks = [
        torch.cat([torch.randperm(rows, generator=generator, device="cpu")[:num] for _ in range(repeats)])[:num]
        if rows <= 4 * num
        else torch.randint(rows, (num,), generator=generator, device="cpu")
        for _ in range(subspaces)
    ]
    index = torch.stack(picks).to(pieces.device)
    drawn = pieces[index, torch.arange(subspaces, device=pieces.device).unsqueeze(1)]
    if repeats > 1:
        drawn = drawn + noise * (_spread(pieces) * 1e-3 if pieces.numel() > 1 else 1e-3)
    return drawn


def _spread(pieces: Tensor) -> Tensor:
    """The standard deviation of all numbers, also where their squares leave float32."""
    spread, peak = pieces.std(), pieces.abs().amax()
    scaled = (pieces / torch.where(peak > 0, peak, 1.0)).std() * peak
    return torch.where(spread.isfinite(), spread, scaled)


def spread_pieces(pieces: Tensor, fixed: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Starting centroids by k-means++: each a piece drawn by its squared distance to the nearest one so far.

    Args:
        pieces: (n, D, sc) pieces of rows, of which at most ``SPREAD_ROWS``, or 16 per centroid, are looked at.
        fixed: (Dc, H, sc) centroids that are there already.
        num: how many more.

    Returns:
        (Dc, num, sc); random ones, as :func:`draw_pieces`, where there are too few rows.
    """
    if fixed.shape[0] == 1 and pieces.shape[1] != 1:
        pieces = pieces.reshape(-1, 1, pieces.shape[-1])
    if len(pieces) <= num or num == 0:
        return draw_pieces(pieces, fixed.shape[0], num, generator)
    limit = max(SPREAD_ROWS, SPREAD_PER_CENTROID * (num + fixed.shape[1]))
    points = draw_rows(pieces, limit, generator).transpose(0, 1).contiguous()
    count, n, width = points.shape
    every = torch.arange(count, device=points.device)
    near = torch.full((count, n), float("inf"), dtype=torch.float32, device=points.device)
    for k in range(fixed.shape[1]):
        near = torch.minimum(near, (points - fixed[:, k : k + 1]).square().sum(-1))
    chosen = torch.empty(count, num, width, dtype=torch.float32, device=points.device)
    for k in range(num):
        weights = near if k or fixed.shape[1] else torch.ones_like(near)
        below = weights.cumsum(1)
        draw = torch.rand(count, 1, generator=generator, dtype=torch.float32, device="cpu").to(points.device)
        drawn = torch.searchsorted(below, draw * below[:, -1:]).squeeze(1).clamp(max=n - 1)
        chosen[:, k] = points[every, drawn]
        near = torch.minimum(near, (points - chosen[:, k : k + 1]).square().sum(-1))
    return chosen


def revive(book: Tensor, uses: Tensor, rows: Tensor, generator: torch.Generator) -> int:
    """Move each centroid that no row chose onto the piece of a random row, in place.

    Args:
        book: (Dc, Kc, sc), changed in place.
        uses: (Dc, Kc) how often each was chosen.
        rows: (n, d) rows of the tiers that reach these centroids.

    Returns:
        how many were moved.
    """
    dead = uses == 0
    moved = int(dead.sum())
    if moved == 0 or len(rows) == 0:
        return 0
    pieces = split_pieces(rows, book.shape[-1])
    spare = draw_pieces(pieces, book.shape[0], book.shape[1], generator)
    book.copy_(torch.where(dead.unsqueeze(-1), spare, book))
    return moved
