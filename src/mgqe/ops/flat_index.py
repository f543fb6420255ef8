"""FlatIndex: where the numbers of a mixed table's flat codebook belong, and which of them codes name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mgqe.ops.layout.pieces import Piece


@dataclass(frozen=True, eq=False)
class FlatIndex:
    """Where the numbers of a flat codebook belong, as tensors, so that nothing loops over subspaces.

    Attributes:
        subspace, coordinate: int64 (E,), of each number of the codebook.
        of_coordinate: int64 (L,), the subspace of each coordinate.
        width, first: int64 (L,), of each coordinate: how wide its subspace is, and where its number in centroid 0 is.
    """

    subspace: Tensor
    coordinate: Tensor
    of_coordinate: Tensor
    width: Tensor
    first: Tensor

    def places(self, codes: Tensor) -> Tensor:
        """Codes (n, D) -> where the numbers that they name are in the codebook, int64 (n, L)."""
        return codes.long()[:, self.of_coordinate] * self.width + self.first


@lru_cache(maxsize=256)
def flat_index(layout: tuple[Piece, ...], device: torch.device) -> FlatIndex:
    """For the subspaces of a codebook."""
    numbers = [(j, piece.coordinate + t) for j, piece in enumerate(layout) for t in range(piece.width)]
    of_coordinate = [j for j, _ in numbers]
    width = [layout[j].width for j in of_coordinate]
    first = [layout[j].entry + k - layout[j].coordinate for j, k in numbers]
    subspace, coordinate = [], []
    for j, piece in enumerate(layout):
        subspace += [j] * (piece.num_centroids * piece.width)
        coordinate += list(range(piece.coordinate, piece.coordinate + piece.width)) * piece.num_centroids
    lists = (subspace, coordinate, of_coordinate, width, first)
    return FlatIndex(*(torch.tensor(each, dtype=torch.int64, device=device) for each in lists))
