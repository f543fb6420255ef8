"""A table that grows, as plain lists: each id's tier and codes. Every number in it is exact, so ties are ties."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.codec.tiers import Tiers
from mgqe.codec.transform import Transform
from mgqe.table.appended import append
from mgqe.table.compact import CompactTable
from mgqe.table.io import load, save


class Model:
    """Ids, their tiers and codes; centroids are multiples of 1/4, so that squared distances are exact.

    With ``widths`` and ``code_bits`` the table is mixed; ``turned`` gives it a mean, and a matrix that adds each
    coordinate to two neighbouring dimensions.
    """

    def __init__(
        self,
        sizes,
        num_subspaces=(),
        num_centroids=(),
        codebooks=(),
        codebook_of=(),
        *,
        shuffled,
        padding_idx=None,
        seed=0,
        widths=(),
        code_bits=(),
        turned=False,
    ):
        made = torch.Generator().manual_seed(seed)
        self.widths, self.code_bits = widths, code_bits
        if widths:
            num_subspaces = (len(widths),) * len(sizes)
            books = range(max(codebook_of) + 1)
            readers = [[bits for bits, c in zip(code_bits, codebook_of, strict=True) if c == n] for n in books]
            self.counts = [[1 << max(bits) for bits in zip(*each, strict=True)] for each in readers]
            codebooks = [(sum(w * k for w, k in zip(widths, each, strict=True)),) for each in self.counts]
        self.num_subspaces, self.num_centroids = num_subspaces, num_centroids
        self.codebook_of, self.padding_idx = codebook_of, padding_idx
        self.books = [torch.randint(-12, 13, shape, generator=made) / 4 for shape in codebooks]
        tier_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        if shuffled:
            tier_of = tier_of[torch.randperm(sum(sizes), generator=made)]
        self.tiers = tier_of.tolist()
        self.codes = [[int(torch.randint(len(p), (), generator=made)) for p in self.pieces(g)] for g in self.tiers]
        self.mean = self.matrix = None
        self.embedding_dim = sum(piece.shape[1] for piece in self.pieces(0))
        if turned:
            n = self.embedding_dim
            self.embedding_dim = n + 1
            self.mean = torch.randint(-8, 9, (n + 1,), generator=made) / 4
            self.matrix = torch.eye(n, n + 1) + torch.eye(n, n + 1).roll(1, dims=1)

    def table(self) -> CompactTable:
        """A table of these codes, made whole."""
        m = len(self.num_subspaces)
        tiers = Tiers.from_assignment(torch.tensor(self.tiers, dtype=torch.int64), m)
        codes = [
            torch.tensor([c for c, tier in zip(self.codes, self.tiers, strict=True) if tier == g]).reshape(-1, d).long()
            for g, d in enumerate(self.num_subspaces)
        ]
        if self.widths:
            parts = (tiers, codes, self.books, self.codebook_of, self.widths, self.code_bits, self.padding_idx)
            return CompactTable.from_mixed_codes(*parts, mean=self.mean, matrix=self.matrix)
        return CompactTable.from_codes(tiers, codes, self.books, self.codebook_of, self.num_centroids, self.padding_idx)

    def pieces(self, tier: int) -> list[Tensor]:
        """What a tier chooses among in each subspace: (K, s) each."""
        book, subspaces = self.books[self.codebook_of[tier]], self.num_subspaces[tier]
        if self.widths:
            counts = self.counts[self.codebook_of[tier]]
            parts = book.split([w * k for w, k in zip(self.widths, counts, strict=True)])
            of_tier = zip(parts, self.widths, self.code_bits[tier], strict=True)
            return [part.reshape(-1, w)[: 1 << bits] for part, w, bits in of_tier]
        k = self.num_centroids[tier]
        if book.shape[0] == 1:
            return [book[0, :k]] * subspaces
        each = book.shape[0] // subspaces
        return [torch.cat(list(book[j * each : (j + 1) * each, :k]), dim=1) for j in range(subspaces)]

    def encode(self, vectors: Tensor, tier: int) -> list[list[int]]:
        """Nearest centroids by a plain loop over subspaces; the first of equals."""
        pieces = self.pieces(tier)
        if self.matrix is not None:
            vectors = Transform.of(self.mean, self.matrix, "float16").encode(vectors)
        parts = vectors.double().split([piece.shape[1] for piece in pieces], dim=1)
        distances = [
            (part[:, None] - piece.double()[None]).square().sum(2).tolist()
            for part, piece in zip(parts, pieces, strict=True)
        ]
        return [[of_row.index(min(of_row)) for of_row in row] for row in zip(*distances, strict=True)]

    def append(self, vectors: Tensor, tier: int) -> list[int]:
        first = len(self.tiers)
        self.codes += self.encode(vectors, tier)
        self.tiers += [tier] * len(vectors)
        return list(range(first, len(self.tiers)))

    def update(self, ids: list[int], vectors: Tensor) -> None:
        for i, vector in zip(ids, vectors, strict=True):
            (self.codes[i],) = self.encode(vector[None], self.tiers[i])

    def rows(self) -> Tensor:
        """All rows, (N, d)."""
        out = torch.zeros(len(self.tiers), self.embedding_dim)
        for i, (tier, codes) in enumerate(zip(self.tiers, self.codes, strict=True)):
            if i != self.padding_idx:
                row = torch.cat([piece[c] for piece, c in zip(self.pieces(tier), codes, strict=True)])
                out[i] = row if self.matrix is None else self.mean + row @ self.matrix
        return out


LAYOUTS = {
    "two tiers, frequency order": {
        "sizes": (5, 9),
        "num_subspaces": (4, 4),
        "num_centroids": (16, 5),
        "codebooks": [(4, 16, 2)],
        "codebook_of": (0, 0),
        "shuffled": False,
        "padding_idx": 3,
    },
    "three tiers, any order": {
        "sizes": (5, 9, 270),
        "num_subspaces": (4, 2, 1),
        "num_centroids": (16, 8, 8),
        "codebooks": [(4, 16, 2)],
        "codebook_of": (0, 0, 0),
        "shuffled": True,
        "padding_idx": 7,
    },
    "one tier": {
        "sizes": (6,),
        "num_subspaces": (3,),
        "num_centroids": (7,),
        "codebooks": [(3, 8, 1)],
        "codebook_of": (0,),
        "shuffled": False,
    },
    "one codebook for all subspaces": {
        "sizes": (4, 4),
        "num_subspaces": (4, 4),
        "num_centroids": (6, 3),
        "codebooks": [(1, 6, 2)],
        "codebook_of": (0, 0),
        "shuffled": True,
    },
    "a codebook a tier, one tier empty": {
        "sizes": (6, 0),
        "num_subspaces": (4, 2),
        "num_centroids": (300, 3),
        "codebooks": [(4, 300, 1), (2, 3, 2)],
        "codebook_of": (0, 1),
        "shuffled": False,
    },
    "mixed": {
        "sizes": (5, 9, 40),
        "widths": (1, 2, 4),
        "code_bits": ((5, 3, 2), (4, 0, 2), (1, 0, 0)),
        "codebook_of": (0, 0, 0),
        "shuffled": True,
        "padding_idx": 7,
    },
    "mixed, turned": {
        "sizes": (5, 9),
        "widths": (1, 3),
        "code_bits": ((4, 6), (2, 0)),
        "codebook_of": (0, 1),
        "shuffled": False,
        "turned": True,
    },
    "no ids": {
        "sizes": (0, 0),
        "num_subspaces": (2, 2),
        "num_centroids": (4, 4),
        "codebooks": [(2, 4, 2)],
        "codebook_of": (0, 0),
        "shuffled": False,
    },
}


def quarters(n: int, d: int, seed: int) -> Tensor:
    """Vectors whose numbers are multiples of 1/4: (n, d)."""
    return torch.randint(-14, 15, (n, d), generator=torch.Generator().manual_seed(seed)) / 4


# ---- a saved table and its model ------------------------------------------------------------------------------


def saved(layout, path, seed=0) -> Model:
    """A table saved at ``path``."""
    model = Model(**layout, seed=seed)
    save(model.table(), path)
    return model


def grow(model, path, steps=((3, 0), (2, 1), (1, 1)), seed=5) -> None:
    """Append to the file and the model alike: (rows, tier) each."""
    for number, (n, tier) in enumerate(steps):
        tier %= len(model.num_subspaces)
        vectors = quarters(n, model.embedding_dim, seed + number)
        assert append(path, vectors, tier).tolist() == model.append(vectors, tier)


def check_file(path, model) -> None:
    """The file holds what the model does."""
    for mmap in (True, False):
        table = load(path, mmap=mmap)
        assert torch.equal(table.lookup(torch.arange(table.num_embeddings)), model.rows())
        assert table.equal(model.table())
