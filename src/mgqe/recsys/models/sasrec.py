"""SASRec: what a user takes next, by self-attention over what the user took before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgqe.recsys.models.settings import ModelSettings

WORTH_A_GROUP = 512  # padded positions that cost as much time as one more call of attention


class SASRec(nn.Module):
    """Self-attentive sequential recommendation (Kang and McAuley 2018, sections III.A to III.E):

        x_t = sqrt(d) e_t + p_t                                     item and learned position
        y = LN(x);  z = y + Attention(y W_Q, x W_K, x W_V)          causal: t sees 1..t
        u = LN(z);  x' = u + W_2 relu(W_1 u + b_1) + b_2            num_blocks times
        h = LN(x);  score(t, i) = <h_t, e_i>

    with dropout on x, on the result of attention and inside the feed-forward layers, and residuals from the
    normalised inputs as in the authors' program. Inputs and scores use the same item table.

    Histories are packed: all items of all histories one after the other, and the length of each history. There is no
    padding id and no padding row. Positions count from the end, so that the last item of every history has position
    max_length - 1, as with the padding on the left of the original.

    item: module that maps int64 ids (...) to (..., d). Everything but attention works on the packed (n, d).
    """

    def __init__(
        self,
        item: nn.Module,
        embedding_dim: int,
        max_length: int = 50,
        num_blocks: int = 2,
        num_heads: int = 1,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if embedding_dim % num_heads:
            raise ValueError(f"num_heads must divide the embedding dimension {embedding_dim}, got {num_heads}")
        self.item = item
        self.max_length = max_length
        self.scale = math.sqrt(embedding_dim)
        self.position = nn.Parameter(torch.empty(max_length, embedding_dim).normal_(std=0.1))
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(AttentionBlock(embedding_dim, num_heads, dropout) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(embedding_dim)

    def encode(self, vectors: Tensor, lengths: Tensor | PackedHistories) -> Tensor:
        """h at every position: item vectors (n, d) of packed histories, int64 lengths (b,) summing to n -> (n, d).

        Lengths are 1 to max_length; or their layout.
        """
        layout = lengths if isinstance(lengths, PackedHistories) else PackedHistories.of(lengths)
        positions = self.max_length - layout.remaining
        x: Tensor = self.dropout(vectors * self.scale + F.embedding(positions, self.position))
        for block in self.blocks:
            x = block(x, layout)
        hidden: Tensor = self.norm(x)
        return hidden

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """h after each history's last item: packed ids (n,), lengths (b,) -> (b, d)."""
        return self.encode(self.item(items), lengths)[lengths.cumsum(0) - 1]


class AttentionBlock(nn.Module):
    """Attention, then two feed-forward layers."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.norm = nn.LayerNorm(dim)
        self.first = nn.Linear(dim, dim)
        self.second = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, layout: PackedHistories) -> Tensor:
        """Packed (n, d) -> (n, d)."""
        y = self.attention_norm(x)
        mixed = torch.cat([self.query(y), self.key_value(x)], dim=1)
        z = y + self.dropout(layout.attend(mixed, self.num_heads))
        u = self.norm(z)
        inner = self.dropout(F.relu(self.first(u)))
        out: Tensor = u + self.dropout(self.second(inner))
        return out


class Dropout(nn.Module):
    """Dropout with probability `p`, rounded to 1/256, with eight draws per random word.

    torch's own dropout draws one word per value and took 22% of the training time on one core; this one is 2.4 times
    faster.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.threshold = min(round(256 * p), 255)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.threshold == 0:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        mask = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.threshold
        return x * mask.to(x.dtype).mul_(256 / (256 - self.threshold))


@dataclass(frozen=True)
class PackedHistories:
    """The layout of packed histories, and causal attention within each.

    Attention is computed for groups of histories of similar length, each padded at its end. Causal attention never
    reads the padding, so that no mask is needed, and the groups keep the padding of short histories small.

    remaining: int64 (n,), the number of items from each position to the end of its history; 1 at the last item.
    groups: of each, the index (rows, longest) of its items, padding included, and which places (m,) of that are items.
    packed_order: int64 (n,), the place of each item among those of all groups.
    """

    remaining: Tensor
    groups: tuple[tuple[Tensor, Tensor], ...]
    packed_order: Tensor

    @classmethod
    def of(cls, lengths: Tensor) -> PackedHistories:
        """Of histories of so many items. How many groups there are follows from the lengths, which are read."""
        ends = lengths.cumsum(0)
        starts = ends - lengths
        total = int(ends[-1]) if ends.numel() else 0
        groups, order = [], []
        by_length = lengths.argsort(descending=True, stable=True)
        for first, end in _cut(lengths[by_length], 0, lengths.numel()):
            members = by_length[first:end]
            within = torch.arange(int(lengths[members[0]]))
            is_item = within < lengths[members, None]
            index = (starts[members, None] + within).clamp_(max=total - 1)
            groups.append((index, is_item.view(-1).nonzero().squeeze(1)))
            order.append(index[is_item])
        packed_order = torch.empty(total, dtype=torch.int64)
        if order:
            packed_order[torch.cat(order)] = torch.arange(total)
        return cls(ends.repeat_interleave(lengths) - torch.arange(total), tuple(groups), packed_order)

    def attend(self, mixed: Tensor, num_heads: int) -> Tensor:
        """softmax(q k^T / sqrt(d / heads)) v over the items so far: q, k, v side by side (n, 3d) -> (n, d)."""
        dim = mixed.shape[1] // 3
        outputs = []
        for index, items in self.groups:
            rows, longest = index.shape
            # (rows, longest, 3, heads, d / heads) -> three of (rows, heads, longest, d / heads)
            packed = F.embedding(index, mixed).view(rows, longest, 3, num_heads, dim // num_heads)
            q, k, v = packed.permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            outputs.append(out.transpose(1, 2).reshape(rows * longest, dim)[items])
        return F.embedding(self.packed_order, torch.cat(outputs))


def _cut(lengths: Tensor, first: int, end: int) -> list[tuple[int, int]]:
    """Cuts histories [first, end) of falling `lengths` into the groups for which attention is computed together."""
    if first == end:
        return []
    group = lengths[first:end]
    # Padded positions that a cut before each history saves: from it on, all can be padded to its length.
    saved = (group[0] - group) * torch.arange(end - first, 0, -1)
    best = int(saved.argmax())
    if int(saved[best]) <= WORTH_A_GROUP:
        return [(first, end)]
    return _cut(lengths, first, first + best) + _cut(lengths, first + best, end)


def build(config: ModelSettings, tables: Mapping[str, nn.Module]) -> SASRec:
    """From the table "item"."""
    return SASRec(
        tables["item"], config.embedding_dim, config.max_length, config.num_blocks, config.num_heads, config.dropout
    )
