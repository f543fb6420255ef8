"""DeepFM: a factorisation machine and a network over the same vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgqe.recsys.models.settings import HIDDEN, ModelSettings
from mgqe.recsys.models.wide_deep import WideDeep, fields_of


class DeepFM(WideDeep):
    """DeepFM (Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", 2017):

        logit = <w, x> + b + sum over k < l of <P_k e_k, P_l e_l> + <v, z_L>

    The other terms are those of WideDeep; the first-order weight of an id is <w_k, e_k> here as well. With d the
    largest dimension of a field, P_k is the identity for fields of d dimensions, and a learned d x d_k matrix for those
    of fewer (mixed dimensions, Ginart et al. 2019).
    """

    def __init__(self, tables: Mapping[str, nn.Module], hidden: Sequence[int] = HIDDEN, dropout: float = 0.0) -> None:
        super().__init__(tables, hidden, dropout)
        most = max(self.dims.values())
        self.projections = nn.ModuleDict(
            {name: nn.Linear(dim, most, bias=False) for name, dim in self.dims.items() if dim < most}
        )

    def forward(self, context: Tensor, items: Tensor) -> Tensor:
        """Logits (b, c) of `items` (b, c) for `context` (b, f - 1), ids of the fields in `field_order`, int64."""
        fields = self.look_up(context, items)
        return self.wide_and_deep(*fields) + self.second_order(*fields)

    def second_order(self, vectors: list[Tensor], item: Tensor, inverse: Tensor) -> Tensor:
        """The sum over pairs of fields, of the results of `look_up`: (b, c).

        With s the sum of the context's vectors, pairs within the context are (|s|^2 - sum of |e_k|^2) / 2, computed
        once per positive; the item's pairs are <s, e_item>.
        """
        projected = [self._project(name, rows) for name, rows in zip(self.context, vectors, strict=True)]
        total = projected[0] if len(projected) == 1 else torch.stack(projected).sum(dim=0)
        rivals = F.embedding(inverse, self._project(self.item, item))
        pairs = (rivals * total[:, None]).sum(dim=2)
        if len(projected) > 1:
            squares = torch.stack([rows.square().sum(dim=1) for rows in projected]).sum(dim=0)
            pairs = pairs + 0.5 * (total.square().sum(dim=1) - squares)[:, None]
        return pairs

    def _project(self, name: str, rows: Tensor) -> Tensor:
        if name not in self.projections:
            return rows
        projected: Tensor = self.projections[name](rows)
        return projected


def build(config: ModelSettings, tables: Mapping[str, nn.Module]) -> DeepFM:
    """From the tables "fields.NAME"."""
    return DeepFM(fields_of(tables), config.hidden_units, config.dropout)
