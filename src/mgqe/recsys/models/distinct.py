"""The distinct items of a batch, for models that compute something once per item."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.checks.waiting import reads_wait
from mgqe.ops import unique


def distinct_items(items: Tensor, num_items: int) -> tuple[Tensor, Tensor]:
    """(distinct, inverse) of ids int64 (...): the ids to look up, (v,), and the position of each item in them, (...).

    On a GPU every item is looked up, since a step would wait for the number of distinct ones. An exported program does
    so, too: this number is unknown while it is traced, and the operator that finds them belongs to mgqe, which need not
    be installed where the program runs.
    """
    flat = items.reshape(-1)
    if torch.compiler.is_exporting() or reads_wait(flat.device):
        return flat, torch.arange(flat.shape[0], device=flat.device).view_as(items)
    distinct, inverse, _ = unique(flat, num_items)
    return distinct, inverse.view_as(items)
