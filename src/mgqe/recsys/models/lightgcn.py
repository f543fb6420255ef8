"""LightGCN: matrix factorisation whose rows train through the graph of the training interactions."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mgqe.recsys.models.mf import MF


def normalised_adjacency(users: Tensor, items: Tensor, num_users: int, num_items: int) -> Tensor:
    """D^(-1/2) A D^(-1/2) of the graph in which each interaction joins a user and an item, D being the degrees.

    users, items: int64 (n,), the interactions, each once. Returns sparse CSR, float32, (num_users + num_items) squared,
    users before items. It is symmetric; the row of a user or an item without interactions is empty.
    """
    degrees_of_users = torch.bincount(users, minlength=num_users)
    degrees_of_items = torch.bincount(items, minlength=num_items)
    values = (degrees_of_users[users] * degrees_of_items[items]).float().rsqrt()
    rows, columns = torch.cat([users, items + num_users]), torch.cat([items + num_users, users])
    num_nodes = num_users + num_items
    order = (rows * num_nodes + columns).argsort()
    starts = F.pad(torch.cat([degrees_of_users, degrees_of_items]).cumsum(0), (1, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts, columns[order], values.repeat(2)[order], (num_nodes, num_nodes), check_invariants=True
        )


class Propagate(torch.autograd.Function):
    """(vectors (n, d), adjacency (n, n), L) -> the mean of adjacency^k @ vectors over k = 0 to L.

    The adjacency is symmetric, so that the gradient is propagated in the same way.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, adjacency: Tensor, num_layers: int) -> Tensor:
        ctx.adjacency, ctx.num_layers = adjacency, num_layers
        return mean_of_layers(vectors, adjacency, num_layers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return mean_of_layers(gradient, ctx.adjacency, ctx.num_layers), None, None


def mean_of_layers(vectors: Tensor, adjacency: Tensor, num_layers: int) -> Tensor:
    """The mean of adjacency^k @ vectors over k = 0 to num_layers.

    Products with the adjacency are weighted sums in bags, which torch makes in half the time of its sparse products.
    """
    neighbours, starts = adjacency.col_indices(), adjacency.crow_indices()
    total = vectors
    for _ in range(num_layers):  # Horner's rule: one product per layer
        product = F.embedding_bag(
            neighbours, total, starts, mode="sum", per_sample_weights=adjacency.values(), include_last_offset=True
        )
        total = product.add_(vectors)
    return total / (num_layers + 1)


class Rows(nn.Module):
    """Vectors (n, d) that are looked up as an embedding's are, with a gradient to whatever they were made of."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = vectors

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) -> (..., d)."""
        return F.embedding(ids, self.vectors)


class LightGCN(nn.Module):
    """LightGCN (He et al., SIGIR'20): users and items are nodes of a graph, joined by the training interactions, and

        score(u, i) = <p_u, q_i>,  (p, q) = mean over k = 0 to L of (D^(-1/2) A D^(-1/2))^k E

    with the trained rows E of users and items. Once training ends, p and q are tables like any others, and the graph is
    not needed: what is compressed and served is plain matrix factorisation on them. Every step propagates all rows, so
    that it takes as long for a small batch as for a large one.

    tables: matrix factorisation with full tables, whose rows are E. adjacency: as of `normalised_adjacency`.
    num_layers: L.
    """

    def __init__(self, tables: MF, adjacency: Tensor, num_layers: int = 3) -> None:
        super().__init__()
        self.user: Any = tables.user
        self.item: Any = tables.item
        self.dropout = tables.dropout
        self.adjacency: Tensor
        self.register_buffer("adjacency", adjacency, persistent=False)  # moves with the rows; the data have it
        self.num_layers = num_layers

    def vectors(self) -> tuple[Tensor, Tensor]:
        """p (num_users, d) and q (num_items, d), with a gradient to the rows."""
        rows = torch.cat([self.user.weight, self.item.weight])
        propagated: Tensor = Propagate.apply(rows, self.adjacency, self.num_layers)  # type: ignore[no-untyped-call]
        users, items = propagated.tensor_split([len(self.user.weight)])
        return users, items

    def propagated(self) -> MF:
        """Matrix factorisation on the propagated rows as they are now; it trains this model's rows."""
        users, items = self.vectors()
        return MF(Rows(users), Rows(items), self.dropout.p).train(self.training)

    @torch.no_grad()
    def served(self) -> MF:
        """Matrix factorisation on this model's own tables, whose rows become the propagated ones: training is over."""
        users, items = self.vectors()
        self.user.weight.copy_(users)
        self.item.weight.copy_(items)
        return MF(self.user, self.item, self.dropout.p).train(self.training)
