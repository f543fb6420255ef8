"""A table with the ids of its rows: one folder, asked and answered in the user's own ids."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from mgqe_reader.arrays import floats, integers
from mgqe_reader.ids import IdMap
from mgqe_reader.library import library
from mgqe_reader.table import Table, load

UNKNOWN = ("error", "zeros", "fallback")


class Hits(NamedTuple):
    """What a search returns: of one query k of each, of B queries (B, k)."""

    scores: np.ndarray
    ids: list[Any]


class Collection:
    """A table and the ids of its rows, which :meth:`load` reads. Without ids of their own, rows have their numbers.

    Attributes:
        table: the :class:`Table`.
        ids: the :class:`IdMap`, or None.
        query_weight: float32 (d,), what each coordinate counts in the dot products of the collection's model, or None.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        handle = library().mgqe_reader_ids(table.handle)
        self.ids = None if handle is None else IdMap(handle, table)
        self.query_weight = table.copied("mgqe_reader_query_weight")

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, mmap: bool = True, verify: bool | None = None, threads: int = 0
    ) -> Collection:
        """Read a folder that ``mgqe.Collection.save`` or ``mgqe compress`` wrote; as :func:`mgqe_reader.load`."""
        return cls(load(folder, mmap=mmap, verify=verify, threads=threads))

    def __len__(self) -> int:
        """N."""
        return len(self.table)

    def __contains__(self, one: Any) -> bool:
        try:
            return int(self.rows([one], unknown=-1)[0]) >= 0
        except (TypeError, ValueError):  # of another type than the ids
            return False

    def __repr__(self) -> str:
        return f"Collection({self.table!r}, {'numbered rows' if self.ids is None else self.ids})"

    def rows(self, ids: Any, unknown: int | None = None) -> np.ndarray:
        """The rows of ids: int64, of the ids' shape. ``unknown``: the row for ids that are not there; else KeyError."""
        if self.ids is not None:
            return self.ids.rows(ids, unknown)
        rows = integers(ids)
        outside = (rows < 0) | (rows >= len(self))
        if outside.any() and unknown is None:
            raise KeyError(f"there is no row {rows[outside].flat[0]}: rows are 0 to {len(self) - 1}")
        return np.where(outside, unknown or 0, rows) if outside.any() else rows

    def lookup(self, ids: Any, unknown: str = "error") -> np.ndarray:
        """The vectors of ids: float32 (..., d), for ids of the shape (...).

        Args:
            ids: one id, a list or an array.
            unknown: what ids that are not there give: "error"; "zeros"; or "fallback", the vector that the table has
                for them.

        Raises KeyError for unknown ids, TypeError for ids of another type.
        """
        if unknown not in UNKNOWN or (unknown == "fallback" and self.table.fallback is None):
            raise ValueError(f"unknown must be one of {', '.join(UNKNOWN)}, the last of a table that has one")
        rows = self.rows(ids, None if unknown == "error" else -1)
        if unknown == "fallback":
            return self.table.lookup(rows)
        vectors = self.table.lookup(np.maximum(rows, 0))
        vectors[rows < 0] = 0
        return vectors

    def topk(
        self, queries: Any, k: int = 10, *, exclude: Any = None, candidates: Any = None, score: str = "dot"
    ) -> Hits:
        """The k ids whose vectors score highest with each query, exactly, from the codes.

        Args:
            queries: floats (d,) or (B, d).
            k: how many, 1 to N.
            exclude: ids not to return: a list for all queries, or B lists. Ids that are not there are left out.
            candidates: the only ids to return, in the same forms.
            score: "dot", weighted by :attr:`query_weight` where there is one, or "cosine".

        Returns:
            scores, falling, and ids; of B queries B lists. Where fewer than k ids may be returned, the rest is -inf
            and None.
        """
        if self.query_weight is not None and score == "dot":
            vectors = floats(queries, "queries")
            queries = vectors * self.query_weight if vectors.shape[-1:] == self.query_weight.shape else vectors
        scores, rows = self.table.topk(queries, k, self._rows_of(exclude), self._rows_of(candidates), score)
        return Hits(scores, self._ids_of(rows))

    def neighbours(self, one: Any, k: int = 10, *, score: str = "cosine") -> Hits:
        """The k ids most similar to one of the collection, that one left out. Raises KeyError for an unknown id."""
        return self.topk(self.lookup([one])[0], k, exclude=[one], score=score)

    def _rows_of(self, ids: Any) -> Any:
        if ids is None:
            return None
        if len(ids) and isinstance(ids[0], (list, tuple, np.ndarray)):
            return [self._known(each) for each in ids]
        return self._known(ids)

    def _known(self, ids: Any) -> np.ndarray:
        rows = self.rows(ids, unknown=-1) if len(ids) else np.empty(0, np.int64)
        return rows[rows >= 0]

    def _ids_of(self, rows: np.ndarray) -> list[Any]:
        flat = rows.reshape(-1)
        named = flat.tolist() if self.ids is None else list(self.ids.ids(np.maximum(flat, 0)))
        plain = [each.item() if isinstance(each, np.generic) else each for each in named]
        plain = [None if row < 0 else each for row, each in zip(flat.tolist(), plain, strict=True)]
        if rows.ndim == 1:
            return plain
        return [plain[start : start + rows.shape[1]] for start in range(0, len(plain), rows.shape[1])]
