"""Models that were not written for compress_, and a batch for them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import mgqe

N, DIM = 2000, 16
COUNTS = torch.arange(N) * 7 % 1999 + 1  # in no order


class Ranker(nn.Module):
    """Users, items, bags of tags, and a table too small to gain."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(N, DIM)
        self.encoder = nn.ModuleDict({"item": nn.Embedding(N, DIM, padding_idx=0)})
        self.tags = nn.EmbeddingBag(N, DIM, mode="sum")
        self.weekday = nn.Embedding(7, DIM)
        self.head = nn.Linear(DIM, 1)

    def forward(self, users, items, tags):
        query = self.user(users) + self.weekday(users % 7)
        return self.head(query * self.encoder["item"](items) + self.tags(tags)).squeeze(-1)


class LanguageModel(nn.Module):
    """Output weights tied to the embedding, in all three ways that people write."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(N, DIM)
        self.lm_head = nn.Linear(DIM, N, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids):
        hidden = self.embed(ids).tanh()
        return self.lm_head(hidden), F.linear(hidden, self.embed.weight)


def batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return (*torch.randint(N, (2, 32), generator=generator), torch.randint(N, (32, 4), generator=generator))


def ranker(**options) -> Ranker:
    torch.manual_seed(0)
    model = Ranker()
    mgqe.compress_(model, **options)
    return model
