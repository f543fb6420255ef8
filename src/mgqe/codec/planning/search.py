"""Every configuration that `plan` chooses among, with its bytes and what it is expected to lose.

A split cuts the ids, most frequent first, into one to three tiers. With one codebook per tier, bytes and losses of the
tiers add up, so that a tier's option is of use only if none is both smaller and better; with one shared codebook the
tiers have the same subspaces and fall in centroids. That leaves some thousand candidates, which no budget changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mgqe.codec.capacity import Capacity, divisors
from mgqe.codec.layout import frozen_nbytes
from mgqe.codec.packing import bits_for, row_bytes
from mgqe.codec.planning.rate import rounding, tier_error
from mgqe.codec.tier_map import peel_order
from mgqe.codec.tiers import Tiers
from mgqe.files.checksums import BLOCK_BYTES, DIGEST_BYTES
from mgqe.ops.layout.packed_format import level_lengths

ENDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)  # shares of ids where a tier may end
MIN_TIER = 32  # ids
MAX_WIDTH = 32  # dimensions per subspace
CENTROIDS = tuple(1 << bits for bits in range(1, 17))
ITEM_BYTES = {"float32": 4, "float16": 2, "int8": 1}
# Bytes by which headers of one structure differ, for the digits of their numbers and the last blocks of the tensors.
HEADER_SPREAD = 288


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
        return Capacity.of(embedding_dim, self.sizes, self.num_subspaces, self.num_centroids, self.share_codebook)


@dataclass(frozen=True)
class CandidateBlock:
    """Candidates of one split, type and way to share: numbers in arrays; a candidate is made when it is wanted."""

    payload: np.ndarray
    loss: np.ndarray
    make: Callable[[int], Candidate]


class Space:
    """All candidates for a table that may be the best within some budget, by rising loss."""

    def __init__(
        self, vocabulary: Vocabulary, embedding_dim: int, padding_idx: int | None, max_tiers: int, max_centroids: int
    ) -> None:
        self.vocabulary, self.embedding_dim, self.padding_idx = vocabulary, embedding_dim, padding_idx
        self.centroids = tuple(k for k in CENTROIDS if k <= max_centroids)
        self.subspaces = tuple(n for n in divisors(embedding_dim) if embedding_dim // n <= MAX_WIDTH)
        self.below = np.concatenate([[0.0], np.cumsum(vocabulary.weights)])
        self.max_tiers = max_tiers
        self._tiers: dict[tuple[int, ...], Tiers] = {}
        self._headers: dict[tuple[int, bool, str, bool], int] = {}
        self._errors: dict[int, np.ndarray] = {}
        self._codes: dict[int, np.ndarray] = {}
        self.candidates = self._thinned([block for sizes in self.splits() for block in self._blocks(sizes)])

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

    def _mapped(self, sizes: tuple[int, ...]) -> bool:
        """Whether a table of these tiers holds a map: not where they happen to be ranges of ids."""
        return self.tiers(sizes).tier_of is not None

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
        mapped = self._mapped(candidate.sizes)
        structure = (len(candidate.sizes), candidate.share_codebook, candidate.centroid_dtype, mapped)
        if structure not in self._headers:
            self._headers[structure] = self.nbytes(candidate) - int(_with_checksums(candidate.payload))
        return int(_with_checksums(candidate.payload)) + self._headers[structure]

    def _thinned(self, blocks: list[CandidateBlock]) -> list[Candidate]:
        """Those that no better one is smaller than, as far as can be told without their exact bytes."""
        headers = [self.about(first) - _with_checksums(first.payload) for first in (block.make(0) for block in blocks)]
        about = np.concatenate(
            [_with_checksums(block.payload) + header for block, header in zip(blocks, headers, strict=True)]
        )
        loss = np.concatenate([block.loss for block in blocks])
        owner = np.repeat(np.arange(len(blocks)), [len(block.loss) for block in blocks])
        place = np.concatenate([np.arange(len(block.loss)) for block in blocks])
        order = np.lexsort((owner, about, loss))  # of equals the one with fewer tiers, whose block comes first
        smallest = np.concatenate([[np.inf], np.minimum.accumulate(about[order])[:-1]])
        near = order[about[order] < smallest + HEADER_SPREAD]
        return [blocks[owner[i]].make(int(place[i])) for i in near]

    def _blocks(self, sizes: tuple[int, ...]) -> Iterator[CandidateBlock]:
        extra = _map_bytes(level_lengths(sizes, peel_order(sizes))) if self._mapped(sizes) else 0
        for dtype in ITEM_BYTES:
            yield self._separate(sizes, dtype, extra)
        if len(sizes) > 1:
            yield from self._shared(sizes, extra)

    def _book_bytes(self, subspaces: int, k: int, dtype: str) -> int:
        return self.embedding_dim * k * ITEM_BYTES[dtype] + (4 * subspaces if dtype == "int8" else 0)

    # ---- one codebook per tier -----------------------------------------------------------------------------

    def _options(self, n: int, dtype: str) -> list[tuple[int, int, int, float]]:
        """(bytes, D, K, error) of a tier of n ids that has a codebook to itself; only useful ones, smallest first."""
        errors, codes = self._of_tier(n)
        options = []
        for i, subspaces in enumerate(self.subspaces):
            for j, k in enumerate(self.centroids):
                if k <= max(2, n):
                    nbytes = int(codes[i, j]) + self._book_bytes(subspaces, k, dtype)
                    options.append((nbytes, subspaces, k, float(errors[i, j, 0]) + rounding(dtype, k)))
        useful, least = [], np.inf
        for option in sorted(options, key=lambda o: (o[0], o[3])):
            if option[3] < least:
                useful.append(option)
                least = option[3]
        return useful

    def _separate(self, sizes: tuple[int, ...], dtype: str, extra: int) -> CandidateBlock:
        options = [self._options(n, dtype) for n in sizes]
        nbytes, loss = np.full(1, extra, dtype=np.int64), np.zeros(1)
        for tier, weight in zip(options, self.tier_weights(sizes), strict=True):
            nbytes = (nbytes[:, None] + np.array([o[0] for o in tier])).reshape(-1)
            loss = (loss[:, None] + weight * np.array([o[3] for o in tier])).reshape(-1)
        front = _front(nbytes, loss)

        def make(at: int) -> Candidate:
            places = np.unravel_index(front[at], [len(tier) for tier in options])
            chosen = [tier[int(i)] for tier, i in zip(options, places, strict=True)]
            _, d, k, errors = zip(*chosen, strict=True)
            return Candidate(
                sizes, d, k, len(sizes) == 1, dtype, int(nbytes[front[at]]), errors, float(loss[front[at]])
            )

        return CandidateBlock(nbytes[front], loss[front], make)

    # ---- one codebook for all ----------------------------------------------------------------------------

    def _of_tier(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Errors (D, K, inherited) of a tier of n ids before rounding, and bytes of its codes (D, K).

        The last axis: 0 for no inherited centroids, else one more than the index of their number."""
        if n not in self._errors:
            widths = [self.embedding_dim // subspaces for subspaces in self.subspaces]
            self._errors[n] = np.array(
                [
                    [
                        [tier_error(s, k, n, old) if old < k else np.nan for old in (0, *self.centroids)]
                        for k in self.centroids
                    ]
                    for s in widths
                ]
            )
            self._codes[n] = np.array(
                [[n * row_bytes(subspaces, bits_for(k)) for k in self.centroids] for subspaces in self.subspaces]
            )
        return self._errors[n], self._codes[n]

    def _shared(self, sizes: tuple[int, ...], extra: int) -> Iterator[CandidateBlock]:
        falls = np.array([c[::-1] for c in combinations(range(len(self.centroids)), len(sizes))])
        known = np.array(self.centroids)
        if len(falls):
            falls = falls[(known[falls] <= np.maximum(2, sizes)).all(1)]
        if not len(falls):
            return
        old = np.concatenate([falls[:, 1:] + 1, np.zeros((len(falls), 1), dtype=np.int64)], axis=1)
        parts = [self._of_tier(n) for n in sizes]
        errors = np.stack([e[:, falls[:, g], old[:, g]] for g, (e, _) in enumerate(parts)], axis=-1)  # (D, combos, m)
        codes = sum(c[:, falls[:, g]] for g, (_, c) in enumerate(parts))
        plain = errors @ self.tier_weights(sizes)
        for dtype in ITEM_BYTES:
            largest = [int(k) for k in known[falls[:, 0]]]
            books = np.array([[self._book_bytes(d, k, dtype) for k in largest] for d in self.subspaces])
            added = np.array([rounding(dtype, k) for k in largest])
            nbytes, loss = (codes + books + extra).reshape(-1), (plain + added).reshape(-1)
            front = _front(nbytes, loss)
            yield CandidateBlock(
                nbytes[front], loss[front], self._maker(sizes, dtype, falls, errors, added, nbytes, loss, front)
            )

    def _maker(
        self,
        sizes: tuple[int, ...],
        dtype: str,
        falls: np.ndarray,
        errors: np.ndarray,
        added: np.ndarray,
        nbytes: np.ndarray,
        loss: np.ndarray,
        front: np.ndarray,
    ) -> Callable[[int], Candidate]:
        def make(at: int) -> Candidate:
            place = int(front[at])
            i, combo = divmod(place, len(falls))
            return Candidate(
                sizes,
                (self.subspaces[i],) * len(sizes),
                tuple(self.centroids[j] for j in falls[combo]),
                True,
                dtype,
                int(nbytes[place]),
                tuple(float(error) for error in errors[i, combo] + added[combo]),
                float(loss[place]),
            )

        return make


def _front(nbytes: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Places of those that no other one beats in both, smallest first."""
    order = np.lexsort((loss, nbytes))
    least = np.minimum.accumulate(loss[order])
    best: np.ndarray = order[np.concatenate([[True], least[1:] < least[:-1]])]
    return best


def _with_checksums(payload: Any) -> Any:
    """Bytes of tensors and of the checksums of their blocks, as if they were one tensor."""
    return payload + payload // BLOCK_BYTES * DIGEST_BYTES


def _map_bytes(lengths: Sequence[int]) -> int:
    """Of a tier map: 256 bits and a rank of 32 bits per block."""
    return sum(-(-n // 256) * 36 for n in lengths)
