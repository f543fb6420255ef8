"""Searches: among which centroids the rows of each tier look for codes, for kernels that take all tiers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from mgqe.ops.layout.pieces import Piece


class Search(NamedTuple):
    """A subspace and its centroids. Tiers that read the same ones share a search.

    Attributes:
        coordinate, width: of the subspace in the rows.
        entry: where its centroid 0 begins in the flat codebooks.
        piece, stride: number t of centroid k lies at entry + t // piece * stride + k * piece + t % piece.
        column: its place among a row's codes.
        counts: of each tier, among how many centroids its rows choose; 0 for tiers that have no such subspace.
    """

    coordinate: int
    width: int
    entry: int
    piece: int
    stride: int
    column: int
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Searches:
    """Those of all tiers.

    Attributes:
        all: in any order; each coordinate of a tier's rows is in one that counts for it.
        num_codes: of the tier that has the most.
        num_numbers: of all flat codebooks.
    """

    all: tuple[Search, ...]
    num_codes: int
    num_numbers: int

    @property
    def num_tiers(self) -> int:
        """How many tiers there are."""
        return len(self.all[0].counts)

    @property
    def most(self) -> int:
        """Centroids of the largest search."""
        return max(max(search.counts) for search in self.all)

    @property
    def length(self) -> int:
        """Coordinates of a row."""
        return max(search.coordinate + search.width for search in self.all)

    @property
    def num_moments(self) -> int:
        """Numbers of the widest search's moments: how many rows, sums of coordinates, sums of products of two."""
        width = max(search.width for search in self.all)
        return 1 + width + width * width

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """All of it in whole numbers, as operators in graphs take it; :func:`searches_of` reads them."""
        fields = [number for search in self.all for number in (*search[:6], *search.counts)]
        return (self.num_codes, self.num_numbers, self.num_tiers, *fields)

    def places(self, codes: Tensor, tiers: Tensor | None) -> Tensor:
        """Where the numbers are that codes (n, D) of rows of tiers (n,) name, int64 (n, L); None: there is one tier."""
        places = torch.zeros((codes.shape[0], self.length), dtype=torch.int64, device=codes.device)
        for search in self.all:
            t = torch.arange(search.width, device=codes.device)
            first = search.entry + t // search.piece * search.stride + t % search.piece
            named = codes[:, search.column, None].long() * search.piece + first
            columns = places[:, search.coordinate : search.coordinate + search.width]
            if tiers is not None:
                has_subspace = torch.tensor(search.counts, device=codes.device) > 0
                named = torch.where(has_subspace[tiers.long()].unsqueeze(-1), named, columns)
            columns.copy_(named)
        return places


def even_searches(
    books: Sequence[Sequence[int]], codebook_of: Sequence[int], tiers: Sequence[tuple[int, int]]
) -> Searches:
    """Of codebooks (Dc, Kc, sc), which codebook each tier reads, and each tier's (D_g, K_g).

    See :func:`mgqe.codec.equations.tier_codebook`.
    """
    starts = list(accumulate((a * b * c for a, b, c in books), initial=0))
    of_tiers = []
    for number, (subspaces, count) in zip(codebook_of, tiers, strict=True):
        pieces, room, width = books[number]
        of_code, stride = max(1, pieces // subspaces), room * width
        step = 0 if pieces == 1 else of_code * stride
        of_tiers.append(
            [
                (j * of_code * width, of_code * width, starts[number] + j * step, width, stride, j, count)
                for j in range(subspaces)
            ]
        )
    return _joined(of_tiers, starts[-1])


def mixed_searches(layouts: Sequence[Sequence[Piece]], starts: Sequence[int], num_numbers: int) -> Searches:
    """Of each tier's pieces, and where its flat codebook begins among all of them."""
    return _joined(
        [
            [(p.coordinate, p.width, start + p.entry, p.width, 0, j, 1 << p.bits) for j, p in enumerate(layout)]
            for layout, start in zip(layouts, starts, strict=True)
        ],
        num_numbers,
    )


def _joined(of_tiers: Sequence[Sequence[tuple[int, int, int, int, int, int, int]]], num_numbers: int) -> Searches:
    """Of each tier, of each of its subspaces: a search's fields, and the tier's count."""
    counts: dict[tuple[int, int, int, int, int, int], list[int]] = {}
    for g, of_tier in enumerate(of_tiers):
        for fields in of_tier:
            counts.setdefault(fields[:6], [0] * len(of_tiers))[g] = fields[6]
    searches = tuple(Search(*where, tuple(each)) for where, each in counts.items())
    return Searches(searches, max(map(len, of_tiers)), num_numbers)


@lru_cache(maxsize=256)
def searches_of(numbers: tuple[int, ...]) -> Searches:
    """Of :attr:`Searches.numbers`; of equal ones the same object, so that :func:`search_table` is made once."""
    num_codes, num_numbers, num_tiers, *fields = numbers
    step, each = 6 + num_tiers, []
    for at in range(0, len(fields), step):
        coordinate, width, entry, piece, stride, column, *counts = fields[at : at + step]
        each.append(Search(coordinate, width, entry, piece, stride, column, tuple(counts)))
    return Searches(tuple(each), num_codes, num_numbers)


@lru_cache(maxsize=256)
def search_table(searches: Searches, device: torch.device) -> Tensor:
    """The searches as kernels read them, int64 (S, 7 + T).

    Of each: coordinate, width, entry, piece, stride, column, how many coordinates those before it have, and its counts.
    """
    before = accumulate((search.width for search in searches.all), initial=0)
    rows = [(*search[:6], first, *search.counts) for search, first in zip(searches.all, before, strict=False)]
    return torch.tensor(rows, dtype=torch.int64, device=device)
