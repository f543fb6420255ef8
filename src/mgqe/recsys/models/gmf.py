"""Generalised matrix factorisation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mgqe.recsys.models.mf import MF
from mgqe.recsys.models.settings import ModelSettings


class GMF(MF):
    """Generalised matrix factorisation (He et al., "Neural Collaborative Filtering", eq. 9, without the sigmoid):

        score(u, i) = <w, p_u * q_i> + b

    user, item, dropout: as for MF; the query is w * p_u, where w starts as ones, b as zero.
    """

    def __init__(self, user: nn.Module, item: nn.Module, embedding_dim: int, dropout: float = 0.0) -> None:
        super().__init__(user, item, dropout)
        self.weight = nn.Parameter(torch.ones(embedding_dim))
        self.bias = nn.Parameter(torch.zeros(()))

    @property
    def query_weight(self) -> Tensor:
        """w (d,): scores are dot products of the tables' rows with these weights, plus b."""
        return self.weight.detach()

    def query(self, users: Tensor) -> Tensor:
        """w * p_u: ids (n,) -> (n, d)."""
        query: Tensor = self.dropout(self.user(users) * self.weight)
        return query

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of `items` (n, c) for `users` (n,): (n, c)."""
        return super().forward(users, items) + self.bias

    def score_catalogue(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of every item for `users` (n,): (n, num_items); `items` (num_items, d) come from `catalogue`."""
        return super().score_catalogue(users, items) + self.bias


def build(config: ModelSettings, tables: Mapping[str, nn.Module]) -> GMF:
    """From the tables "user" and "item"."""
    return GMF(tables["user"], tables["item"], config.embedding_dim, config.dropout)
