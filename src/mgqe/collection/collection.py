"""Collection: look-ups, top-K and growth of a table in the user's own ids."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgqe.checks.columns import column_values, is_column
from mgqe.checks.ids import as_int64, plain_ids
from mgqe.checks.rows import plain_vectors
from mgqe.collection.folder import read_folder, write_folder
from mgqe.ids import IdMap
from mgqe.table.base import FrozenTable
from mgqe.table.compact import CompactTable

UNKNOWN = ("error", "zeros", "fallback")


class Hits(NamedTuple):
    """What a search returns: of one query k of each, of B queries (B, k)."""

    scores: Tensor
    ids: list[Any]

    def to_frame(self, queries: Any = None) -> Any:
        """A polars frame with columns query, rank (from 1), id and score, one row per id that was found.

        ``to_pandas()`` and ``to_arrow()`` of the frame make others of it.

        Args:
            queries: (B,) what each query is called; by default its number, from 0.

        Raises:
            ImportError: polars is not installed. ValueError: not as many names as queries.
        """
        pl = _polars("to_frame")
        scores, ids = (self.scores, self.ids) if self.scores.ndim == 2 else (self.scores[None], [self.ids])
        names = range(len(ids)) if queries is None else column_values(queries) if is_column(queries) else list(queries)
        if len(names) != len(ids):
            raise ValueError(f"{len(names)} names for {len(ids)} queries: give one name per query")
        found = [
            (name, rank, one, score)
            for name, of_query, scores_of_query in zip(names, ids, scores.tolist(), strict=True)
            for rank, (one, score) in enumerate(zip(of_query, scores_of_query, strict=True), 1)
            if one is not None
        ]
        schema = {"query": None, "rank": pl.Int64, "id": None, "score": pl.Float32}
        return pl.DataFrame(found, schema=schema, orient="row", infer_schema_length=None)


class Collection:
    """A frozen table with the ids of its rows, which may be of any type.

    All methods take and return the user's ids. Without an id map these are the rows' numbers, 0 to N - 1.
    ``mgqe compress`` writes a collection, :func:`mgqe.compress_table` and :meth:`mgqe.IdMap.from_ids` make its parts.

    Args:
        table: what ``freeze()``, :func:`mgqe.compress_table` or :func:`mgqe.load` return.
        ids: of its rows: an :class:`mgqe.IdMap`, or (N,) ids as :meth:`mgqe.IdMap.from_ids` takes them; None for the
            rows' numbers.
        query_weight: floats (d,), what each coordinate counts in dot products with queries, for vectors of a model that
            weights them; None for 1.

    Raises:
        TypeError: no frozen table. ValueError: not as many ids as rows, or weights as coordinates.

    Example:
        >>> import torch, mgqe
        >>> vectors = torch.randn(1000, 16)
        >>> items = mgqe.Collection(mgqe.compress_table(vectors, "20%"), [f"item-{i}" for i in range(1000)])
        >>> items.lookup(["item-17", "item-3"]).shape
        torch.Size([2, 16])
        >>> hits = items.neighbours("item-17", 5)
        >>> len(hits.ids), "item-17" in hits.ids
        (5, False)
    """

    def __init__(self, table: FrozenTable, ids: Any = None, query_weight: Any = None) -> None:
        if not isinstance(table, FrozenTable):
            raise TypeError(f"expected a frozen table, got {type(table).__name__}: give what freeze() returns")
        id_map: IdMap | None = ids if ids is None or isinstance(ids, IdMap) else IdMap.from_ids(ids)
        if id_map is not None and len(id_map) != table.num_embeddings:
            raise ValueError(f"{len(id_map):,} ids for a table of {table.num_embeddings:,} rows: give one id per row")
        self.table, self.ids = table, id_map
        self.query_weight = None if query_weight is None else _checked_weight(query_weight, table.embedding_dim)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, mmap: bool = True, verify: bool | None = None) -> Collection:
        """Read a folder that :meth:`save` or ``mgqe compress`` wrote.

        Args:
            folder: of the collection.
            mmap, verify: as for :func:`mgqe.load`.

        Raises:
            ArtifactError: (a ValueError) a folder of something else, or files that are missing, damaged, or of
                different saves. OSError: a file cannot be opened.
        """
        return cls(*read_folder(Path(folder), mmap, verify))

    def save(self, folder: str | os.PathLike[str]) -> int:
        """Write the collection to a folder, as a whole or not at all, and return the bytes of its files.

        Args:
            folder: made if it does not exist; otherwise empty, or one that holds a collection, which is replaced.

        Raises:
            FileExistsError: the folder holds other files. OSError: a file cannot be written.
        """
        return write_folder(Path(folder), self.table, self.ids, self.query_weight)

    def __len__(self) -> int:
        """N."""
        return self.table.num_embeddings

    def __contains__(self, one: Any) -> bool:
        try:
            return np.ndim(one) == 0 and int(self.rows([one], unknown=-1)[0]) >= 0
        except (TypeError, ValueError):  # of another type than the ids
            return False

    def __repr__(self) -> str:
        ids = "numbered rows" if self.ids is None else f"{self.ids.kind} ids of {self.ids.nbytes:,} bytes"
        return f"Collection({self.table!r}, {ids})"

    def rows(self, ids: Any, unknown: int | None = None) -> Tensor:
        """The rows of ids: int64, of the ids' shape. ``unknown``: the row for ids that are not there; else KeyError."""
        if self.ids is not None:
            return self.ids.rows(ids, unknown)
        rows = as_int64(plain_ids(ids))
        outside = (rows < 0) | (rows >= len(self))
        if bool(outside.any()):
            if unknown is None:
                raise KeyError(f"there is no row {int(rows[outside].flatten()[0])}: rows are 0 to {len(self) - 1}")
            return rows.masked_fill(outside, unknown)
        return rows

    def lookup(self, ids: Any, unknown: str = "error") -> Tensor:
        """The vectors of ids: float32 (..., d), for ids of the shape (...).

        Args:
            ids: one id, a list, an array, a tensor, or a column of a polars, pandas or Arrow frame.
            unknown: what ids that are not there give: "error"; "zeros"; or "fallback", the vector that the table has
                for them (``table.with_fallback``).

        Raises:
            KeyError: unknown ids; the message shows some. TypeError: ids of another type. ValueError: another
                ``unknown``, or a fallback that the table does not have.
        """
        if unknown not in UNKNOWN:
            raise ValueError(f"unknown must be one of {', '.join(UNKNOWN)}, got {unknown!r}")
        if unknown == "fallback" and getattr(self.table, "fallback", None) is None:
            raise ValueError('unknown="fallback" needs a table with one: table.with_fallback(vector)')
        rows = self.rows(ids, None if unknown == "error" else -1)
        if unknown == "fallback":
            return self.table.lookup(rows)
        return torch.where((rows < 0).unsqueeze(-1), 0.0, self.table.lookup(rows.clamp(min=0)))

    def to_frame(self, ids: Any = None, unknown: str = "error") -> Any:
        """A polars frame with columns id and vector, an array of d float32, of the ids, or of all.

        ``to_pandas()`` and ``to_arrow()`` of the frame make others of it.

        Args:
            ids: (n,) as in :meth:`lookup`; None for all, in row order. unknown: as in :meth:`lookup`.

        Raises:
            ImportError: polars is not installed. KeyError, TypeError, ValueError: as :meth:`lookup`.
        """
        pl = _polars("to_frame")
        if ids is None:
            vectors = self.table.lookup(torch.arange(len(self), device="cpu"))
            names: Any = range(len(self)) if self.ids is None else _listed(self.ids.ids(range(len(self))))
        else:
            vectors = self.lookup(ids, unknown)
            if vectors.ndim != 2:
                raise ValueError(f"ids must be a list, got the shape {tuple(vectors.shape[:-1])}")
            names = column_values(ids) if is_column(ids) else ids.tolist() if isinstance(ids, Tensor) else list(ids)
        shape = pl.Array(pl.Float32, self.table.embedding_dim)
        return pl.DataFrame({"id": names, "vector": pl.Series(vectors.cpu().numpy(), dtype=shape)})

    def topk(
        self, queries: Any, k: int = 10, *, exclude: Any = None, candidates: Any = None, score: str = "dot"
    ) -> Hits:
        """The k ids whose vectors score highest with each query, exactly, from the codes.

        Args:
            queries: floats (d,) or (B, d): a tensor, an array, a list, or a column of vectors of a frame.
            k: how many, 1 to N.
            exclude: ids not to return: a list for all queries, or B lists, one per query, or columns of these. Ids
                that are not there are left out.
            candidates: the only ids to return, in the same forms.
            score: "dot", weighted by :attr:`query_weight` where there is one, or "cosine".

        Returns:
            scores, falling, and ids; of B queries B lists. Where fewer than k ids may be returned, the rest is -inf
            and None.

        Raises:
            TypeError, ValueError: as :meth:`mgqe.CompactTable.topk`; a table of another kind than CompactTable.
        """
        if not isinstance(self.table, CompactTable):
            raise TypeError(f"a {type(self.table).__name__} has no top-K: make a table of codes, mgqe.compress_table")
        vectors = plain_vectors(queries, "queries")
        vectors = vectors.float() if vectors.dtype == torch.float64 else vectors
        if self.query_weight is not None and score == "dot" and vectors.shape[-1:] == self.query_weight.shape:
            vectors = vectors * self.query_weight.to(vectors)
        batched = vectors.ndim == 2
        scores, rows = self.table.topk(
            vectors,
            k,
            exclude=self._rows_of(exclude, batched),
            candidates=self._rows_of(candidates, batched),
            score=score,
        )
        return Hits(scores, self._ids_of(rows))

    def neighbours(self, one: Any, k: int = 10, *, score: str = "cosine") -> Hits:
        """The k ids most similar to one of the collection, that one left out. Raises KeyError for an unknown id."""
        return self.topk(self.lookup([one])[0], k, exclude=[one], score=score)

    def append(self, ids: Any, vectors: Any) -> None:
        """Add ids with their vectors, in this process; :meth:`save` writes them.

        Ids are numbered anew, which takes about a second per million of all ids: append many at once.

        Args:
            ids: (n,) new ids; of a collection without ids None, and the rows are numbered on.
            vectors: floats (n, d), as a tensor, an array, a list, or a column of vectors of a frame.

        Raises:
            ValueError: an id that is there already, or twice; not as many vectors as ids. TypeError: a table that
                cannot grow.
        """
        if not isinstance(self.table, CompactTable):
            raise TypeError(f"a {type(self.table).__name__} cannot grow")
        rows = plain_vectors(vectors, "vectors")
        if rows.ndim != 2:
            raise ValueError(f"vectors must have shape (n, {self.table.embedding_dim}), got {tuple(rows.shape)}")
        merged = self.ids
        if self.ids is not None:
            merged = self.ids.extend(ids)
            if (added := len(merged) - len(self)) != len(rows):
                raise ValueError(f"{added:,} ids and {len(rows):,} vectors: give one id per vector")
        elif ids is not None:
            raise ValueError("the collection has no ids of its own: append(None, vectors) numbers the rows on")
        self.table.append(rows)
        self.ids = merged

    def _rows_of(self, ids: Any, batched: bool) -> Any:
        """Rows of ids to leave out or keep; those that are not there are dropped."""
        if ids is None:
            return None
        ids = column_values(ids) if is_column(ids) else ids
        nested = batched and len(ids) and isinstance(ids[0], (list, tuple, np.ndarray, Tensor))
        if nested:
            return [self._known(each) for each in ids]
        return self._known(ids)

    def _known(self, ids: Any) -> Tensor:
        if not len(ids):
            return torch.empty(0, dtype=torch.int64, device="cpu")
        rows = self.rows(ids, unknown=-1)
        return rows[rows >= 0]

    def _ids_of(self, rows: Tensor) -> list[Any]:
        flat = rows.reshape(-1)
        if self.ids is None:
            named = flat.tolist()
        else:
            named = _listed(self.ids.ids(flat.clamp(min=0)))
        named = [None if row < 0 else each for row, each in zip(flat.tolist(), named, strict=True)]
        if rows.ndim == 1:
            return named
        k = rows.shape[1]
        return [named[start : start + k] for start in range(0, len(named), k)]


def _checked_weight(weight: Any, dim: int) -> Tensor:
    vector = plain_vectors(weight, "query_weight").detach().cpu().float()
    if tuple(vector.shape) != (dim,) or not bool(vector.isfinite().all()):
        raise ValueError(
            f"query_weight must be {dim} finite floats, one per coordinate, got shape {tuple(vector.shape)}"
        )
    return vector


def _polars(name: str) -> Any:
    try:
        import polars
    except ImportError as error:
        raise ImportError(f"{name} needs polars: pip install 'mgqe[recsys]'") from error
    return polars


def _listed(ids: Any) -> list[Any]:
    """Ids as a list of plain values."""
    return ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
