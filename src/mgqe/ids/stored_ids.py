"""The ids of an id map in row order: a look-up compares with them, and they are the result of the other direction."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from mgqe.ids.strings import WORD, Strings, hash_integers, hash_strings


class DamagedMap(ValueError):
    """The arrays of an id map contradict each other."""


class StoredIds(Protocol):
    """The ids of the rows 0 to N - 1."""

    def __len__(self) -> int: ...

    def hashes(self, seed: int, start: int, end: int) -> np.ndarray:
        """The hashes of the ids of rows ``start`` to ``end - 1``: uint64."""

    def equal(self, rows: np.ndarray, keys: Any, which: np.ndarray) -> np.ndarray:
        """Whether the id of ``rows[i]`` is ``keys[which[i]]``: bool."""

    def take(self, rows: np.ndarray) -> Any:
        """The ids of some rows, as users know them."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that a file holds, by name."""


class IntegerIds:
    """Integer ids: int64 (N,), or int32 if all fit. For uint64 ids, int64 holds the same bits."""

    def __init__(self, values: np.ndarray, kind: str) -> None:
        self.values, self.kind = values, kind

    @classmethod
    def of(cls, values: np.ndarray, kind: str) -> IntegerIds:
        """From int64 or uint64 (N,)."""
        small = np.iinfo(np.int32)
        if len(values) == 0 or (values.min() >= small.min and values.max() <= small.max):
            return cls(values.astype(np.int32), kind)
        return cls(values.view(np.int64), kind)

    def __len__(self) -> int:
        return len(self.values)

    def hashes(self, seed: int, start: int, end: int) -> np.ndarray:
        return hash_integers(self.values[start:end].astype(np.int64).view(np.uint64), seed)

    def equal(self, rows: np.ndarray, keys: np.ndarray, which: np.ndarray) -> np.ndarray:
        equal: np.ndarray = self.values[rows].astype(np.int64).view(np.uint64) == keys[which]
        return equal

    def take(self, rows: np.ndarray) -> np.ndarray:
        ids: np.ndarray = self.values[rows].astype(np.int64).view(self.kind)
        return ids

    def arrays(self) -> dict[str, np.ndarray]:
        return {"ids": self.values}


class TextIds:
    """String or binary ids: all bytes in one array, with eight zeros after the last, and their offsets (N + 1,)."""

    def __init__(self, buffer: np.ndarray, offsets: np.ndarray, kind: str) -> None:
        self.buffer, self.offsets, self.kind = buffer, offsets, kind

    @classmethod
    def of(cls, strings: Strings, kind: str) -> TextIds:
        """From strings that fill their buffer in order, with eight zeros after the last."""
        total = len(strings.buffer) - WORD
        offsets = np.append(strings.starts, total)
        return cls(strings.buffer, offsets.astype(np.int32) if total < 2**31 else offsets, kind)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def strings(self, rows: np.ndarray) -> Strings:
        """The strings of some rows; raises DamagedMap if their offsets lie outside the bytes."""
        starts, ends = self.offsets[rows].astype(np.int64), self.offsets[rows + 1].astype(np.int64)
        if len(rows) and (starts.min() < 0 or (ends < starts).any() or ends.max() > len(self.buffer) - WORD):
            raise DamagedMap("an id lies outside the bytes of the ids")
        return Strings(self.buffer, starts, ends - starts)

    def hashes(self, seed: int, start: int, end: int) -> np.ndarray:
        return hash_strings(self.strings(np.arange(start, end)), seed)

    def equal(self, rows: np.ndarray, keys: Strings, which: np.ndarray) -> np.ndarray:
        return self.strings(rows).equal(keys[which])

    def take(self, rows: np.ndarray) -> list[Any]:
        flat = self.strings(rows.reshape(-1))
        ids = [
            self.buffer[start : start + length].tobytes()
            for start, length in zip(flat.starts.tolist(), flat.lengths.tolist())
        ]
        if self.kind != "string":
            return ids
        try:
            return [content.decode() for content in ids]
        except UnicodeDecodeError as error:
            raise DamagedMap(f"an id is no text in UTF-8 ({error})") from error

    def arrays(self) -> dict[str, np.ndarray]:
        return {"ids.bytes": self.buffer, "ids.offsets": self.offsets}


class HashedIds:
    """The hashes of string or binary ids without the ids: int64 (N,), which holds the bits of uint64."""

    def __init__(self, values: np.ndarray, kind: str, seed: int) -> None:
        self.values, self.kind, self.seed = values, kind, seed

    def __len__(self) -> int:
        return len(self.values)

    def hashes(self, seed: int, start: int, end: int) -> np.ndarray:
        hashes: np.ndarray = self.values[start:end].view(np.uint64).copy()
        return hashes

    def equal(self, rows: np.ndarray, keys: Strings, which: np.ndarray) -> np.ndarray:
        equal: np.ndarray = self.values[rows].view(np.uint64) == hash_strings(keys[which], self.seed)
        return equal

    def take(self, rows: np.ndarray) -> Any:
        raise ValueError("this map holds hashes instead of ids (keep_ids=False), so that it cannot map rows to ids")

    def arrays(self) -> dict[str, np.ndarray]:
        return {"ids.hashes": self.values}
