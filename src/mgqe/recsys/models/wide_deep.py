"""Wide & Deep: a linear part and a network over the vectors of all fields."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgqe.recsys.models.distinct import distinct_items
from mgqe.recsys.models.settings import HIDDEN, ModelSettings

PREFIX = "fields."  # of the path of each table


def item_field(names: Iterable[str]) -> str:
    """The field whose ids are scored for a context: "item"; in logs of clicks, which have none, the last by name."""
    names = set(names)
    return "item" if "item" in names else max(names)


def field_order(names: Iterable[str]) -> tuple[str, ...]:
    """The fields without the item field, in the order of the models' columns: any user, then the others by name."""
    names = set(names)
    return (*({"user"} & names), *sorted(names - {"user", item_field(names)}))


class WideDeep(nn.Module):
    """Wide & Deep (Cheng et al., "Wide & Deep Learning for Recommender Systems", 2016), without the sigmoid:

        x = [e_1; ...; e_f],  z_1 = relu(W_1 x + b_1),  z_k = relu(W_k z_(k-1) + b_k)
        logit = <w, x> + b + <v, z_L>

    e_k: the vector of field k's id; fields may have different dimensions. The wide part has no separate weight per id,
    because that would be a table that codes do not compress (1/d of the full tables' bytes). The weight of an id is
    <w_k, e_k>, a linear function of its vector. Crosses of fields, which the paper picks by hand, are left out.

    W_1 x is the sum of two terms: that of the context is computed once per positive, that of the item once per
    distinct item.

    tables: field -> module that maps int64 ids (...) to (..., d_field); ids of `item_field` are scored. hidden: units
    of the layers. dropout: share of the units of each layer that are set to zero in training.
    """

    def __init__(self, tables: Mapping[str, nn.Module], hidden: Sequence[int] = HIDDEN, dropout: float = 0.0) -> None:
        super().__init__()
        self.context, self.item = field_order(tables), item_field(tables)
        self.fields = nn.ModuleDict({name: tables[name] for name in (*self.context, self.item)})
        self.dims = {name: _dim(table) for name, table in self.fields.items()}
        item = self.dims[self.item]
        others = sum(self.dims.values()) - item
        self.wide_context, self.wide_item = nn.Linear(others, 1), nn.Linear(item, 1, bias=False)
        self.context_layer, self.item_layer = nn.Linear(others, hidden[0]), nn.Linear(item, hidden[0], bias=False)
        self.layers = nn.ModuleList(nn.Linear(wide, narrow) for wide, narrow in itertools.pairwise(hidden))
        self.last = nn.Linear(hidden[-1], 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        # The two halves of one layer are initialised for the inputs of both.
        bound = (others + item) ** -0.5
        for layer in (self.wide_context, self.wide_item, self.context_layer, self.item_layer):
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, context: Tensor, items: Tensor) -> Tensor:
        """Logits (b, c) of `items` (b, c) for `context` (b, f - 1), ids of the fields in `field_order`, int64."""
        return self.wide_and_deep(*self.look_up(context, items))

    def look_up(self, context: Tensor, items: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """The vectors (b, d_field) of each field of the context, those (v, d_item) of the v distinct items, and the
        positions of `items` among these, int64 (b, c)."""
        vectors = [self.fields[name](column) for name, column in zip(self.context, context.unbind(1), strict=True)]
        table: Any = self.fields[self.item]
        distinct, inverse = distinct_items(items, table.num_embeddings)
        return vectors, table(distinct), inverse

    def wide_and_deep(self, vectors: list[Tensor], item: Tensor, inverse: Tensor) -> Tensor:
        """<w, x> + b + <v, z_L> of the results of `look_up`: (b, c)."""
        joined = torch.cat(vectors, dim=1)
        wide: Tensor = self.wide_context(joined) + F.embedding(inverse, self.wide_item(item)).squeeze(2)
        return wide + self.deep(joined, item, inverse)

    def deep(self, joined: Tensor, item: Tensor, inverse: Tensor) -> Tensor:
        """<v, z_L> of the context's vectors, one after the other (b, sum of d_field), and of the items': (b, c)."""
        z = F.embedding(inverse, self.item_layer(item)).add_(self.context_layer(joined)[:, None])
        z = self.dropout(z.relu_())
        for layer in self.layers:
            z = self.dropout(layer(z).relu_())
        logits: Tensor = self.last(z).squeeze(2)
        return logits


def _dim(table: Any) -> int:
    return int(table.embedding_dim)


def fields_of(tables: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Path `fields.NAME` -> table, as field -> table."""
    return {path.removeprefix(PREFIX): table for path, table in tables.items()}


def build(config: ModelSettings, tables: Mapping[str, nn.Module]) -> WideDeep:
    """From the tables "fields.NAME"."""
    return WideDeep(fields_of(tables), config.hidden_units, config.dropout)
