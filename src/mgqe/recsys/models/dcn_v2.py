"""DCN-V2: crosses of all features, and a network over the same vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgqe.recsys.models.settings import HIDDEN, ModelSettings
from mgqe.recsys.models.wide_deep import WideDeep, fields_of


class DCNV2(WideDeep):
    """DCN-V2 (Wang et al., "DCN V2: Improved Deep & Cross Network", 2021), its parallel structure, without the sigmoid:

        x_0 = [e_1; ...; e_f],  x_(l+1) = x_0 * (W_l x_l + b_l) + x_l
        logit = <w, x_L> + b + <v, z_L>

    `*` multiplies elements, and each W_l is a whole matrix. z_L and v are those of WideDeep, which this is without
    cross layers. (The paper's other structure puts the network behind the crosses instead of beside them.)
    """

    def __init__(
        self,
        tables: Mapping[str, nn.Module],
        hidden: Sequence[int] = HIDDEN,
        dropout: float = 0.0,
        cross_layers: int = 3,
    ) -> None:
        super().__init__(tables, hidden, dropout)
        width = sum(self.dims.values())
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(cross_layers))

    def forward(self, context: Tensor, items: Tensor) -> Tensor:
        """Logits (b, c) of `items` (b, c) for `context` (b, f - 1), ids of the fields in `field_order`, int64."""
        vectors, item, inverse = self.look_up(context, items)
        joined = torch.cat(vectors, dim=1)
        return self.crosses(joined, item, inverse) + self.deep(joined, item, inverse)

    def crosses(self, joined: Tensor, item: Tensor, inverse: Tensor) -> Tensor:
        """<w, x_L> + b of the context's vectors, one after the other (b, sum of d_field), and of the items': (b, c)."""
        context = joined[:, None].expand(-1, inverse.shape[1], -1)
        first = x = torch.cat([context, F.embedding(inverse, item)], dim=2)
        for layer in self.cross:
            x = torch.addcmul(x, first, layer(x))
        width = joined.shape[1]
        logits: Tensor = (self.wide_context(x[..., :width]) + self.wide_item(x[..., width:])).squeeze(2)
        return logits


def build(config: ModelSettings, tables: Mapping[str, nn.Module]) -> DCNV2:
    """From the tables "fields.NAME"."""
    return DCNV2(fields_of(tables), config.hidden_units, config.dropout, config.cross_layers)
