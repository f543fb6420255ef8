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
    is_mixed = False


@dataclass(frozen=True)
class MixedCase:
    """A layout whose subspaces differ in width and in bits.

    Attributes:
        code_bits: of each tier, of each subspace.
        levels: all coordinates with codes of as many bits have the same centroids.
        dim: d where rows are mean + coordinates @ matrix; None where they are their coordinates.
    """

    name: str
    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    code_bits: tuple[tuple[int, ...], ...]
    codebook_of: tuple[int, ...]
    shuffled: bool = True
    centroid_dtype: str = "float32"
    padding_idx: int | None = None
    dim: int | None = None
    matrix_dtype: str = "float16"
    levels: bool = False
    is_mixed = True

    @property
    def is_whole(self) -> bool:
        """Whether coordinates are whole numbers, and the matrix has column scales."""
        return self.matrix_dtype == "int8_columns"

    @property
    def num_subspaces(self) -> tuple[int, ...]:
        return (len(self.widths),) * len(self.sizes)

    @property
    def centroids(self) -> list[list[int]]:
        """Of each codebook, the centroids of each subspace."""
        books = range(max(self.codebook_of) + 1)
        readers = [[bits for bits, c in zip(self.code_bits, self.codebook_of) if c == n] for n in books]
        return [[1 << max(bits) for bits in zip(*each)] for each in readers]

    @property
    def codebooks(self) -> tuple[tuple[int, ...], ...]:
        return tuple((sum(w * k for w, k in zip(self.widths, each)),) for each in self.centroids)


MIXED = [
    MixedCase("mixed", (7, 40), (1, 2, 5), ((5, 3, 4), (4, 0, 2)), (0, 0), padding_idx=2),
    MixedCase("mixed, frequency order, int8", (7, 40), (3, 1), ((0, 9), (7, 3)), (0, 0), False, "int8"),
    MixedCase("mixed, a codebook a tier", (5, 0, 20), (2, 4), ((6, 1), (3, 3), (0, 4)), (0, 1, 2), True, "float16", 0),
    MixedCase("mixed, 16 bits", (600, 50), (1, 2), ((16, 1), (3, 8)), (0, 0)),
    MixedCase("turned", (7, 40), (1, 2), ((5, 3), (4, 0)), (0, 0), padding_idx=46, dim=6),
    MixedCase(
        "turned, int8",
        (3, 9, 30),
        (1, 1, 2, 4),
        ((6, 4, 2, 2), (4, 4, 1, 0), (2, 0, 0, 0)),
        (0, 0, 0),
        True,
        "int8",
        5,
        8,
        "int8",
    ),
    MixedCase(
        "turned, a codebook a tier", (9, 21), (4, 1), ((3, 1), (2, 2)), (0, 1), False, "float16", None, 5, "float32"
    ),
    MixedCase("turned, a tier without bits", (6, 8), (2, 1), ((2, 4), (0, 0)), (0, 0), dim=4),
    MixedCase("whole", (7, 40), (1, 2, 5), ((5, 8, 4), (4, 0, 2)), (0, 0), True, "int8", 2, 9, "int8_columns"),
    MixedCase(
        "whole, a codebook a tier",
        (90, 0, 21),
        (1, 3, 12),
        ((8, 8, 8), (1, 1, 1), (0, 3, 7)),
        (0, 1, 2),
        False,
        "int8",
        None,
        33,
        "int8_columns",
    ),
    MixedCase(
        "whole, many subspaces",
        (100,),
        (2, *[1] * 39),
        (tuple(1 + j % 8 for j in range(40)),),
        (0,),
        True,
        "int8",
        99,
        64,
        "int8_columns",
    ),
    MixedCase(
        "whole, levels",
        (70, 9),
        (1,) * 70,
        (tuple(1 + j % 7 for j in range(70)), (0, 2, *[6] * 40, *[3] * 28)),
        (0, 1),
        True,
        "int8",
        None,
        72,
        "int8_columns",
        levels=True,
    ),
    MixedCase("whole, wide codes", (70, 9), (1, 2), ((9, 3), (2, 0)), (0, 0), True, "int8", None, 4, "int8_columns"),
]

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
    *MIXED,
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


EVEN = [case for case in CASES if not case.is_mixed]


def build(case: Case | MixedCase, seed: int = 0) -> Built:
    """The table of a case, with random codes and centroids, and its rows (N, d) by plain loops."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(case.sizes)
    if case.shuffled:
        tier_of = torch.repeat_interleave(torch.arange(len(case.sizes)), torch.tensor(case.sizes))
        tiers = Tiers.from_assignment(tier_of[torch.randperm(n, generator=generator)], len(case.sizes))
    else:
        tiers = Tiers.from_sizes(case.sizes)
    if isinstance(case, MixedCase):
        return _build_mixed(case, tiers, generator)
    codes = [
        torch.randint(0, k, (size, d), generator=generator)
        for size, d, k in zip(case.sizes, case.num_subspaces, case.num_centroids, strict=True)
    ]
    codebooks = [torch.randn(shape, generator=generator) for shape in case.codebooks]
    table = CompactTable.from_codes(
        tiers, codes, codebooks, case.codebook_of, case.num_centroids, case.padding_idx, case.centroid_dtype
    )
    return Built(table, tiers, codes, codebooks, _dense(case, tiers, codes, codebooks))


def _build_mixed(case: MixedCase, tiers: Tiers, generator: torch.Generator) -> Built:
    codes = [
        torch.stack([torch.randint(0, 1 << b, (size,), generator=generator) for b in bits], dim=1)
        for size, bits in zip(case.sizes, case.code_bits, strict=True)
    ]
    codebooks = [torch.randn(shape, generator=generator) for shape in case.codebooks]
    if case.is_whole:
        codebooks = [torch.randint(-127, 128, shape, generator=generator).float() for shape in case.codebooks]
    if case.levels:
        of_bits = {k: torch.randint(-127, 128, (k,), generator=generator).float() for k in (1 << b for b in range(8))}
        codebooks = [torch.cat([of_bits[k] for k in each]) for each in case.centroids]
    mean = matrix = None
    if case.dim is not None:
        mean = torch.randn(case.dim, generator=generator)
        matrix = torch.randn(sum(case.widths), case.dim, generator=generator) / (64 if case.is_whole else 1)
    table = CompactTable.from_mixed_codes(
        tiers,
        codes,
        codebooks,
        case.codebook_of,
        case.widths,
        case.code_bits,
        case.padding_idx,
        case.centroid_dtype,
        mean=mean,
        matrix=matrix,
        matrix_dtype=case.matrix_dtype,
    )
    return Built(table, tiers, codes, codebooks, _mixed_dense(case, tiers, codes, codebooks, mean, matrix))


def _mixed_dense(case, tiers, codes, codebooks, mean, matrix) -> Tensor:
    coordinates = torch.zeros(tiers.num_embeddings, sum(case.widths))
    for g, c in enumerate(case.codebook_of):
        lengths = [k * w for k, w in zip(case.centroids[c], case.widths, strict=True)]
        parts = [part.reshape(-1, w) for part, w in zip(codebooks[c].split(lengths), case.widths, strict=True)]
        books = parts if case.is_whole else [_as_stored(part[None], case.centroid_dtype)[0] for part in parts]
        for rank, row in enumerate(tiers.members(g).tolist()):
            coordinates[row] = torch.cat([book[k] for book, k in zip(books, codes[g][rank].tolist(), strict=True)])
    rows = coordinates
    if case.is_whole:
        scale = matrix.abs().amax(dim=0) / 127
        rows = mean + scale * (coordinates.double() @ (matrix / scale).round().double()).float()
    elif matrix is not None:
        stored = matrix.to({"float32": torch.float32, "float16": torch.float16}.get(case.matrix_dtype, torch.float32))
        if case.matrix_dtype == "int8":
            scale = matrix.abs().amax(dim=1, keepdim=True) / 127
            stored = (matrix / scale).round() * scale
        rows = mean.expand(len(coordinates), -1)
        for k in range(len(matrix)):  # rounded once, as far as random numbers can tell
            rows = (coordinates[:, k, None].double() * stored[k].double() + rows.double()).float()
    rows = rows.clone()
    if case.padding_idx is not None:
        rows[case.padding_idx] = 0
    return rows


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
