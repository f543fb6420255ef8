"""A frozen table that is read from its file: look-ups, bags and top-K."""

from __future__ import annotations

import ctypes
import os
import weakref
from ctypes import c_int32, c_int64, c_void_p
from typing import Any, NamedTuple

import numpy as np

from mgqe_reader.arrays import floats, id_lists, integers
from mgqe_reader.library import check, library, open_handle

POOLING = {"sum": 0, "mean": 1, "max": 2}
SCORES = {"dot": 0, "cosine": 1}


class TopK(NamedTuple):
    """What a search returns; both (B, k), or (k,) for a single query."""

    scores: np.ndarray
    ids: np.ndarray


class _Search(ctypes.Structure):
    """mgqe_reader_search."""

    _fields_ = (
        ("score", c_int32),
        ("threads", c_int32),
        ("bias", c_void_p),
        ("excluded", c_void_p),
        ("excluded_offsets", c_void_p),
        ("num_excluded", c_int64),
        ("candidates", c_void_p),
        ("candidate_offsets", c_void_p),
        ("num_candidates", c_int64),
    )


class Table:
    """An open table, which :func:`load` makes. Any number of threads may use it.

    Attributes:
        num_embeddings: N.
        embedding_dim: d.
        padding_idx: the id that looks up as zeros, or None.
        fallback: float32 (d,), what ids outside the table look up as; None: they are an IndexError.
        threads: how many a call may use; 0 for as many as there are processors.
    """

    def __init__(self, handle: int, threads: int = 0) -> None:
        lib = library()
        self._handle, self._lib, self.threads = handle, lib, threads
        weakref.finalize(self, lib.mgqe_reader_close, handle)
        self.num_embeddings: int = lib.mgqe_reader_num_embeddings(handle)
        self.embedding_dim: int = lib.mgqe_reader_embedding_dim(handle)
        padding = lib.mgqe_reader_padding_idx(handle)
        self.padding_idx: int | None = None if padding < 0 else padding
        self.fallback = self.copied("mgqe_reader_fallback")

    def copied(self, function: str) -> np.ndarray | None:
        """The d floats that a function of the library points to, or None."""
        address = getattr(self._lib, function)(self._handle)
        return None if address is None else np.array((ctypes.c_float * self.embedding_dim).from_address(address))

    def __len__(self) -> int:
        """N."""
        return self.num_embeddings

    def __repr__(self) -> str:
        return f"Table({self.num_embeddings:,} x {self.embedding_dim})"

    def __getitem__(self, ids: Any) -> np.ndarray:
        """Rows of ids, as :meth:`lookup` returns them; of a slice, its rows."""
        return self.lookup(np.arange(*ids.indices(len(self))) if isinstance(ids, slice) else ids)

    @property
    def handle(self) -> int:
        """The ``mgqe_reader`` of the C interface, which lives as long as this object."""
        return self._handle

    def lookup(self, ids: Any) -> np.ndarray:
        """Rows of ids: integers (...) -> float32 (..., d); zeros for ``padding_idx``.

        Raises:
            TypeError: ids that are no integers. IndexError: ids outside a table without a fallback.
        """
        ids = integers(ids)
        rows = np.empty((*ids.shape, self.embedding_dim), np.float32)
        check(self._lib.mgqe_reader_lookup(self._handle, ids.ctypes.data, ids.size, rows.ctypes.data, self.threads))
        return rows

    def bag(
        self,
        ids: Any,
        offsets: Any = None,
        mode: str = "sum",
        per_sample_weights: Any = None,
        include_last_offset: bool = False,
    ) -> np.ndarray:
        """Sums, means or maxima of bags of rows -> float32 (B, d), as ``mgqe.CompactTable.bag`` and nn.EmbeddingBag.

        Args:
            ids: integers (B, L), or (n,) together with ``offsets``. Ids equal to ``padding_idx`` are left out, also of
                a mean's count; a bag without ids gives zeros.
            offsets: integers (B,), where each bag starts; (B + 1,) with ``include_last_offset``, the last being n.
            mode: "sum", "mean" or "max".
            per_sample_weights: floats like ids, only for "sum".

        Raises:
            TypeError: other types. ValueError: shapes, modes or offsets that do not fit. IndexError: as
                :meth:`lookup`.
        """
        if mode not in POOLING:
            raise ValueError(f"mode must be one of {', '.join(POOLING)}, got {mode!r}")
        ids = integers(ids)
        if (ids.ndim, offsets is None) not in ((2, True), (1, False)):
            raise ValueError(f"expected ids (B, L), or ids (n,) with offsets (B,), got ids of shape {ids.shape}")
        if offsets is None and ids.size:
            count, starts = ids.shape[0], None
        else:
            starts = np.zeros(ids.shape[0], np.int64) if offsets is None else integers(offsets, "offsets")
            if include_last_offset and (starts.size == 0 or starts[-1] != ids.size):
                raise ValueError(f"with include_last_offset the last offset must be the number of ids, {ids.size}")
            starts = starts[:-1] if include_last_offset else starts
            if starts.ndim != 1:
                raise ValueError(f"offsets must have shape (B,), got {starts.shape}")
            count = starts.shape[0]
        weights = None if per_sample_weights is None else floats(per_sample_weights, "per_sample_weights")
        if weights is not None and (weights.shape != ids.shape or mode != "sum"):
            raise ValueError(f'per_sample_weights are for mode="sum" only, and must be shaped like ids, {ids.shape}')
        pooled = np.empty((count, self.embedding_dim), np.float32)
        check(
            self._lib.mgqe_reader_bag(
                self._handle,
                ids.ctypes.data,
                ids.size,
                None if starts is None else starts.ctypes.data,
                count,
                POOLING[mode],
                None if weights is None else weights.ctypes.data,
                pooled.ctypes.data,
                self.threads,
            )
        )
        return pooled

    def topk(
        self, queries: Any, k: int, exclude: Any = None, candidates: Any = None, score: str = "dot", bias: Any = None
    ) -> TopK:
        """The k ids whose vectors score highest with each query, exactly, without decoding the table.

        Args:
            queries: floats (d,) or (B, d).
            k: 1 to N.
            exclude: ids not to return: (n,) for all queries; (B, n), -1 for no id; B lists; or a bool mask (N,) or
                (B, N), True for ids to leave out.
            candidates: the only ids to return, in the same forms.
            score: "dot", the inner product, or "cosine".
            bias: floats (N,), added to the scores, with "dot" alone.

        Returns:
            scores float32 (B, k), falling, and ids int64 (B, k), ascending among equal scores; (k,) for one query.
            Where fewer than k ids may be returned, the rest is -infinity and -1.

        Raises:
            TypeError: other types. ValueError: shapes that do not fit, NaN, k outside 1 .. N, scores that leave
                float32. IndexError: an id outside the table.
        """
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        vectors = floats(queries, "queries")
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != self.embedding_dim:
            d = self.embedding_dim
            raise ValueError(f"queries must have shape ({d},) or (B, {d}), got {vectors.shape}")
        count = 1 if vectors.ndim == 1 else vectors.shape[0]
        search, keep = _Search(score=SCORES[score], threads=self.threads), [vectors]
        if bias is not None:
            values = floats(bias, "bias")
            if values.shape != (len(self),):
                raise ValueError(f"bias must have one number per id, shape ({len(self)},), got {values.shape}")
            search.bias = values.ctypes.data
            keep.append(values)
        for name, listed in (("excluded", exclude), ("candidates", candidates)):
            if listed is None:
                continue
            ids, offsets = id_lists(name, listed, count, len(self))
            setattr(search, name, ids.ctypes.data)
            setattr(search, f"num_{name}", ids.size)
            keep.append(ids)
            if offsets is not None:
                setattr(search, "excluded_offsets" if name == "excluded" else "candidate_offsets", offsets.ctypes.data)
                keep.append(offsets)
        k = int(k)
        size = max(0, k) if k <= len(self) else 0  # the library refuses other numbers
        scores, found = np.empty((count, size), np.float32), np.empty((count, size), np.int64)
        check(
            self._lib.mgqe_reader_topk(
                self._handle, vectors.ctypes.data, count, k, ctypes.byref(search), scores.ctypes.data, found.ctypes.data
            )
        )
        return TopK(scores[0], found[0]) if vectors.ndim == 1 else TopK(scores, found)


def load(path: str | os.PathLike[str], *, mmap: bool = True, verify: bool | None = None, threads: int = 0) -> Table:
    """Open a table: a file that ``mgqe.save`` wrote, with what was appended to it, a folder of shards, or a collection.

    Args:
        path: of the file or folder.
        mmap: map the files, which must then not be cut short; False reads them into memory.
        verify: compare the files with their checksums. None: the header, and the tensors, smallest first, that have no
            more than 64 MiB together; without ``mmap`` all. True: all. False: none.
        threads: how many a call may use; 0 for as many as there are processors.

    Raises:
        ArtifactError: (a ValueError) a file is damaged, or of a kind or version that this reader does not know.
        OSError: it cannot be opened. ImportError: the compiled library is not there.
    """
    return Table(open_handle("mgqe_reader_open", path, mmap, verify), threads)
