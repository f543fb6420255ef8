"""Distinct items of a batch, for models that compute something once an item and not once a place."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.ops import unique


def distinct_items(items: Tensor, num_items: int) -> tuple[Tensor, Tensor]:
    """Ids int64 (...) -> the ids to look up, (v,), and the place of each item among them, (...).

    In an exported program every item has a place of its own: how many are distinct is not known while it is traced, and
    the operator that finds them is mgqe's, which is not there where the program runs.
    """
    flat = items.reshape(-1)
    if _exporting():
        return flat, torch.arange(flat.shape[0], device=flat.device).view_as(items)
    found, places, _ = unique(flat, num_items)
    return found, places.view_as(items)


def _exporting() -> bool:
    # Before torch 2.7 one question stands for both.
    asked = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(asked())
