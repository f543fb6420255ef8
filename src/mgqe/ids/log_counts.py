"""Exact counts of the ids in a log that does not fit memory, nor perhaps its different ids all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mgqe.checks.scalars import as_int, optional_int
from mgqe.ids.keys import INTEGERS, KINDS, strings_of
from mgqe.ids.logs.bad_rows import explain
from mgqe.ids.logs.files import Log, is_path, names_of, open_log
from mgqe.ids.logs.frames import collect, is_frame, polars
from mgqe.ids.logs.ids import FLOAT, ids_of, kind_of, kind_of_column, raw_ids, type_of
from mgqe.ids.logs.layout import Layout
from mgqe.ids.runs import Runs
from mgqe.ids.strings import WORD, Strings

DEFAULT_MEMORY = 4 << 30  # bytes
MAX_PARTS = 4096
SAMPLE = 1024  # of so many hashes one is counted to estimate how many different ids there are
SMALL = 1 << 20  # logs of so few ids are not sampled: there are as many different ones at most
# Bytes of polars' hash tables a different id, measured (benchmarks/speed/idmap.py); text: and 3 for each of its own.
INTEGER_BYTES, TEXT_BYTES = 90, 160
SLICE = 1 << 20  # ids turned into bytes at a time


@dataclass
class Counted:
    """Ids by falling count, equal counts by id.

    Attributes:
        series: polars Series; None once the ids have been taken.
        runs: their counts.
    """

    series: Any
    runs: Runs
    kind: str
    interactions: int
    distinct: int

    def take_ids(self) -> np.ndarray | Strings:
        """The ids, as int64, uint64 or strings in one buffer; the series is let go, which may be half the memory."""
        series, self.series = self.series, None
        if self.kind in INTEGERS:
            array: np.ndarray = series.to_numpy(writable=True)
            return array
        lengths = _lengths(series, self.kind).to_numpy().astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        buffer, at = np.zeros(int(lengths.sum()) + WORD, np.uint8), 0
        for start in range(0, len(series), SLICE):
            part = strings_of(series.slice(start, SLICE).to_list(), self.kind).buffer[:-WORD]
            buffer[at : at + len(part)] = part
            at += len(part)
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
    layout: Layout,
    on_pass: Callable[[int, int], object] | None,
) -> Counted:
    """See :meth:`mgqe.IdMap.from_log`."""
    min_count, max_ids = as_int("min_count", min_count, 1), optional_int("max_ids", max_ids, 1)
    memory_limit = as_int("memory_limit", memory_limit, 1)
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not is_frame(source) and not is_path(source):
        raise TypeError(f"expected a path, a pattern, a list of paths or a polars frame, got {type(source).__name__}")
    pl = polars()
    names = names_of(column)
    if not names:
        raise ValueError("column names no column")
    with open_log(pl, source, names, layout) as log:
        kind = _settled_kind(pl, log, names, kind)
        if not keep_ids and kind in INTEGERS:
            raise ValueError(f"keep_ids=False is for strings and binaries, got {kind}: these are kept as they are")
        left_out = _listed(ignore)
        ids = ids_of(pl, log, names, kind)
        try:
            if left_out:
                wanted = pl.Series(_checked(left_out, kind), dtype=type_of(pl, kind))
                ids = ids.filter(
                    pl.all_horizontal(pl.col("id").is_null() | (pl.col("id") != value) for value in wanted)
                )
            total = int(collect(ids.select(pl.len())).item())
            parts = _parts(pl, ids, kind, total, memory_limit)
            if not total:
                raise ValueError(f"{source}: there are no ids to count in {', '.join(names)}")
            counted = _count(pl, ids, kind, min_count, max_ids, parts, on_pass or (lambda done, of: None))
        except (pl.exceptions.PolarsError, _MissingIds):
            raise explain(pl, log, names, kind) from None
    if counted.interactions != total:
        raise ValueError(
            f"{source}: changed while it was counted: first {total:,} ids, then {counted.interactions:,}; count "
            "again when nobody writes to it"
        )
    return counted


def _settled_kind(pl: Any, log: Log, names: list[str], kind: str | None) -> str:
    """What the ids of all columns will be; TypeError if the columns do not say."""
    if kind is not None:
        for name in names:
            for part in log.parts:
                kind_of(name, raw_ids(pl, part, name)[1])  # raises for what can be no id
        return kind
    kinds = [kind_of_column(pl, log, name) for name in names]
    for name, of_column in zip(names, kinds):
        if of_column == FLOAT:
            raise TypeError(
                f"column {name!r}: expected integers, strings or binaries, got Float64: cast the ids to one of these, "
                "or say kind= (--kind)"
            )
    if len({found in INTEGERS for found in kinds}) > 1 or ("string" in kinds and "binary" in kinds):
        listed = ", ".join(f"{name!r} {log.parts[0].types[name] or found}" for name, found in zip(names, kinds))
        raise TypeError(
            f"the columns have ids of several kinds ({listed}): say which to make of them, with kind= (--kind)"
        )
    return "uint64" if "uint64" in kinds else kinds[0]


def _listed(ignore: Any) -> list[Any]:
    """One id, or several, as plain values."""
    if isinstance(ignore, (np.generic, np.ndarray, Tensor)):
        ignore = ignore.tolist()
    return [ignore] if isinstance(ignore, (int, str, bytes)) else [_plain(value) for value in ignore]


def _plain(value: Any) -> Any:
    """A NumPy scalar, or an array or tensor without an axis, as Python's own value."""
    return value.item() if isinstance(value, (np.generic, np.ndarray, Tensor)) and value.ndim == 0 else value


def _checked(ignore: list[Any], kind: str) -> list[Any]:
    """The ids of ``ignore`` that may occur; TypeError if they are of another kind."""
    wanted: Any = int if kind in INTEGERS else str if kind == "string" else bytes
    for value in ignore:
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise TypeError(f"ignore= must name ids of kind {kind}, got {value!r}")
    if kind in INTEGERS:
        low, high = (0, 2**64) if kind == "uint64" else (-(2**63), 2**63)
        return [value for value in ignore if low <= value < high]
    return ignore


def _lengths(series: Any, kind: str) -> Any:
    """Bytes of each string or binary, whose own size polars tells from 1.8 on."""
    return series.str.len_bytes() if kind == "string" else series.bin.encode("hex").str.len_bytes() // 2


def _count(
    pl: Any,
    ids: Any,
    kind: str,
    min_count: int,
    max_ids: int | None,
    parts: int,
    on_pass: Callable[[int, int], object],
) -> Counted:
    interactions, distinct = 0, 0
    kept: list[Any] = []  # frames
    for part in range(parts):
        on_pass(part, parts)
        mine = ids
        if parts > 1:  # a missing id is found in the first pass
            here = pl.col("id").hash(0) % parts == part
            mine = ids.filter(here | pl.col("id").is_null()) if part == 0 else ids.filter(here)
        found = collect(mine.group_by("id").agg(pl.len().alias("count")))
        missing = found.filter(pl.col("id").is_null())
        if missing.height:
            raise _MissingIds(int(missing["count"].sum()))
        interactions += int(found["count"].cast(pl.Int64).sum())
        distinct += found.height
        found = found.filter(pl.col("count") >= min_count) if min_count > 1 else found
        kept.append(found)
        if max_ids is not None and sum(frame.height for frame in kept) > max_ids:
            ids_kept, runs = _ordered(pl, kept)
            best = pl.DataFrame({"id": ids_kept, "count": runs.expand()}).head(max_ids)
            kept = [best.cast({"count": found["count"].dtype})]
        del found
    on_pass(parts, parts)
    if not interactions:
        raise ValueError("there are no ids to count")
    if not any(frame.height for frame in kept):
        raise ValueError(f"none of the {distinct:,} different ids occurs {min_count:,} times: lower min_count")
    return Counted(*_ordered(pl, kept), kind, interactions, distinct)


def _ordered(pl: Any, frames: list[Any]) -> tuple[Any, Runs]:
    """(ids, counts) by falling count, then by id, of frames that are used up.

    Sorting by both columns at once takes several times as long, and several times the memory.
    """
    found = pl.concat(frames)
    frames.clear()
    found = found.sort("count", descending=True)
    runs = Runs.of(found["count"].to_numpy())
    lengths = np.diff(runs.ends, prepend=0)
    ids = [found["id"].slice(end - length, length).sort() for end, length in zip(runs.ends.tolist(), lengths.tolist())]
    return pl.concat(ids), runs


def _parts(pl: Any, ids: Any, kind: str, total: int, memory_limit: int) -> int:
    """How many parts the different ids are counted in, by an estimate from one of 1,024 hashes; 3% off, typically."""
    distinct, each = total, INTEGER_BYTES if kind in INTEGERS else TEXT_BYTES
    if total * each > memory_limit and total > SMALL:
        sample = collect(ids.filter(pl.col("id").hash(1) % SAMPLE == 0).group_by("id").agg()).filter(
            pl.col("id").is_not_null()
        )
        distinct = min(total, SAMPLE * (sample.height + 1))
        if kind not in INTEGERS and sample.height:
            each += round(3 * float(_lengths(sample["id"], kind).mean()))
    return max(1, min(MAX_PARTS, -(-distinct * each * 11 // 10 // memory_limit)))


class _MissingIds(Exception):
    """Null among the ids; the argument is how many."""
