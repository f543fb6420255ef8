"""FullStore: rows that are a parameter of N rows, "float32" or "bfloat16"."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe.nn.quantizers.autograd import ReadRows
from mgqe.nn.rows.store import RowStore


class FullStore(RowStore):
    """Row i of the parameter is the row of id i. There is nothing to look after."""

    is_full = True

    def read(self, weight: Tensor, ids: Tensor) -> Tensor:
        return F.embedding(ids, weight.detach())

    def train_rows(self, weight: Tensor, ids: Tensor, sparse: bool, left_out: int | None = None) -> Tensor:
        if torch.compiler.is_compiling():
            return F.embedding(ids, weight, sparse=sparse)
        return ReadRows.apply(weight, ids, sparse, left_out)  # type: ignore[no-any-return, no-untyped-call]

    def gathers(self, weight: Tensor) -> bool:
        return True
