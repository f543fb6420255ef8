"""Ids that are given one by one, instead of counted in a log: their kind, their keys, and that none is there twice."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from mgqe.ids.keys import LookupKeys, lookup_keys
from mgqe.ids.strings import Strings, hash_keys

MAX_NAMED = 5  # ids that an error names
_KIND_OF_TYPE = ((str, "string"), ((bytes, bytearray), "binary"), ((int, np.integer), "int64"))


def given_keys(ids: Any) -> tuple[LookupKeys, str]:
    """The keys of ids (N,) that are all different, and the kind of a map that holds them.

    Args:
        ids: a list, a tuple, a NumPy array, a tensor, or a column of a polars, pandas or Arrow frame.

    Raises:
        TypeError: ids that are no integers, text or bytes, or of several kinds. ValueError: no ids, missing ones, ids
            with more than one axis, or the same id twice.
    """
    plain = _plain(ids)
    shape = _shape(plain)
    if len(shape) != 1:
        raise ValueError(f"ids must be one per row, shape (N,), got shape {shape}")
    if not len(plain):
        raise ValueError("there are no ids: give one per row")
    kind = _kind(plain)
    keys = lookup_keys(plain, kind)
    if keys.outside is not None and keys.outside.any():
        raise ValueError(f"ids must fit 64 bits, got {keys.ids_at(np.flatnonzero(keys.outside)[:1])[0]}")
    _refuse_repeated(keys)
    return keys, kind


def _shape(plain: Any) -> tuple[int, ...]:
    """Of an array, or of a list by its first element: an array of all would give every text the longest one's room."""
    if isinstance(plain, np.ndarray):
        return tuple(plain.shape)
    return (len(plain), *np.shape(plain[0])) if len(plain) else (0,)


def _plain(ids: Any) -> Any:
    """Columns of frames and tensors as arrays or lists."""
    if isinstance(ids, Tensor):
        return ids.detach().cpu().numpy()
    if isinstance(ids, (np.ndarray, list)):
        return ids.tolist() if isinstance(ids, np.ndarray) and ids.dtype.kind in "OUS" else ids
    for method in ("to_list", "to_pylist", "tolist"):  # polars and pandas, Arrow, arrays of other packages
        if callable(convert := getattr(ids, method, None)):
            return convert()
    if isinstance(ids, (str, bytes)):
        raise TypeError(f"ids must be a list or an array of them, got one: {ids!r}")
    try:
        return list(ids)
    except TypeError as error:
        raise TypeError(f"ids must be a list, an array or a column of a frame, got {type(ids).__name__}") from error


def _kind(ids: Any) -> str:
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind not in "iu":
            raise TypeError(f"ids must be integers, text or bytes, got an array of {ids.dtype}")
        return "uint64" if ids.dtype == np.uint64 else "int64"
    first = next((each for each in ids if each is not None), None)
    for types, kind in _KIND_OF_TYPE:
        if isinstance(first, types) and not isinstance(first, bool):
            large = kind == "int64" and any(isinstance(each, types) and int(each) >= 2**63 for each in ids)
            return "uint64" if large else kind
    raise TypeError(f"ids must be integers, text or bytes, got {type(first).__name__}: {first!r}")


def _refuse_repeated(keys: LookupKeys) -> None:
    """ValueError naming ids that are there more than once."""
    values = keys.keys
    hashes = hash_keys(values, 0)
    order = np.argsort(hashes, kind="stable")
    neighbours = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    first, second = order[neighbours], order[neighbours + 1]
    if isinstance(values, Strings):  # other hashes are one-to-one
        same = values[first].equal(values[second])
        first, second = first[same], second[same]
    if first.size:
        shown = zip(keys.ids_at(first[:MAX_NAMED]), first.tolist(), second.tolist(), strict=False)
        named = ", ".join(f"{each!r} (rows {one} and {other})" for each, one, other in shown)
        raise ValueError(f"{first.size:,} ids are there more than once: {named}. Keep one row of each")
