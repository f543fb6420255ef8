"""The ids of rows: external ids of any type, to rows and back."""

from __future__ import annotations

import ctypes
import os
import weakref
from ctypes import c_int64, c_void_p
from typing import Any

import numpy as np

from mgqe_reader.arrays import integers
from mgqe_reader.library import check, library, open_handle

KINDS = ("int64", "uint64", "string", "binary")
MAX_SHOWN = 5  # unknown ids that an error names


class IdMap:
    """An open id map: a file that ``mgqe.IdMap.save`` wrote, or the ids of a collection.

    Attributes:
        kind: the type of the ids: "int64", "uint64", "string" or "binary".
    """

    def __init__(self, handle: int, owner: object = None) -> None:
        """Of a ``mgqe_ids``, which is closed with this object unless it belongs to ``owner``."""
        self._handle, self._owner, self._lib = handle, owner, library()
        if owner is None:
            weakref.finalize(self, self._lib.mgqe_ids_close, handle)
        self._count: int = self._lib.mgqe_ids_count(handle)
        self.kind = KINDS[self._lib.mgqe_ids_kind(handle)]

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = True, verify: bool | None = None) -> IdMap:
        """Open a file; arguments and errors as of :func:`mgqe_reader.load`."""
        return cls(open_handle("mgqe_ids_open", path, mmap, verify))

    def __len__(self) -> int:
        """N, the number of rows."""
        return self._count

    def __repr__(self) -> str:
        return f"IdMap({self._count:,} ids, {self.kind})"

    def rows(self, ids: Any, unknown: int | None = None) -> np.ndarray:
        """The rows of ids: int64, of the ids' shape.

        Args:
            ids: an array, a list, or one id, of the map's kind.
            unknown: the row for ids that are not there; by default they are a KeyError, which shows some.

        Raises TypeError for ids of another kind.
        """
        array = self._array(ids)
        rows = np.empty(array.shape, np.int64)
        if self.kind in ("string", "binary"):
            texts = [each.encode() if self.kind == "string" else bytes(each) for each in array.reshape(-1).tolist()]
            offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
            call, values = self._lib.mgqe_ids_rows_of_texts, (b"".join(texts), offsets.ctypes.data)
            check(call(self._handle, *values, rows.size, rows.ctypes.data))
        else:
            low, high = (0, 2**64) if self.kind == "uint64" else (-(2**63), 2**63)
            plain = [each if low <= each < high else None for each in array.reshape(-1).tolist()]
            numbers = np.array([0 if each is None else each for each in plain], self.kind)
            call = self._lib.mgqe_ids_rows_of_integers
            check(call(self._handle, numbers.ctypes.data, rows.size, rows.ctypes.data))
            rows.reshape(-1)[[each is None for each in plain]] = -1
        missing = np.flatnonzero(rows < 0)
        if missing.size and unknown is None:
            shown = ", ".join(map(repr, array.reshape(-1)[missing[:MAX_SHOWN]].tolist()))
            raise KeyError(f"the map does not know {missing.size:,} of the ids: {shown}")
        rows[rows < 0] = -1 if unknown is None else unknown
        return rows

    def _array(self, ids: Any) -> np.ndarray:
        """Ids as an array of Python's objects. TypeError: of another kind than the map's."""
        types = {"string": str, "binary": (bytes, bytearray)}.get(self.kind, (int, np.integer))
        array = ids if isinstance(ids, np.ndarray) else np.empty((), object)
        if not isinstance(ids, np.ndarray):
            array = np.fromiter(ids, object) if isinstance(ids, (list, tuple)) else np.array(ids, object)
        for each in array.reshape(-1).tolist():
            if not isinstance(each, types) or isinstance(each, bool):  # type: ignore[arg-type]
                raise TypeError(f"the map's ids are of kind {self.kind}, got {each!r}, {type(each).__name__}")
        return array

    def ids(self, rows: Any) -> Any:
        """The ids of rows: an int64 or uint64 array of the rows' shape; or a flat list of str or bytes.

        Raises:
            IndexError: a row outside 0 to N - 1. ArtifactError: the map holds hashes instead of ids.
        """
        rows = integers(rows, "rows")
        if self.kind in ("int64", "uint64"):
            values = np.empty(rows.shape, np.int64)
            check(self._lib.mgqe_ids_integers(self._handle, rows.ctypes.data, rows.size, values.ctypes.data))
            return values.view(self.kind)
        texts = []
        address, length = c_void_p(), c_int64()
        for row in rows.reshape(-1).tolist():
            check(self._lib.mgqe_ids_text(self._handle, row, ctypes.byref(address), ctypes.byref(length)))
            texts.append(ctypes.string_at(address.value or 0, length.value))
        return [each.decode() for each in texts] if self.kind == "string" else texts
