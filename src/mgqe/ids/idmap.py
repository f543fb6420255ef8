"""IdMap: ids of any type <-> rows 0 to N - 1, the most frequent id first."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.checks.ids import check_ids
from mgqe.checks.scalars import as_int, optional_int
from mgqe.files.container import RESTORE, ArtifactError
from mgqe.ids.count_runs import CountRuns
from mgqe.ids.idmap_file import IdMapConfig, arrays_of, read_id_map, write_map
from mgqe.ids.index import CHUNK, MAX_IDS, MAX_SEEDS, Index, build_index
from mgqe.ids.keys import given
from mgqe.ids.log_counts import DEFAULT_MEMORY, count_log
from mgqe.ids.logs.text_layout import TextLayout
from mgqe.ids.stored_ids import DamagedMap, HashedIds, IntegerIds, StoredIds, TextIds
from mgqe.ids.strings import Strings, hash_keys

MOST_SHOWN = 5  # unknown ids in an error


class IdMap:
    """Ids of any type <-> the rows of an embedding table, in the order of frequency.

    Row 0 is the most frequent id; ids that occur equally often are in their own order, integers by value, strings by
    their bytes. So tiers are ranges of rows: ``Tiers.from_fractions(len(map))``, or ``counts=map.counts``, and the
    frozen table has no tier map.

    Made by :meth:`from_log`; :meth:`save` writes one file, which :meth:`load` maps into memory. Never changes, so that
    any number of threads may use it. docs/large_logs.md has the way from a log to a table, docs/format.md the bytes.

    Attributes:
        kind: ``"int64"``, ``"uint64"``, ``"string"`` or ``"binary"``, what the ids are.
        interactions: ids counted, those that were cut off by min_count or max_ids included.
        distinct: different ids among these, likewise.
    """

    def __init__(
        self, ids: StoredIds, index: Index, runs: CountRuns, about: IdMapConfig, file: str | None = None
    ) -> None:
        self._ids, self._index, self._runs, self._about, self._file = ids, index, runs, about, file
        self.kind, self.interactions, self.distinct = about.kind, about.interactions, about.distinct

    @classmethod
    def from_log(
        cls,
        source: Any,
        column: str | int | Sequence[str | int],
        *,
        min_count: int = 1,
        max_ids: int | None = None,
        memory_limit: int = DEFAULT_MEMORY,
        kind: str | None = None,
        ignore: Any = (),
        keep_ids: bool = True,
        separator: str = ",",
        quote: str | None = '"',
        header: bool | None = None,
        on_pass: Callable[[int, int], object] | None = None,
    ) -> IdMap:
        """Count the ids of Parquet or text files of any length, exactly, and number them by frequency.

        Args:
            source: a path, a folder of files as Spark writes it, a pattern (``"clicks-*.parquet"``), a list of these,
                or a polars frame.
            column: the column that holds ids, or several that share one numbering. Lists in a cell are counted id by
                id. Of text without a header, its number, from 1.
            min_count: leave out ids that occur less often.
            max_ids: keep at most so many, the most frequent.
            memory_limit: bytes that counting may take, about. If the different ids are too many for it, they are
                counted in parts, by their hash, and the log is read once a part. Not bounded by it: the ids that are
                kept, some 50 bytes each for integers while the map is made; min_count and max_ids bound these.
            kind: ``"int64"``, ``"uint64"``, ``"string"`` or ``"binary"``. By default what the column holds; of text
                files this is guessed from the first rows, so say ``"string"`` if ids only begin as numbers.
            ignore: an id, or several, that are not counted, such as padding.
            keep_ids: False: of strings, keep 64-bit hashes instead of bytes. The map is smaller, has no :meth:`ids`,
                and takes an unknown string for a known one with probability N / 2^64.
            separator: of text files, one character or several, such as ``"::"``.
            quote: of text files, the character around fields that hold separators; ``""``: there is none, and quotes
                are text. There is none either with separators of several characters, and in RecBole's files.
            header: of text files, whether the first line has the columns' names. By default it has; a first line
                that looks like data is an error.
            on_pass: called with (passes done, passes) before, between and after the passes over the log.

        Raises:
            ValueError: a row that cannot be read, a missing id (null, or in text an empty or a blank one), no ids at
                all, none that min_count leaves; the message names the file, the row where it can, and the remedy.
            TypeError: a column that holds something else. KeyError: no such column. FileNotFoundError. ImportError:
                polars is not installed.
        """
        counted = count_log(
            source, column, min_count=min_count, max_ids=max_ids, memory_limit=memory_limit, kind=kind, ignore=ignore,
            keep_ids=keep_ids, layout=TextLayout.of(separator, quote, header), on_pass=on_pass,
        )  # fmt: skip
        about = IdMapConfig(counted.kind, counted.interactions, counted.distinct, 0)
        return cls._build(counted.take_ids(), counted.runs, about, keep_ids)

    @classmethod
    def _build(cls, keys: np.ndarray | Strings, runs: CountRuns, about: IdMapConfig, keep_ids: bool) -> IdMap:
        if len(keys) > MAX_IDS:
            raise ValueError(f"a map holds at most {MAX_IDS:,} ids, got {len(keys):,}: cut with min_count= or max_ids=")
        ids: StoredIds = TextIds.of(keys, about.kind) if isinstance(keys, Strings) else IntegerIds.of(keys, about.kind)
        for seed in range(MAX_SEEDS):
            hashes = np.empty(len(ids), np.uint64)
            for start in range(0, len(ids), CHUNK):
                end = min(start + CHUNK, len(ids))
                hashes[start:end] = ids.hashes(seed, start, end)
            kept: StoredIds = ids
            if not keep_ids:
                if len(np.unique(hashes)) < len(hashes):
                    continue
                kept = HashedIds(hashes.view(np.int64).copy(), about.kind, seed)
            index = build_index(hashes)
            if index is not None:
                return cls(kept, index, runs, IdMapConfig(about.kind, about.interactions, about.distinct, seed))
        raise ValueError("the ids share their hashes under every seed, which does not happen by chance")

    def rows(self, ids: Any, unknown: int | None = None) -> Tensor:
        """The rows of ids: int64, of the ids' shape.

        Args:
            ids: a tensor, a NumPy array, a polars Series, a list, or one id, of the map's kind.
            unknown: the row of ids that the map does not know, such as -1 for a table with a fallback. By default
                they are an error.

        Raises:
            KeyError: unknown ids; the message shows some. TypeError: ids of another kind. ValueError: missing ids.
            ArtifactError: (a ValueError) the file is damaged where these ids are; the message names it.
        """
        unknown = optional_int("unknown", unknown)
        asked = given(ids, self.kind)
        found = np.empty(len(asked.keys), np.int64)
        for start in range(0, len(found), CHUNK):
            found[start : start + CHUNK] = self._find(asked.keys[start : start + CHUNK])
        if asked.outside is not None:
            found[asked.outside] = -1
        missing = np.flatnonzero(found < 0)
        if missing.size:
            if unknown is None:
                shown = ", ".join(map(repr, asked.some(missing[:MOST_SHOWN])))
                raise KeyError(
                    f"the map does not know {missing.size:,} of the ids: {shown}. Leave them out, or say which row is "
                    "theirs with unknown= (-1 where the table has a fallback)"
                )
            found[missing] = unknown
        return torch.from_numpy(found).reshape(asked.shape)

    def _find(self, keys: np.ndarray | Strings) -> np.ndarray:
        """The row of each key, -1 where there is none: int64."""
        found = np.full(len(keys), -1, np.int64)
        try:
            which, rows = self._index.candidates(hash_keys(keys, self._about.seed))
            same = self._ids.equal(rows, keys, which)
        except DamagedMap as error:
            raise self._refusal(str(error)) from error
        found[which[same]] = rows[same]
        return found

    def ids(self, rows: Any) -> Any:
        """The ids of rows: an int64 or uint64 array of the rows' shape; or a flat list of str or bytes.

        Raises:
            IndexError: a row outside 0 to N - 1. TypeError: no integers. ValueError: the map was made with
                ``keep_ids=False``; or, as an ArtifactError that names the file, it is damaged where these ids are.
        """
        wanted = check_ids(torch.as_tensor(rows), len(self), "row").cpu().numpy()
        try:
            return self._ids.take(wanted)
        except DamagedMap as error:
            raise self._refusal(str(error)) from error

    def _refusal(self, what: str) -> ArtifactError:
        return ArtifactError(f"{'' if self._file is None else f'{self._file}: '}the map is damaged: {what}. {RESTORE}")

    @property
    def counts(self) -> Tensor:
        """How often each row's id occurred: int64 (N,), never rising. For ``counts=`` of MGQEmbedding and the like."""
        return torch.from_numpy(self._runs.expand())

    def share(self, rows: int) -> float:
        """The share of all interactions that the ``rows`` most frequent ids have, 0 to 1."""
        return self._runs.head(as_int("rows", rows, 0)) / self.interactions

    def __len__(self) -> int:
        """N, the number of rows."""
        return len(self._ids)

    def __repr__(self) -> str:
        return f"IdMap({len(self):,} ids, {self.kind}, {self.interactions:,} interactions, {self.nbytes:,} bytes)"

    def nbytes_by_part(self) -> dict[str, int]:
        """Bytes of each array, by its name in the file."""
        return {name: array.nbytes for name, array in arrays_of(self._ids, self._index, self._runs).items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; the file has its header besides."""
        return sum(self.nbytes_by_part().values())

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the map to one file and return its bytes. The file appears whole or not at all.

        Raises:
            OSError: it cannot be written; the message names the path, the bytes needed and the remedy.
        """
        return write_map(path, self._ids, self._index, self._runs, self._about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = True, verify: bool | None = None) -> IdMap:
        """Read a map that :meth:`save` wrote; mapped into memory, so that look-ups read the pages they need.

        Args:
            path: the file.
            mmap: False reads all of it into memory.
            verify: compare the file with its checksums, as for :func:`mgqe.load`.

        Raises:
            ArtifactError: (a ValueError) not such a file, of another version, damaged, cut short, or its parts
                contradict each other. Damage inside arrays that were not verified shows when a look-up meets it, or
                :meth:`validate`, as the same error.
            OSError: the file cannot be opened.
        """
        return cls(*read_id_map(path, mmap, verify), os.fspath(path))

    def validate(self) -> None:
        """Look every id up. Takes seconds for millions of ids; :func:`mgqe.verify` compares checksums, which is faster.

        Raises:
            ArtifactError: an id is not found in its row. (Of a map with ``keep_ids=False`` a hash may be damaged in
                bits that the index does not use.)
        """
        for start in range(0, len(self), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(self)))
            try:
                hashes = self._ids.hashes(self._about.seed, int(rows[0]), int(rows[-1]) + 1)
                which, found = self._index.candidates(hashes)
            except DamagedMap as error:
                raise self._refusal(str(error)) from error
            hits = np.bincount(which[found == rows[which]], minlength=len(rows))
            if (hits != 1).any():
                raise self._refusal(f"row {int(rows[hits != 1][0])} is not found by its id")
