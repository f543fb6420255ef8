"""Every configuration that `plan` chooses among, with its bytes and what it is expected to lose.

A split cuts the ids, most frequent first, into one to three tiers. With a codebook a tier, bytes and losses of the
tiers add up, so that a tier's option is of use only if none is both smaller and better; with one shared codebook the
tiers have the same subspaces and fall in centroids. That leaves some thousand candidates, which no budget changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mgqe.capacity import Capacity, divisors
from mgqe.packing import bits_for, row_bytes
from mgqe.planning.predict import tier_error
from mgqe.size import frozen_nbytes
from mgqe.tiers import Tiers, level_lengths, peel_order

ENDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)  # shares of ids where a tier may end
MIN_TIER = 32  # ids
MAX_WIDTH = 32  # dimensions a subspace
CENTROIDS = tuple(1 << bits for bits in range(1, 17))
ITEM_BYTES = {"float32": 4, "float16": 2, "int8": 1}
HEADER_SPREAD = 192  # bytes by which headers of one structure differ, for the digits of their numbers


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a table, and how much each one's error counts.

    Attributes:
        order: int64 (N,) ids, most frequent first.
        weights: float64 (N,) of ids in that order, summing to 1.
        sorted: whether ids are in that order already, so that no tier map is needed.
    """

    order: np.ndarray
    weights: np.ndarray
    sorted: bool

    @property
    def size(self) -> int:
        """N."""
        return len(self.order)

    def tiers(self, sizes: Sequence[int]) -> Tiers:
        """The partition into tiers of these sizes."""
        import torch

        if self.sorted or len(sizes) == 1:
            return Tiers.from_sizes(sizes)
        tier_of = torch.empty(self.size, dtype=torch.uint8, device="cpu")
        tier_of[torch.from_numpy(self.order)] = torch.repeat_interleave(
            torch.arange(len(sizes), dtype=torch.uint8, device="cpu"), torch.tensor(sizes, device="cpu")
        )
        return Tiers(tuple(sizes), tier_of)


@dataclass(frozen=True)
class Candidate:
    """One configuration.

    Attributes:
        sizes: ids of each tier.
        num_subspaces, num_centroids: of each tier.
        share_codebook: as MGQEmbedding's.
        centroid_dtype: as MGQEmbedding's.
        payload: bytes of the file without its header.
        errors: of each tier, the share of its rows' squares that is expected to be lost.
        loss: the mean of those, weighted.
    """

    sizes: tuple[int, ...]
    num_subspaces: tuple[int, ...]
    num_centroids: tuple[int, ...]
    share_codebook: bool
    centroid_dtype: str
    payload: int
    errors: tuple[float, ...]
    loss: float

    def capacity(self, embedding_dim: int) -> Capacity:
        """As a checked capacity."""
        return Capacity(embedding_dim, self.num_subspaces, self.num_centroids, self.share_codebook)


class Space:
    """All candidates for a table, each tier of each split as arrays over its options."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        embedding_dim: int,
        padding_idx: int | None,
        max_tiers: int,
        max_centroids: int,
    ) -> None:
        self.vocabulary, self.embedding_dim, self.padding_idx = vocabulary, embedding_dim, padding_idx
        self.centroids = tuple(k for k in CENTROIDS if k <= max_centroids)
        self.subspaces = tuple(n for n in divisors(embedding_dim) if embedding_dim // n <= MAX_WIDTH)
        self.below = np.concatenate([[0.0], np.cumsum(vocabulary.weights)])
        self.max_tiers = max_tiers
        self._tiers: dict[tuple[int, ...], Tiers] = {}
        found = [c for sizes in self.splits() for dtype in ITEM_BYTES for c in self._of_split(sizes, dtype)]
        self._headers: dict[tuple[int, bool, str], int] = {}
        self.candidates = self._thinned(sorted(found, key=lambda c: (c.loss, c.payload, len(c.sizes))))

    def splits(self) -> Iterator[tuple[int, ...]]:
        """Tier sizes: ends at the shares in ENDS."""
        n = self.vocabulary.size
        ends = sorted({end for share in ENDS if MIN_TIER <= (end := round(share * n)) <= n - MIN_TIER})
        for m in range(self.max_tiers):
            for chosen in combinations(ends, m):
                yield tuple(int(size) for size in np.diff([0, *chosen, n]))

    def tiers(self, sizes: tuple[int, ...]) -> Tiers:
        """The partition of this split."""
        if sizes not in self._tiers:
            self._tiers[sizes] = self.vocabulary.tiers(sizes)
        return self._tiers[sizes]

    def tier_weights(self, sizes: Sequence[int]) -> np.ndarray:
        """How much each tier's error counts, summing to 1."""
        weights: np.ndarray = np.diff(self.below[np.cumsum([0, *sizes])])
        return weights

    def nbytes(self, candidate: Candidate) -> int:
        """Of the frozen table's file, exactly."""
        capacity = candidate.capacity(self.embedding_dim)
        return frozen_nbytes(self.tiers(candidate.sizes), capacity, self.padding_idx, candidate.centroid_dtype)

    def about(self, candidate: Candidate) -> int:
        """Bytes of the file, within HEADER_SPREAD: quicker, since headers of one structure are much alike."""
        structure = (len(candidate.sizes), candidate.share_codebook, candidate.centroid_dtype)
        if structure not in self._headers:
            self._headers[structure] = self.nbytes(candidate) - candidate.payload
        return candidate.payload + self._headers[structure]

    def _thinned(self, candidates: list[Candidate]) -> list[Candidate]:
        """Of candidates by rising loss those that may be the best within some budget."""
        kept: list[Candidate] = []
        smallest = math.inf
        for candidate in candidates:
            if (nbytes := self.about(candidate)) < smallest + HEADER_SPREAD:
                kept.append(candidate)
                smallest = min(smallest, nbytes)
        return kept

    def _of_split(self, sizes: tuple[int, ...], dtype: str) -> Iterator[Candidate]:
        weights = self.tier_weights(sizes)
        order = peel_order(sizes)
        extra = 0 if self.vocabulary.sorted else _map_bytes(level_lengths(sizes, order))
        yield from self._separate(sizes, weights, dtype, extra)
        if len(sizes) > 1:
            yield from self._shared(sizes, weights, dtype, extra)

    def _options(self, n: int, dtype: str) -> list[tuple[int, int, int, float]]:
        """(bytes, D, K, error) of a tier of n ids with a codebook of its own; those of use alone, smallest first."""
        options = []
        for subspaces in self.subspaces:
            for k in self.centroids:
                if k > max(2, n):
                    break
                nbytes = n * row_bytes(subspaces, bits_for(k)) + self._book_bytes(subspaces, k, dtype)
                error = tier_error(self.embedding_dim // subspaces, k, n, dtype)
                options.append((nbytes, subspaces, k, error))
        kept, least = [], np.inf
        for option in sorted(options, key=lambda o: (o[0], o[3])):
            if option[3] < least:
                kept.append(option)
                least = option[3]
        return kept

    def _book_bytes(self, subspaces: int, k: int, dtype: str) -> int:
        return self.embedding_dim * k * ITEM_BYTES[dtype] + (4 * subspaces if dtype == "int8" else 0)

    def _separate(self, sizes: tuple[int, ...], weights: np.ndarray, dtype: str, extra: int) -> Iterator[Candidate]:
        options = [self._options(n, dtype) for n in sizes]
        nbytes, loss = np.full((1,), float(extra)), np.zeros(1)
        for tier, weight in zip(options, weights, strict=True):
            nbytes = (nbytes[:, None] + np.array([o[0] for o in tier])).reshape(-1)
            loss = (loss[:, None] + weight * np.array([o[3] for o in tier])).reshape(-1)
        for place in _front(nbytes, loss):
            chosen = [
                tier[i] for tier, i in zip(options, np.unravel_index(place, [len(o) for o in options]), strict=True)
            ]
            d, k, e = zip(*((o[1], o[2], o[3]) for o in chosen), strict=True)
            yield Candidate(sizes, d, k, len(sizes) == 1, dtype, int(nbytes[place]), e, float(loss[place]))

    def _shared(self, sizes: tuple[int, ...], weights: np.ndarray, dtype: str, extra: int) -> Iterator[Candidate]:
        made = []
        for subspaces in self.subspaces:
            width = self.embedding_dim // subspaces
            for rising in combinations(self.centroids, len(sizes)):
                falling = rising[::-1]
                if any(k > max(2, n) for k, n in zip(falling, sizes, strict=True)):
                    continue
                codes = sum(n * row_bytes(subspaces, bits_for(k)) for n, k in zip(sizes, falling, strict=True))
                errors = [
                    tier_error(width, k, n, dtype, held, falling[0])
                    for n, k, held in zip(sizes, falling, (*falling[1:], 0), strict=True)
                ]
                nbytes = codes + self._book_bytes(subspaces, falling[0], dtype) + extra
                made.append((nbytes, subspaces, falling, tuple(errors), float(weights @ errors)))
        for place in _front(np.array([m[0] for m in made]), np.array([m[4] for m in made])):
            nbytes, subspaces, falling, errors, loss = made[place]
            yield Candidate(sizes, (subspaces,) * len(sizes), falling, True, dtype, nbytes, errors, loss)


def _front(nbytes: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Places of those that no other one beats in both, smallest first."""
    if not len(nbytes):
        return np.empty(0, dtype=np.int64)
    order = np.lexsort((loss, nbytes))
    least = np.minimum.accumulate(loss[order])
    best: np.ndarray = order[np.concatenate([[True], least[1:] < least[:-1]])]
    return best


def _map_bytes(lengths: Sequence[int]) -> int:
    """Of a tier map: 256 bits and a rank of 32 bits a block."""
    return sum(-(-n // 256) * 36 for n in lengths)
