"""Lookup keys: external ids, as users pass them, turned into 64-bit numbers or byte strings that can be hashed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mgqe.checks.columns import column_values, is_column
from mgqe.checks.ids import check_dense, no_values
from mgqe.ids.logs.id_columns import INTEGERS
from mgqe.ids.strings import WORD, Strings


@dataclass(frozen=True)
class LookupKeys:
    """The keys of a look-up, flat.

    Attributes:
        keys: uint64 (n,), the 64 bits of each integer; or the strings.
        shape: the shape of the ids.
        ids: the ids as the user passed them, flat, for errors.
        outside: bool (n,), the integers that the map's type cannot hold, which are therefore unknown; None: none.
    """

    keys: np.ndarray | Strings
    shape: tuple[int, ...]
    ids: Any
    outside: np.ndarray | None = None

    def ids_at(self, positions: np.ndarray) -> list[Any]:
        """Some of the ids, as the user passed them."""
        ids = (self.ids[position] for position in positions.tolist())
        return [value.item() if isinstance(value, np.generic) else value for value in ids]


def lookup_keys(ids: Any, kind: str) -> LookupKeys:
    """The keys of a tensor, an array, a column of a frame, a list, or one id.

    Raises:
        TypeError: ids of another kind than the map's. ValueError: missing ids (null, None).
    """
    if type(ids).__module__.split(".")[0] == "polars":
        if ids.null_count():
            raise ValueError(f"{ids.null_count():,} missing ids (null): drop or fill them first")
        ids = ids.to_numpy() if kind in INTEGERS and ids.dtype.is_integer() else ids.to_list()
    elif is_column(ids):
        ids = column_values(ids)
    if isinstance(ids, Tensor):
        check_dense(ids)
        if ids.is_meta:
            raise no_values()
        ids = ids.detach().cpu().numpy()
    return _integers(ids, kind) if kind in INTEGERS else _texts(ids, kind)


def _integers(ids: Any, kind: str) -> LookupKeys:
    array = ids if isinstance(ids, np.ndarray) else _array_of(ids)
    if array.dtype.kind not in "iuO" and array.size:
        raise TypeError(f"the map's ids are integers ({kind}), got {array.dtype}")
    flat = array.reshape(-1)
    if array.dtype.kind == "O":
        _check_each(flat.tolist(), (int, np.integer), kind)
    low, high = (0, 2**64) if kind == "uint64" else (-(2**63), 2**63)
    originals, outside = flat, None
    if array.dtype.kind == "O" or array.dtype.kind == ("i" if kind == "uint64" else "u"):
        outside = np.asarray((flat < low) | (flat >= high), dtype=bool) if flat.size else np.zeros(0, dtype=bool)
        flat = np.where(outside, 0, flat) if outside.any() else flat
    return LookupKeys(flat.astype(kind, copy=False).view(np.uint64), array.shape, originals, outside)


def _array_of(ids: Any) -> np.ndarray:
    """Integers of any size as an array. By default NumPy would turn those beyond int64 into floats."""
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected ids, got {type(ids).__name__}: {error}") from error
    if array.dtype.kind in "fO" and array.size:
        array = np.asarray(ids, dtype=object)
    return array


def _texts(ids: Any, kind: str) -> LookupKeys:
    if isinstance(ids, np.ndarray):
        shape, values = ids.shape, ids.reshape(-1).tolist()
    elif isinstance(ids, (str, bytes, bytearray, memoryview)):
        shape, values = (), [ids]
    elif isinstance(ids, Sequence):
        shape, values = (len(ids),), list(ids)
    else:
        raise TypeError(f"the map's ids are of kind {kind}, got {type(ids).__name__}: give a list, an array or one id")
    return LookupKeys(strings_of(values, kind), shape, values)


def strings_of(values: list[Any], kind: str) -> Strings:
    """A list of str, or of bytes, in one buffer. TypeError: other types; ValueError: text that UTF-8 cannot hold."""
    try:
        if kind == "string":
            text = "".join(values)
            joined = bytearray(text.encode())
            if len(joined) == len(text):  # ASCII
                lengths = np.fromiter(map(len, values), np.int64, len(values))
            else:
                lengths = np.fromiter((len(value.encode()) for value in values), np.int64, len(values))
        else:
            joined = bytearray().join(values)
            lengths = np.fromiter(map(len, values), np.int64, len(values))
    except TypeError:
        _check_each(values, str if kind == "string" else (bytes, bytearray), kind)
        raise
    except UnicodeEncodeError as error:
        raise ValueError(f"ids must be text that UTF-8 can hold: {error}") from error
    joined += bytes(WORD)
    return Strings(np.frombuffer(joined, np.uint8), np.cumsum(lengths) - lengths, lengths)


def _check_each(values: list[Any], python_types: Any, kind: str) -> None:
    for position, value in enumerate(values):
        if value is None:
            raise ValueError(f"the id at position {position} is missing (None): drop or fill it first")
        if not isinstance(value, python_types) or isinstance(value, bool):
            raise TypeError(
                f"the map's ids are of kind {kind}, but at position {position} is {value!r}, {type(value).__name__}"
            )
