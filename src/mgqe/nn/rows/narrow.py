"""NarrowStore: rows of fewer dimensions than vectors (:class:`mgqe.nn.rows.NarrowRows`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgqe.nn.rows.store import RowStore


class NarrowStore(RowStore, nn.Module):
    """Rows of a parameter (N, D * key_dim), and the maps that make vectors of them while there are no codes.

    Attributes:
        maps: parameter (D * key_dim, s), those of a subspace together.
    """

    def __init__(self, num_subspaces: int, key_dim: int, width: int, like: Tensor) -> None:
        super().__init__()
        self.key_dim = key_dim
        self.maps = nn.Parameter(like.new_empty(num_subspaces * key_dim, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Maps that keep the variance of the rows."""
        with torch.no_grad():
            self.maps.normal_(std=self.key_dim**-0.5)

    def read(self, weight: Tensor, ids: Tensor) -> Tensor:
        return F.embedding(ids, weight.detach()).float()

    def train_rows(self, weight: Tensor, ids: Tensor, sparse: bool, left_out: int | None = None) -> Tensor:
        return F.embedding(ids, weight, sparse=sparse)

    def vectors(self, rows: Tensor) -> Tensor:
        maps = self._maps()
        return torch.einsum("njk,jks->njs", rows.view(len(rows), *maps.shape[:2]), maps.to(rows.dtype)).flatten(1)

    def _maps(self) -> Tensor:
        """(D, key_dim, s)."""
        return self.maps.view(-1, self.key_dim, self.maps.shape[1])

    def values_of(self, keys: Tensor) -> Tensor:
        """Keys (D, K, key_dim) or (1, K, key_dim) -> where the maps put them, (..., s)."""
        maps = self._maps().detach().float()
        if keys.shape[0] != maps.shape[0]:
            maps = maps.mean(0, keepdim=True)
        return torch.einsum("jkc,jcs->jks", keys.float(), maps)
