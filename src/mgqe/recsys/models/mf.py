"""Matrix factorisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mgqe.recsys.models.settings import ModelSettings

TABLES = {"user": "user", "item": "item"}  # path -> field


class MF(nn.Module):
    """Matrix factorisation (Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", section 4.3.1):

        score(u, i) = <p_u, q_i>

    user, item: modules that map int64 ids (...) to (..., d).
    dropout: share of the dimensions of a query that are set to zero in training.
    """

    scale_free: ClassVar[tuple[str, ...]] = ("user",)  # a user's items keep their order however long p_u is

    def __init__(self, user: nn.Module, item: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.user, self.item = user, item
        self.dropout = nn.Dropout(dropout)

    def query(self, users: Tensor) -> Tensor:
        """What items are multiplied with, p_u: ids (n,) -> (n, d)."""
        query: Tensor = self.dropout(self.user(users))
        return query

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of `items` (n, c) for `users` (n,): (n, c). A user is looked up once for all items of a row."""
        # torch's batched matrix product is 1.6 times slower for one row per batch entry. It may also give equal items
        # unequal scores, which would break ties at random.
        scores: Tensor = (self.item(items) * self.query(users).unsqueeze(1)).sum(dim=-1)
        return scores

    def catalogue(self, num_items: int) -> Tensor:
        """The item vectors for `score_catalogue`, (num_items, d). Equal rows have equal scores."""
        vectors: Tensor = self.item(torch.arange(num_items))
        return vectors

    def score_catalogue(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of every item for `users` (n,): (n, num_items); `items` (num_items, d) come from `catalogue`."""
        return self.query(users) @ items.T


def build(config: ModelSettings, tables: Mapping[str, nn.Module]) -> MF:
    """From the tables "user" and "item"."""
    return MF(tables["user"], tables["item"], config.dropout)
