"""Generalised matrix factorisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mgqe.recsys.models.settings import ModelSettings

TABLES = {"user": "user", "item": "item"}  # path -> field


class GMF(nn.Module):
    """Generalised matrix factorisation (He et al., "Neural Collaborative Filtering", eq. 9, without the sigmoid):

        score(u, i) = <w, p_u * q_i> + b

    user, item: modules that map int64 ids (...) to (..., d); w starts as ones, b as zero.
    dropout: share of the dimensions of p_u * w that are set to zero in training.
    """

    scale_free: ClassVar[tuple[str, ...]] = ("user",)  # a user's items keep their order however long p_u is

    def __init__(self, user: nn.Module, item: nn.Module, embedding_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.user, self.item = user, item
        self.weight = nn.Parameter(torch.ones(embedding_dim))
        self.bias = nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(dropout)

    def query(self, users: Tensor) -> Tensor:
        """w * p_u: ids (n,) -> (n, d)."""
        query: Tensor = self.dropout(self.user(users) * self.weight)
        return query

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of `items` (n, c) for `users` (n,): (n, c). A user is looked up once for all items of a row."""
        # torch's batched matrix product is 1.6 times slower for one row per batch entry. It may also give equal items
        # unequal scores, which would break ties at random.
        scores: Tensor = (self.item(items) * self.query(users).unsqueeze(1)).sum(dim=-1) + self.bias
        return scores

    def catalogue(self, num_items: int) -> Tensor:
        """The item vectors for `score_catalogue`, (num_items, d). Equal rows have equal scores."""
        vectors: Tensor = self.item(torch.arange(num_items))
        return vectors

    def score_catalogue(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of every item for `users` (n,): (n, num_items); `items` (num_items, d) come from `catalogue`."""
        return self.query(users) @ items.T + self.bias


def build(config: ModelSettings, tables: Mapping[str, nn.Module]) -> GMF:
    """From the tables "user" and "item"."""
    return GMF(tables["user"], tables["item"], config.embedding_dim, config.dropout)
