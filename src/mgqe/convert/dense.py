"""A model's parameters and buffers apart from its tables, each tensor once, for :mod:`mgqe.files.weights`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mgqe.convert.wrappers import plain_key
from mgqe.files.container import WEIGHT_DTYPE_NAMES


def dense_state(
    model: nn.Module, tables: Collection[str], plain: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state_dict without tables, under plain names, each tensor once, and further names of shared tensors.

    Args:
        tables: plain paths of the tables.
        plain: what :func:`plain_paths` returns.

    Raises ValueError for state that is no plain tensor with elements; the message names it.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    key_of: dict[tuple[Any, ...], str] = {}
    table_prefixes = tuple(f"{path}." for path in tables)
    for raw, value in model.state_dict().items():
        key = plain_key(raw, plain)
        if key.startswith(table_prefixes):
            continue
        _check(key, value)
        identity = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and identity in key_of:
            aliases[key] = key_of[identity]
        else:
            key_of[identity] = key
            tensors[key] = value.detach().cpu().contiguous().clone()
    return tensors, aliases


def _check(key: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{key}: state of {type(value).__name__}, and only tensors can be saved without pickle")
    if value.is_meta:
        raise ValueError(f"{key}: on the meta device, where tensors have no elements: load the model's weights first")
    if value.layout != torch.strided or hasattr(value, "full_tensor") or value.dtype not in WEIGHT_DTYPE_NAMES:
        raise ValueError(
            f"{key}: a {type(value).__name__} of {value.dtype} and {value.layout}, and only plain tensors can be "
            "saved: gather a distributed model, and convert other kinds, before saving it"
        )
