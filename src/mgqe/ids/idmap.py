"""The id map: external ids of any type, numbered 0 to N - 1 by frequency."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.checks.ids import check_ids, plain_ids
from mgqe.checks.scalars import as_int, optional_int
from mgqe.files.container import RESTORE, ArtifactError
from mgqe.ids.count_runs import CountRuns
from mgqe.ids.given import given_keys
from mgqe.ids.idmap_file import IdMapConfig, arrays_of, read_id_map, write_map
from mgqe.ids.index import CHUNK, MAX_IDS, MAX_SEEDS, Index, build_index
from mgqe.ids.keys import lookup_keys
from mgqe.ids.log_counts import DEFAULT_MEMORY, count_log
from mgqe.ids.logs.text_layout import TextLayout
from mgqe.ids.stored_ids import DamagedMap, HashedIds, IntegerIds, StoredIds, TextIds
from mgqe.ids.strings import Strings, hash_keys

MAX_UNKNOWN = 5  # unknown ids that an error names


class IdMap:
    """Maps external ids of any type to the rows of an embedding table, and back.

    :meth:`from_log` counts the ids of a log and numbers them by frequency. Row 0 is the most frequent id. Ids that
    occur equally often are in their own order, integers by value, strings by their bytes. Tiers are therefore ranges of
    rows, ``Tiers.from_fractions(len(map))`` or ``counts=map.counts``, and the frozen table has no tier map.
    :meth:`from_ids` numbers ids of rows that there are already.

    :meth:`save` writes a map to one file, and :meth:`load` maps that file into memory. A map never changes, so that
    any number of threads may use it. docs/large_logs.md leads from a log to a table,
    docs/format.md specifies the file.

    Example::

        ids = mgqe.IdMap.from_log("clicks-*.parquet", "item")
        rows = ids.rows(["shoe-17", "hat-3"])  # int64 tensor, for an embedding of len(ids) rows
        ids.ids(rows)  # ["shoe-17", "hat-3"]

    Attributes:
        kind: the type of the ids, ``"int64"``, ``"uint64"``, ``"string"`` or ``"binary"``.
        interactions: the number of ids in the log, those that min_count or max_ids cut off included.
        distinct: the number of different ids among these.
    """

    def __init__(
        self, ids: StoredIds, index: Index, runs: CountRuns, config: IdMapConfig, file: str | None = None
    ) -> None:
        self._ids, self._index, self._runs, self._config, self._file = ids, index, runs, config, file
        self.kind, self.interactions, self.distinct = config.kind, config.interactions, config.distinct

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
        """Count the ids of a log exactly, and number them by frequency. The log may be larger than memory.

        Args:
            source: a path, a folder of files as Spark writes it, a pattern (``"clicks-*.parquet"``), a list of these,
                or a polars frame.
            column: the column that holds the ids, or several columns that share one numbering. Lists in a cell are
                counted id by id. Columns of text files without a header are named by their numbers, from 1.
            min_count: leave out ids that occur less often.
            max_ids: keep at most this many ids, the most frequent ones.
            memory_limit: approximate bytes that counting may take. If it is too small for all different ids, these are
                counted in several passes over the log, each for a share of their hashes. The ids that are kept come on
                top, some 50 bytes per integer id while the map is made; min_count and max_ids bound them.
            kind: ``"int64"``, ``"uint64"``, ``"string"`` or ``"binary"``. By default it is the column's type. For text
                files it is guessed from the first rows, so pass ``"string"`` if later ids are no numbers.
            ignore: an id, or several, that are not counted, such as padding.
            keep_ids: False keeps 64-bit hashes of strings instead of their bytes. The map is smaller, has no
                :meth:`ids`, and takes an unknown string for a known one with probability N / 2^64.
            separator: of text files, one character or several, such as ``"::"``.
            quote: of text files, the character around fields that hold separators. ``""`` treats quotes as text, as
                is always done with separators of several characters and in RecBole's files.
            header: of text files, whether the first line has the columns' names. By default it has, and a first line
                that looks like data is an error.
            on_pass: called with (passes done, passes) before, between and after the passes over the log.

        Raises:
            ValueError: a row that cannot be read, a missing id (null, or in text an empty or a blank one), no ids, or
                none that occurs min_count times; the message names the file, the row if it is known, and the remedy.
            TypeError: a column of another type. KeyError: no such column. FileNotFoundError: no such file.
                ImportError: polars is not installed.
        """
        counted = count_log(
            source, column, min_count=min_count, max_ids=max_ids, memory_limit=memory_limit, kind=kind, ignore=ignore,
            keep_ids=keep_ids, layout=TextLayout.of(separator, quote, header), on_pass=on_pass,
        )  # fmt: skip
        config = IdMapConfig(counted.kind, counted.interactions, counted.distinct, 0)
        return cls._build(counted.take_ids(), counted.runs, config, keep_ids)

    @classmethod
    def from_ids(cls, ids: Any) -> IdMap:
        """Number ids that are all different in the order in which they are given: row i belongs to ``ids[i]``.

        Args:
            ids: (N,), one per row of a table: a list, a NumPy array, a tensor, or a column of a polars, pandas or Arrow
                frame. Integers make a map of kind "int64" (or "uint64", where one needs it), text "string", bytes
                "binary".

        Each id counts once, so that ``counts`` says nothing about frequency.

        Raises:
            ValueError: the same id twice, missing ids, or none. TypeError: ids of other types, or of several.

        Example:
            >>> import mgqe
            >>> ids = mgqe.IdMap.from_ids(["hat-3", "shoe-17"])
            >>> ids.rows(["shoe-17"]), ids.ids([0])
            (tensor([1]), ['hat-3'])
        """
        keys, kind = given_keys(ids)
        values, n = keys.keys, len(keys.keys)
        stored = values if isinstance(values, Strings) else values.view(kind)
        return cls._build(stored, CountRuns.of(np.ones(n, np.int64)), IdMapConfig(kind, n, n, 0), keep_ids=True)

    def extend(self, ids: Any) -> IdMap:
        """A map of these ids, whose rows and counts stay, and of others that are numbered on and count once each.

        Args:
            ids: (n,) as for :meth:`from_ids`, none of them in this map.

        Raises:
            ValueError: ids that are there already, or as for :meth:`from_ids`; the map was made with
                ``keep_ids=False``. TypeError: as for :meth:`from_ids`.
        """
        added = IdMap.from_ids(ids)
        new = _listed(added.ids(range(len(added))))
        known = self.rows(new, unknown=-1) >= 0
        if bool(known.any()):
            raise ValueError(f"{int(known.sum()):,} ids are there already, such as {new[int(known.nonzero()[0])]!r}")
        both = IdMap.from_ids([*_listed(self.ids(range(len(self)))), *new])
        runs = CountRuns.of(np.concatenate([self._runs.expand(), np.ones(len(new), np.int64)]))
        seen = self.interactions + len(new), self.distinct + len(new)
        return IdMap(both._ids, both._index, runs, IdMapConfig(both.kind, *seen, both._config.seed))

    @classmethod
    def _build(cls, keys: np.ndarray | Strings, runs: CountRuns, config: IdMapConfig, keep_ids: bool) -> IdMap:
        if len(keys) > MAX_IDS:
            raise ValueError(
                f"a map holds at most {MAX_IDS:,} ids, got {len(keys):,}: leave out some with min_count= or max_ids="
            )
        ids: StoredIds = (
            TextIds.of(keys, config.kind) if isinstance(keys, Strings) else IntegerIds.of(keys, config.kind)
        )
        for seed in range(MAX_SEEDS):
            hashes = np.empty(len(ids), np.uint64)
            for start in range(0, len(ids), CHUNK):
                end = min(start + CHUNK, len(ids))
                hashes[start:end] = ids.hashes(seed, start, end)
            stored: StoredIds = ids
            if not keep_ids:
                if len(np.unique(hashes)) < len(hashes):
                    continue
                stored = HashedIds(hashes.view(np.int64).copy(), config.kind, seed)
            index = build_index(hashes)
            if index is not None:
                return cls(stored, index, runs, IdMapConfig(config.kind, config.interactions, config.distinct, seed))
        raise ValueError("the ids collide under every seed of the hash, as only ids chosen for that purpose do")

    def rows(self, ids: Any, unknown: int | None = None) -> Tensor:
        """The rows of ids: int64, of the ids' shape.

        Args:
            ids: a tensor, a NumPy array, a column of a polars, pandas or Arrow frame, a list, or one id, of the map's
                kind.
            unknown: the row for unknown ids, such as -1 for a table with a fallback. By default they are an error.

        Raises:
            KeyError: unknown ids; the message shows some. TypeError: ids of another kind. ValueError: missing ids.
            ArtifactError: (a ValueError) the file is damaged where these ids are; the message names it.
        """
        unknown = optional_int("unknown", unknown)
        lookup = lookup_keys(ids, self.kind)
        rows = np.empty(len(lookup.keys), np.int64)
        for start in range(0, len(rows), CHUNK):
            rows[start : start + CHUNK] = self._rows_of_keys(lookup.keys[start : start + CHUNK])
        if lookup.outside is not None:
            rows[lookup.outside] = -1
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            if unknown is None:
                examples = ", ".join(map(repr, lookup.ids_at(missing[:MAX_UNKNOWN])))
                raise KeyError(
                    f"the map does not know {missing.size:,} of the ids: {examples}. Leave them out, or say with "
                    "unknown= what they give"
                )
            rows[missing] = unknown
        return torch.from_numpy(rows).reshape(lookup.shape)

    def _rows_of_keys(self, keys: np.ndarray | Strings) -> np.ndarray:
        """The row of each key, -1 for unknown ones: int64."""
        rows = np.full(len(keys), -1, np.int64)
        try:
            which, candidates = self._index.candidates(hash_keys(keys, self._config.seed))
            same = self._ids.equal(candidates, keys, which)
        except DamagedMap as error:
            raise self._damage_error(str(error)) from error
        rows[which[same]] = candidates[same]
        return rows

    def ids(self, rows: Any) -> Any:
        """The ids of rows: an int64 or uint64 array of the rows' shape; or a flat list of str or bytes.

        Raises:
            IndexError: a row outside 0 to N - 1. TypeError: rows that are no integers. ValueError: the map was made
                with ``keep_ids=False``. ArtifactError: (a ValueError) the file is damaged where these ids are; the
                message names it.
        """
        checked_rows = check_ids(plain_ids(rows), len(self), "row").cpu().numpy()
        try:
            return self._ids.take(checked_rows)
        except DamagedMap as error:
            raise self._damage_error(str(error)) from error

    def _damage_error(self, what: str) -> ArtifactError:
        return ArtifactError(f"{'' if self._file is None else f'{self._file}: '}the map is damaged: {what}. {RESTORE}")

    @property
    def counts(self) -> Tensor:
        """How often the id of each row occurred: int64 (N,), in falling order, for ``counts=`` of MGQEmbedding."""
        return torch.from_numpy(self._runs.expand())

    def share(self, rows: int) -> float:
        """The share of all interactions that the ``rows`` most frequent ids have, 0 to 1."""
        return self._runs.sum_of_first(as_int("rows", rows, 0)) / self.interactions

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
        """Bytes of all arrays, without the file's header."""
        return sum(self.nbytes_by_part().values())

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the map to one whole file and return its bytes.

        Raises:
            OSError: it cannot be written; the message names the path, the bytes needed and the remedy.
        """
        return write_map(path, self._ids, self._index, self._runs, self._config)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = True, verify: bool | None = None) -> IdMap:
        """Read a map that :meth:`save` wrote. It is mapped into memory, so that look-ups read the pages they need.

        Args:
            path: the file.
            mmap: False reads all of it into memory.
            verify: compare the file with its checksums, as for :func:`mgqe.load`.

        Raises:
            ArtifactError: (a ValueError) the file is of another kind or version, damaged or cut short, or its arrays
                contradict each other. A look-up, or :meth:`validate`, raises the same error when it meets damage in
                arrays that were not verified.
            OSError: the file cannot be opened.
        """
        return cls(*read_id_map(path, mmap, verify), os.fspath(path))

    def validate(self) -> None:
        """Look up every id, which takes seconds for millions of ids; :func:`mgqe.verify` is faster.

        Raises:
            ArtifactError: an id is not found in its row. (Of a map with ``keep_ids=False`` a hash may be damaged in
                bits that the index does not use.)
        """
        for start in range(0, len(self), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(self)))
            try:
                hashes = self._ids.hashes(self._config.seed, int(rows[0]), int(rows[-1]) + 1)
                which, candidates = self._index.candidates(hashes)
            except DamagedMap as error:
                raise self._damage_error(str(error)) from error
            hits = np.bincount(which[candidates == rows[which]], minlength=len(rows))
            if (hits != 1).any():
                raise self._damage_error(f"row {int(rows[hits != 1][0])} is not found by its id")


def _listed(ids: Any) -> list[Any]:
    return ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
