"""Neural matrix factorisation: a product of vectors and a small network, side by side."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgqe.recsys.models.distinct import distinct_items
from mgqe.recsys.models.settings import ModelSettings

CATALOGUE_CELLS = 2**22  # values of the first layer in memory when a catalogue is scored: 16 MiB of float32
TABLES = {"gmf_user": "user", "gmf_item": "item", "mlp_user": "user", "mlp_item": "item"}


class NeuMF(nn.Module):
    """Neural matrix factorisation (He et al., "Neural Collaborative Filtering", eq. 12, without the sigmoid):

        z_1 = relu(W_1 [p_u; q_i] + b_1),  z_k = relu(W_k z_(k-1) + b_k)
        score(u, i) = <w, g_u * g_i> + <v, z_L> + b

    g: the vectors of the product; p, q: those of the network. Each branch has its own tables, all of d dimensions.
    Layer k has d / 2^(k-1) units, so that three layers go 2d -> d -> d/2 -> d/4, the authors' shape; the "factors" in
    their figures are the last width. There are two differences. Their product has as many dimensions as the last layer,
    here it has d. They pre-train the two branches, here both are trained together from the start.

    The first layer is computed as W_1 [p; q] = W_p p + W_q q: W_p p once for all items of a user, W_q q once for each
    distinct item.

    gmf_user, gmf_item, mlp_user, mlp_item: modules that map int64 ids (...) to (..., d). num_layers: L, 1 or more.
    dropout: share of the dimensions of w * g_u and of z_1 that are set to zero in training.
    """

    def __init__(
        self,
        gmf_user: nn.Module,
        gmf_item: nn.Module,
        mlp_user: nn.Module,
        mlp_item: nn.Module,
        embedding_dim: int,
        num_layers: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [embedding_dim >> k for k in range(num_layers)]
        if num_layers < 1 or widths[-1] < 1:
            raise ValueError(
                f"expected a network of 1 layer or more, each half as wide as the one before and at least 1 wide, got "
                f"{num_layers} layers for {embedding_dim} dimensions: set fewer layers (num_layers) or a larger dim"
            )
        self.gmf_user, self.gmf_item = gmf_user, gmf_item
        self.mlp_user, self.mlp_item = mlp_user, mlp_item
        self.weight = nn.Parameter(torch.ones(embedding_dim))
        self.user_layer = nn.Linear(embedding_dim, widths[0])
        self.item_layer = nn.Linear(embedding_dim, widths[0], bias=False)
        self.layers = nn.ModuleList(nn.Linear(wide, narrow) for wide, narrow in itertools.pairwise(widths))
        self.last = nn.Linear(widths[-1], 1)
        self.dropout = nn.Dropout(dropout)
        # The two halves of one layer are initialised for its 2d inputs.
        for layer in (self.user_layer, self.item_layer):
            nn.init.uniform_(layer.weight, -((2 * embedding_dim) ** -0.5), (2 * embedding_dim) ** -0.5)

    def query(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """w * g_u and W_p p_u + b_1: ids (n,) -> (n, d) each."""
        return self.dropout(self.gmf_user(users) * self.weight), self.user_layer(self.mlp_user(users))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of `items` (n, c) for `users` (n,): (n, c)."""
        product, hidden = self.query(users)
        num_items: Any = self.gmf_item.num_embeddings
        distinct, inverse = distinct_items(items, num_items)
        linear = (F.embedding(inverse, self.gmf_item(distinct)) * product[:, None]).sum(dim=2)
        first = F.embedding(inverse, self.item_layer(self.mlp_item(distinct))).add_(hidden[:, None])
        return linear + self._network(first)

    def catalogue(self, num_items: int) -> Tensor:
        """The item vectors [g_i; q_i] for `score_catalogue`, (num_items, 2d). Equal rows have equal scores."""
        items = torch.arange(num_items)
        return torch.cat([self.gmf_item(items), self.mlp_item(items)], dim=1)

    def score_catalogue(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of every item for `users` (n,): (n, num_items); `items` (num_items, 2d) come from `catalogue`."""
        product, hidden = self.query(users)
        gmf, mlp = items.tensor_split([product.shape[1]], dim=1)
        mlp = self.item_layer(mlp)
        scores: Tensor = product @ gmf.T
        chunk = max(1, CATALOGUE_CELLS // max(1, mlp.numel()))
        for start in range(0, users.numel(), chunk):
            rows = slice(start, start + chunk)
            scores[rows] += self._network(mlp + hidden[rows, None])
        return scores

    def _network(self, first: Tensor) -> Tensor:
        """From the first layer before its relu, (..., d), to <v, z_L> + b, (...)."""
        z = self.dropout(first.relu_())
        for layer in self.layers:
            z = layer(z).relu_()
        scores: Tensor = self.last(z).squeeze(-1)
        return scores


def build(config: ModelSettings, tables: Mapping[str, nn.Module]) -> NeuMF:
    """From the tables "gmf_user", "gmf_item", "mlp_user" and "mlp_item"."""
    return NeuMF(
        tables["gmf_user"], tables["gmf_item"], tables["mlp_user"], tables["mlp_item"],
        config.embedding_dim, config.mlp_layers, config.dropout,
    )  # fmt: skip
