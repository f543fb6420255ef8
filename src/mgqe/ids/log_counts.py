"""Exact counts of the ids of a log, of which neither the rows nor the different ids need to fit in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mgqe.checks.scalars import as_int, optional_int
from mgqe.ids.count_runs import CountRuns
from mgqe.ids.keys import strings_of
from mgqe.ids.logs.bad_rows import explain
from mgqe.ids.logs.frames import collect, import_polars, is_frame
from mgqe.ids.logs.id_columns import (
    FLOAT,
    INTEGERS,
    KINDS,
    id_frame,
    kind_of_column,
    kind_of_type,
    polars_type,
    raw_ids,
)
from mgqe.ids.logs.log import Log, column_names, is_path, open_log
from mgqe.ids.logs.text_layout import TextLayout
from mgqe.ids.strings import WORD, Strings

DEFAULT_MEMORY = 4 << 30  # bytes
MAX_PASSES = 4096
SAMPLE = 1024  # one hash out of this many is counted to estimate the number of different ids
SMALL = 1 << 20  # a log of no more ids is not sampled, since it has no more different ones
# Bytes of polars' hash tables per different id, measured by benchmarks/speed/idmap.py; for text, 3 per byte of the id
# come on top.
INTEGER_BYTES, TEXT_BYTES = 90, 160
SLICE = 1 << 20  # ids turned into bytes at a time


@dataclass
class CountedIds:
    """The ids of a log by falling count, those of equal count by id.

    Attributes:
        series: the ids, a polars Series; None after :meth:`take_ids`.
        runs: their counts.
    """

    series: Any
    runs: CountRuns
    kind: str
    interactions: int
    distinct: int

    def take_ids(self) -> np.ndarray | Strings:
        """The ids as int64, uint64 or strings in one buffer. The series, which may be half the memory, is freed."""
        series, self.series = self.series, None
        if self.kind in INTEGERS:
            array: np.ndarray = series.to_numpy(writable=True)
            return array
        lengths = _lengths(series, self.kind).to_numpy().astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        buffer, end = np.zeros(int(lengths.sum()) + WORD, np.uint8), 0
        for row in range(0, len(series), SLICE):
            content = strings_of(series.slice(row, SLICE).to_list(), self.kind).buffer[:-WORD]
            start, end = end, end + len(content)
            buffer[start:end] = content
        return Strings(buffer, starts, lengths)


def count_log(
    source: Any,
    column: str | int | Sequence[str | int],
    *,
    min_count: int,
    max_ids: int | None,
    memory_limit: int,
    kind: str | None,
    ignore: Any,
    keep_ids: bool,
    layout: TextLayout,
    on_pass: Callable[[int, int], object] | None,
) -> CountedIds:
    """See :meth:`mgqe.IdMap.from_log`."""
    min_count, max_ids = as_int("min_count", min_count, 1), optional_int("max_ids", max_ids, 1)
    memory_limit = as_int("memory_limit", memory_limit, 1)
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not is_frame(source) and not is_path(source):
        raise TypeError(f"expected a path, a pattern, a list of paths or a polars frame, got {type(source).__name__}")
    pl = import_polars()
    names = column_names(column)
    if not names:
        raise ValueError("column names no column")
    with open_log(pl, source, names, layout) as log:
        kind = _common_kind(pl, log, names, kind)
        if not keep_ids and kind in INTEGERS:
            raise ValueError(f"keep_ids=False is for strings and binaries, got {kind}: these are kept as they are")
        ids = id_frame(pl, log, names, kind)
        try:
            if ignored := _ids_to_ignore(ignore, kind):
                values = pl.Series(ignored, dtype=polars_type(pl, kind))
                ids = ids.filter(
                    pl.all_horizontal(pl.col("id").is_null() | (pl.col("id") != value) for value in values)
                )
            total = int(collect(ids.select(pl.len())).item())
            if not total:
                raise ValueError(f"{source}: there are no ids to count in {', '.join(names)}")
            passes = _num_passes(pl, ids, kind, total, memory_limit)
            counts = _count(pl, ids, kind, min_count, max_ids, passes, on_pass or (lambda done, of: None))
        except (pl.exceptions.PolarsError, _MissingIds):
            raise explain(pl, log, names, kind) from None
    if counts.interactions != total:
        raise ValueError(
            f"{source}: changed while it was counted: first {total:,} ids, then {counts.interactions:,}; count "
            "again when no program writes to it"
        )
    return counts


def _common_kind(pl: Any, log: Log, names: list[str], kind: str | None) -> str:
    """One kind for the ids of all columns: ``kind``, or theirs; TypeError if they differ."""
    if kind is not None:
        for name in names:
            for part in log.parts:
                kind_of_type(name, raw_ids(pl, part, name)[1])  # raises TypeError for types that ids cannot have
        return kind
    kinds = [kind_of_column(pl, log, name) for name in names]
    for name, column_kind in zip(names, kinds):
        if column_kind == FLOAT:
            raise TypeError(
                f"column {name!r}: expected integers, strings or binaries, got Float64: cast the ids to one of these, "
                "or say kind= (--kind)"
            )
    if len({column_kind in INTEGERS for column_kind in kinds}) > 1 or ("string" in kinds and "binary" in kinds):
        types = ", ".join(f"{name!r} {log.parts[0].types[name] or each}" for name, each in zip(names, kinds))
        raise TypeError(f"the columns have ids of several kinds ({types}): choose one with kind= (--kind)")
    return "uint64" if "uint64" in kinds else kinds[0]


def _ids_to_ignore(ignore: Any, kind: str) -> list[Any]:
    """The ids of ``ignore``, one or several, that may occur; TypeError if one is of another kind."""
    if isinstance(ignore, (np.generic, np.ndarray, Tensor)):
        ignore = ignore.tolist()
    ids: list[Any] = [ignore] if isinstance(ignore, (int, str, bytes)) else [_plain(value) for value in ignore]
    python_type: Any = int if kind in INTEGERS else str if kind == "string" else bytes
    for value in ids:
        if not isinstance(value, python_type) or isinstance(value, bool):
            raise TypeError(f"ignore= must name ids of kind {kind}, got {value!r}")
    low, high = (0, 2**64) if kind == "uint64" else (-(2**63), 2**63)
    return [value for value in ids if kind not in INTEGERS or low <= value < high]


def _plain(value: Any) -> Any:
    """A NumPy scalar, or an array or tensor without an axis, as a plain Python value."""
    return value.item() if isinstance(value, (np.generic, np.ndarray, Tensor)) and value.ndim == 0 else value


def _lengths(series: Any, kind: str) -> Any:
    """Bytes of each string or binary; polars has a method for the size of binaries only from 1.8 on."""
    return series.str.len_bytes() if kind == "string" else series.bin.encode("hex").str.len_bytes() // 2


def _count(
    pl: Any,
    ids: Any,
    kind: str,
    min_count: int,
    max_ids: int | None,
    passes: int,
    on_pass: Callable[[int, int], object],
) -> CountedIds:
    interactions, distinct = 0, 0
    frames: list[Any] = []
    for number in range(passes):
        on_pass(number, passes)
        ids_of_pass = ids
        if passes > 1:  # the first pass looks for missing ids as well
            in_pass = pl.col("id").hash(0) % passes == number
            ids_of_pass = ids.filter(in_pass | pl.col("id").is_null() if number == 0 else in_pass)
        counts = collect(ids_of_pass.group_by("id").agg(pl.len().alias("count")))
        if counts["id"].null_count():
            raise _MissingIds
        interactions += int(counts["count"].cast(pl.Int64).sum())
        distinct += counts.height
        counts = counts.filter(pl.col("count") >= min_count) if min_count > 1 else counts
        frames.append(counts)
        if max_ids is not None and sum(frame.height for frame in frames) > max_ids:
            sorted_ids, runs = _sort(pl, frames)
            best = pl.DataFrame({"id": sorted_ids, "count": runs.expand()}).head(max_ids)
            frames = [best.cast({"count": counts["count"].dtype})]
        del counts  # before the next pass takes its memory
    on_pass(passes, passes)
    if not interactions:
        raise ValueError("there are no ids to count")
    if not any(frame.height for frame in frames):
        raise ValueError(f"none of the {distinct:,} different ids occurs {min_count:,} times: lower min_count")
    return CountedIds(*_sort(pl, frames), kind, interactions, distinct)


def _sort(pl: Any, frames: list[Any]) -> tuple[Any, CountRuns]:
    """(ids, counts) of the frames by falling count, then by id. The list of frames is emptied to free its memory.

    Sorting by both columns at once takes several times as long, and several times the memory.
    """
    counts = pl.concat(frames)
    frames.clear()
    counts = counts.sort("count", descending=True)
    runs = CountRuns.of(counts["count"].to_numpy())
    lengths = np.diff(runs.ends, prepend=0)
    ids = [counts["id"].slice(end - length, length).sort() for end, length in zip(runs.ends.tolist(), lengths.tolist())]
    return pl.concat(ids), runs


def _num_passes(pl: Any, ids: Any, kind: str, total: int, memory_limit: int) -> int:
    """The passes in which the different ids fit the memory, by an estimate from one of 1,024 hashes.

    The estimate is typically 3% off.
    """
    distinct, each = total, INTEGER_BYTES if kind in INTEGERS else TEXT_BYTES
    if total * each > memory_limit and total > SMALL:
        sample = collect(ids.filter(pl.col("id").hash(1) % SAMPLE == 0).group_by("id").agg()).filter(
            pl.col("id").is_not_null()
        )
        distinct = min(total, SAMPLE * (sample.height + 1))
        if kind not in INTEGERS and sample.height:
            each += round(3 * float(_lengths(sample["id"], kind).mean()))
    return max(1, min(MAX_PASSES, -(-distinct * each * 11 // 10 // memory_limit)))


class _MissingIds(Exception):
    """There are nulls among the ids."""
