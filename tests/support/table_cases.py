"""Compact tables of every layout, made from a seed, each with its rows worked out id by id."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mgqe.codec.tiers import Tiers
from mgqe.table.compact import CompactTable


@dataclass(frozen=True)
class Case:
    """One layout; ``pieces`` and ``width`` are a codebook's (Dc, sc)."""

    name: str
    sizes: tuple[int, ...]
    num_subspaces: tuple[int, ...]
    num_centroids: tuple[int, ...]
    codebooks: tuple[tuple[int, int, int], ...]
    codebook_of: tuple[int, ...]
    shuffled: bool = True
    centroid_dtype: str = "float32"
    padding_idx: int | None = None


CASES = [
    Case("two tiers", (7, 40), (4, 4), (16, 4), ((4, 16, 2),), (0, 0)),
    Case("frequency order", (7, 40), (4, 4), (16, 4), ((4, 16, 2),), (0, 0), shuffled=False),
    Case("one tier, one byte", (30,), (4,), (256,), ((4, 256, 3),), (0,)),
    Case("fewer subspaces", (9, 21, 300), (4, 2, 1), (8, 8, 8), ((4, 8, 2),), (0, 0, 0), padding_idx=3),
    Case("one codebook for all subspaces", (5, 20), (4, 4), (6, 5), ((1, 6, 2),), (0, 0)),
    Case("a codebook a tier", (5, 20), (4, 2), (9, 3), ((4, 9, 1), (2, 3, 2)), (0, 1), padding_idx=0),
    Case("float16", (7, 40), (4, 4), (16, 4), ((4, 16, 2),), (0, 0), centroid_dtype="float16"),
    Case("int8", (7, 40), (4, 2), (16, 4), ((4, 16, 2),), (0, 0), centroid_dtype="int8", padding_idx=46),
    Case("an empty tier", (3, 0, 10), (2, 2, 2), (3, 4, 5), ((2, 5, 3),), (0, 0, 0)),
    Case("wide codes", (600, 50), (3, 3), (1000, 65_536), ((3, 65_536, 1),), (0, 0)),
    Case("one bit", (20,), (5,), (2,), ((5, 2, 1),), (0,), shuffled=False),
    Case("no rows", (0,), (2,), (4,), ((2, 4, 2),), (0,)),
]


@dataclass(frozen=True)
class Built:
    """A table and what it was made from."""

    table: CompactTable
    tiers: Tiers
    codes: list[Tensor]
    codebooks: list[Tensor]
    dense: Tensor


def build(case: Case, seed: int = 0) -> Built:
    """The table of a case, with random codes and centroids, and its rows (N, d) by plain loops."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(case.sizes)
    if case.shuffled:
        tier_of = torch.repeat_interleave(torch.arange(len(case.sizes)), torch.tensor(case.sizes))
        tiers = Tiers.from_assignment(tier_of[torch.randperm(n, generator=generator)], len(case.sizes))
    else:
        tiers = Tiers.from_sizes(case.sizes)
    codes = [
        torch.randint(0, k, (size, d), generator=generator)
        for size, d, k in zip(case.sizes, case.num_subspaces, case.num_centroids, strict=True)
    ]
    codebooks = [torch.randn(shape, generator=generator) for shape in case.codebooks]
    table = CompactTable.from_codes(
        tiers, codes, codebooks, case.codebook_of, case.num_centroids, case.padding_idx, case.centroid_dtype
    )
    return Built(table, tiers, codes, codebooks, _dense(case, tiers, codes, codebooks))


def _dense(case: Case, tiers: Tiers, codes: list[Tensor], codebooks: list[Tensor]) -> Tensor:
    books = [_as_stored(book, case.centroid_dtype) for book in codebooks]
    d = max(case.codebooks[0][0], case.num_subspaces[case.codebook_of.index(0)]) * case.codebooks[0][2]
    dense = torch.zeros(tiers.num_embeddings, d)
    for g, subspaces in enumerate(case.num_subspaces):
        book = books[case.codebook_of[g]]
        each = max(1, book.shape[0] // subspaces)
        for rank, row in enumerate(tiers.members(g).tolist()):
            if row == case.padding_idx:
                continue
            parts = []
            for j in range(subspaces):
                k = codes[g][rank, j]
                parts += [book[0 if book.shape[0] == 1 else j * each + i, k] for i in range(each)]
            dense[row] = torch.cat(parts)
    return dense


def _as_stored(book: Tensor, centroid_dtype: str) -> Tensor:
    if centroid_dtype == "float32":
        return book
    if centroid_dtype == "float16":
        return book.half().float()
    scale = book.abs().amax(dim=(1, 2), keepdim=True) / 127
    return (book / scale).round() * scale
