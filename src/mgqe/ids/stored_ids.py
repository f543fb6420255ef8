"""The ids themselves, row by row: what a look-up is checked against, and what the other direction reads."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from mgqe.ids.strings import WORD, Strings, hash_integers, hash_strings


class DamagedMap(ValueError):
    """A map contradicts itself."""


class StoredIds(Protocol):
    """Ids of the rows 0 to N - 1."""

    def __len__(self) -> int: ...

    def hashes(self, seed: int, start: int, end: int) -> np.ndarray:
        """Of the ids of some rows: uint64."""

    def equal(self, rows: np.ndarray, keys: Any, which: np.ndarray) -> np.ndarray:
        """Whether the id of ``rows[i]`` is ``keys[which[i]]``: bool."""

    def take(self, rows: np.ndarray) -> Any:
        """The ids of some rows, as users know them."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file holds, by name."""


class IntegerIds:
    """Integer ids: int64 (N,), or int32 where all fit; of uint64 ids int64 holds the same bits."""

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
        found: np.ndarray = self.values[rows].astype(np.int64).view(np.uint64) == keys[which]
        return found

    def take(self, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.values[rows].astype(np.int64).view(self.kind)
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        return {"ids": self.values}


class TextIds:
    """String or binary ids: all bytes in one array, eight zeros after the last, and where each begins (N + 1,)."""

    def __init__(self, buffer: np.ndarray, offsets: np.ndarray, kind: str) -> None:
        self.buffer, self.offsets, self.kind = buffer, offsets, kind

    @classmethod
    def of(cls, strings: Strings, kind: str) -> TextIds:
        """From strings that lie one after another from the buffer's beginning, eight zeros after the last."""
        total = len(strings.buffer) - WORD
        offsets = np.append(strings.starts, total)
        return cls(strings.buffer, offsets.astype(np.int32) if total < 2**31 else offsets, kind)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def strings(self, rows: np.ndarray) -> Strings:
        """Of some rows; Damaged if the file says that they lie outside it."""
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
        parts = [
            self.buffer[start : start + length].tobytes()
            for start, length in zip(flat.starts.tolist(), flat.lengths.tolist())
        ]
        if self.kind != "string":
            return parts
        try:
            return [part.decode() for part in parts]
        except UnicodeDecodeError as error:
            raise DamagedMap(f"an id is no text in UTF-8 ({error})") from error

    def arrays(self) -> dict[str, np.ndarray]:
        return {"ids.bytes": self.buffer, "ids.offsets": self.offsets}


class HashedIds:
    """Only the hashes of string or binary ids: int64 (N,) with the same bits."""

    def __init__(self, values: np.ndarray, kind: str, seed: int) -> None:
        self.values, self.kind, self.seed = values, kind, seed

    def __len__(self) -> int:
        return len(self.values)

    def hashes(self, seed: int, start: int, end: int) -> np.ndarray:
        found: np.ndarray = self.values[start:end].view(np.uint64).copy()
        return found

    def equal(self, rows: np.ndarray, keys: Strings, which: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.values[rows].view(np.uint64) == hash_strings(keys[which], self.seed)
        return found

    def take(self, rows: np.ndarray) -> Any:
        raise ValueError("this map holds hashes and no ids (keep_ids=False): it goes from ids to rows only")

    def arrays(self) -> dict[str, np.ndarray]:
        return {"ids.hashes": self.values}
