"""What users pass, as the contiguous arrays that the library reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

NUMBERS = "iu"


def integers(ids: Any, name: str = "ids") -> np.ndarray:
    """Ids of any shape as contiguous int64. TypeError: no integers; IndexError: an id beyond int64."""
    array = np.asarray(ids)
    if array.size == 0 and not isinstance(ids, np.ndarray):
        array = array.astype(np.int64)
    if array.dtype.kind not in NUMBERS:
        raise TypeError(f"{name} must be integers, got {array.dtype}: use .astype(numpy.int64)")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise IndexError(f"{name} hold {array.max()}, which is beyond every table")
    return np.ascontiguousarray(array, np.int64).reshape(array.shape)


def floats(values: Any, name: str) -> np.ndarray:
    """Numbers as contiguous float32. TypeError: no floats."""
    array = np.asarray(values)
    if array.dtype.kind not in "f" and not (array.dtype.kind in NUMBERS and not isinstance(values, np.ndarray)):
        raise TypeError(f"{name} must be floats, got {array.dtype}: use .astype(numpy.float32)")
    return np.ascontiguousarray(array, np.float32).reshape(array.shape)


def id_lists(name: str, listed: Any, count: int, rows: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids to leave out or to keep: the ids of all queries, and where each query's begin and end, or None.

    Args:
        listed: (n,) for all queries; (count, n), -1 for no id; ``count`` lists; or a bool mask (rows,) or
            (count, rows).
    """
    nested = isinstance(listed, (list, tuple)) and len(listed) > 0 and isinstance(listed[0], (Sequence, np.ndarray))
    if nested:
        parts = [integers(each, f"{name}[{i}]").reshape(-1) for i, each in enumerate(listed)]
    else:
        array = np.asarray(listed)
        if array.dtype == np.bool_:
            if array.shape not in ((rows,), (count, rows)):
                raise ValueError(f"a mask for {name} must have shape ({rows},) or ({count}, {rows}), got {array.shape}")
            if array.ndim == 1:
                return np.flatnonzero(array), None
            parts = [np.flatnonzero(each) for each in array]
        else:
            array = integers(listed, name)
            if array.ndim == 1:
                return array, None
            if array.ndim != 2:
                raise ValueError(f"{name} must have shape (n,) or ({count}, n), got {array.shape}")
            parts = [each[each != -1] for each in array]
    if len(parts) != count:
        raise ValueError(f"{name} must have ids for all queries, or a list for each of {count}, got {len(parts)}")
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64), offsets
