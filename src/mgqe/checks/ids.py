"""Checks of ids, which become int64 tensors that are safe to index with, and of a table's sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.checks.scalars import as_int, optional_int

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INTEGER_DTYPES = frozenset(
    {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)


def plain_ids(ids: Any) -> Tensor:
    """Ids as a tensor: a tensor as it is, an integer, a list or an array of them as int64 on the CPU.

    Raises:
        TypeError: something else; floats and truth values are no ids.
    """
    if isinstance(ids, Tensor):
        return ids
    array = np.asarray(ids)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        what = f"got {type(ids).__name__} of {array.dtype}" if array.dtype.kind in "fbOUS" else f"got {array.dtype}"
        raise TypeError(f"ids must be integers: a tensor, an array, a list or one of them, {what}")
    return torch.from_numpy(array.astype(np.int64))


def as_int64(ids: Tensor, name: str = "ids") -> Tensor:
    """Ids of any integer dtype as int64, in the same shape. The values are not checked.

    Args:
        ids: the tensor.
        name: the argument's name, for the message.

    Raises:
        TypeError: ``ids`` is no tensor, is sparse or nested, or holds something other than integers.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor of integers, got {type(ids).__name__}: use torch.as_tensor({name})"
        )
    check_dense(ids, name)
    if ids.dtype == torch.int64:
        return ids
    if ids.dtype not in INTEGER_DTYPES:
        castable = ids.dtype.is_floating_point or ids.dtype == torch.bool
        remedy = f": cast with {name}.long()" if castable else ""
        raise TypeError(f"{name} must have an integer dtype such as torch.int64, got {ids.dtype}{remedy}")
    return ids.to(torch.int64)


def check_dense(ids: Tensor, name: str = "ids") -> None:
    """Raise TypeError for a sparse or nested tensor, whose elements lie in several tensors."""
    if ids.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got a nested one: pad it with "
            "torch.nested.to_padded_tensor, or give a bag its values and offsets"
        )
    if ids.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {ids.layout}: convert it with .to_dense()")


def check_device(ids: Tensor, device: torch.device, name: str = "ids", owner: str = "the table") -> None:
    """Raise unless ids are on the device of their owner: TypeError on the meta device, ValueError on another one."""
    if ids.device == device:
        return
    if ids.is_meta:
        raise no_values(name)
    raise ValueError(f"{name} are on {ids.device}, {owner} on {device}: move one with .to()")


def no_values(name: str = "ids") -> TypeError:
    """The error for ids on the meta device, if their values are needed."""
    return TypeError(f"{name} are on the meta device, which holds no values: make them on the table's device")


def check_ids(ids: Tensor, num_embeddings: int, what: str = "id") -> Tensor:
    """Ids (...) of any integer dtype as int64 (...), each known to lie in [0, num_embeddings).

    Args:
        ids: the tensor.
        num_embeddings: valid ids are 0 to ``num_embeddings - 1``.
        what: the word for one of them, for the message.

    Raises:
        TypeError: as :func:`as_int64`, or a tensor on the meta device.
        IndexError: an id is negative or not below ``num_embeddings``; the message names the first such id.
            Not raised while torch.compile traces: the operator that indexes with the ids has to check them then.
    """
    rows = as_int64(ids, f"{what}s")
    if torch.compiler.is_compiling():
        return rows
    if rows.is_meta:
        raise no_values(f"{what}s")
    if rows.numel() == 0:
        return rows
    low, high = (int(x) for x in torch.aminmax(rows))
    if low < 0 or high >= num_embeddings:
        flat = rows.reshape(-1)
        offending = flat[(flat < 0) | (flat >= num_embeddings)][0]
        valid = f"0 to {num_embeddings - 1}" if num_embeddings else "none, the table has no rows"
        raise IndexError(f"{what} {int(offending)} is out of range: valid {what}s are {valid}")
    return rows


def check_sizes(num_embeddings: int, embedding_dim: int, padding_idx: int | None) -> tuple[int, int, int | None]:
    """A table's sizes as plain ints. A negative padding_idx counts from the end and becomes the id that it stands for.

    Raises:
        ValueError: negative rows, no dimension, or padding_idx outside the table. TypeError: not a whole number.
    """
    rows, dim = as_int("num_embeddings", num_embeddings), as_int("embedding_dim", embedding_dim)
    if rows < 0:
        raise ValueError(f"num_embeddings must not be negative, got {rows}")
    if dim < 1:
        raise ValueError(f"embedding_dim must be at least 1, got {dim}")
    padding = optional_int("padding_idx", padding_idx)
    if padding is None:
        return rows, dim, None
    if not -rows <= padding < rows:
        raise ValueError(f"padding_idx={padding} is outside the {rows} rows of the table")
    return rows, dim, padding % rows
