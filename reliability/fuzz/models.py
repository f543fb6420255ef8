"""Two small models, as a user might write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Shop(nn.Module):
    """An embedding with padding, bags of tags, and other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(300, 8, padding_idx=0)
        self.tags = nn.EmbeddingBag(300, 8, mode="sum")
        self.head = nn.Linear(16, 1)

    def forward(self) -> Tensor:
        """Scores of all items, each with the tags of its bag."""
        ids = torch.arange(300)
        return self.head(torch.cat([self.item(ids), self.tags(ids[:, None])], dim=1))  # type: ignore[no-any-return]


class Words(nn.Module):
    """An embedding whose rows are also the weights of the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(300, 8)
        self.out = nn.Linear(8, 300, bias=False)
        self.out.weight = self.words.weight
        self.norm = nn.LayerNorm(8)

    def forward(self) -> Tensor:
        """The logits after every word."""
        return self.out(self.norm(self.words(torch.arange(300))))  # type: ignore[no-any-return]
