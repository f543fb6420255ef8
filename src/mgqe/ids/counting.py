"""Counts how often each id occurs in training, in arrays, batches or files larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.checks.ids import INTEGER_DTYPES, check_dense, no_values
from mgqe.checks.scalars import as_int, as_ints, is_sequence
from mgqe.ids.logs.bad_rows import explain
from mgqe.ids.logs.frames import collect, import_polars, is_frame
from mgqe.ids.logs.id_columns import FLOAT, INTEGERS, id_frame, kind_of_column
from mgqe.ids.logs.log import Log, column_names, is_path, open_log
from mgqe.ids.logs.text_layout import TextLayout

Key = str | int | Callable[[Any], Any]


def count_ids(
    source: Any,
    num_embeddings: int,
    *,
    key: Key | None = None,
    column: str | int | Sequence[str | int] | None = None,
    ignore: int | Sequence[int] = (),
    separator: str = ",",
    quote: str | None = '"',
    header: bool | None = None,
) -> Tensor:
    """Count how often each id occurs: int64 (num_embeddings,), for ``counts=`` of ``compress_`` and MGQEmbedding.

    Example::

        counts = mgqe.count_ids(loader, 100_000, key="item")  # loader yields batches such as {"item": ids, ...}
        counts = mgqe.count_ids("clicks-*.parquet", 100_000, column="item")

    Args:
        source: one of three. Ids: a tensor or NumPy array of integers of any shape, or a list of integers. Batches: an
            iterable of ids, such as a generator or a DataLoader; use ``key`` if a batch holds more than ids. Files: a
            path, a folder, a pattern or a list of these, of Parquet or text files, or a polars frame, with ``column``.
            Files are streamed, so that they may be larger than memory.
        num_embeddings: N; ids are 0 to N - 1.
        key: selects the ids of a batch: ``batch[key]``, or a function of the batch.
        column: the column of the files that holds ids, or several columns that are counted together. Lists in a cell
            are counted id by id. Columns of text files without a header are named by their numbers, from 1.
        ignore: ids that are not counted, such as padding; they may lie outside the table. Missing cells of a file
            (null) are an error.
        separator, quote, header: of text files, as in :meth:`mgqe.IdMap.from_log`.

    Raises:
        ValueError: an id outside the table, NaN or a missing cell, no ids, or arguments that exclude each other.
            TypeError: something other than integers. KeyError: no such key or column. The message names the batch, the
            column or the id.
        ImportError: files, and polars is not installed: ``pip install 'mgqe[recsys]'``.
        FileNotFoundError: no such file.
    """
    num_embeddings = as_int("num_embeddings", num_embeddings, 1)
    ignored = list(as_ints("ignore", ignore) if is_sequence(ignore) else (as_int("ignore", ignore),))
    if is_frame(source) or is_path(source):
        if key is not None or column is None:
            raise ValueError("a file or frame needs column= (the column that holds the ids), and no key=")
        return _count_log(source, num_embeddings, column, ignored, TextLayout.of(separator, quote, header))
    if column is not None:
        raise ValueError(f"column= is for files and frames, got {type(source).__name__}: use key= for batches")
    counts = np.zeros(num_embeddings, dtype=np.int64)
    total = 0
    for where, batch in _batches(source, key):
        ids = _as_integers(batch, where)
        total += ids.size
        _add(counts, ids, None, ignored, where)
    if not total:
        raise ValueError("there are no ids to count: is the source an iterator that was used up?")
    return torch.from_numpy(counts)


def merge_counts(*counts: Tensor) -> Tensor:
    """The sum of several counts (N,), such as those of several files, tables or days, or of one iterable of counts.

    Raises:
        ValueError: no counts, or counts of different lengths. TypeError: counts that are no integers.
    """
    single = len(counts) == 1 and not isinstance(counts[0], (Tensor, np.ndarray))
    terms = [torch.from_numpy(c) if isinstance(c, np.ndarray) else c for c in (counts[0] if single else counts)]
    if not terms:
        raise ValueError("there are no counts to merge")
    for number, term in enumerate(terms):
        if not isinstance(term, Tensor) or term.dtype not in INTEGER_DTYPES:
            kind = term.dtype if isinstance(term, Tensor) else type(term).__name__
            raise TypeError(f"counts must be integer tensors, as count_ids gives, but number {number} is {kind}")
        check_dense(term, f"counts number {number}")
        if term.is_meta:
            raise no_values(f"counts number {number}")
        if term.shape != terms[0].shape or term.ndim != 1:
            raise ValueError(
                f"counts must have one shape (num_embeddings,), but number {number} has {tuple(term.shape)} "
                f"and number 0 {tuple(terms[0].shape)}"
            )
    return torch.stack([term.to("cpu", torch.int64) for term in terms]).sum(0)


# ---- batches -----------------------------------------------------------------------------------------------


def _batches(source: Any, key: Key | None) -> Iterator[tuple[str, Any]]:
    """(name in errors, ids) of each batch; a source that is ids itself is one batch."""
    if isinstance(source, (Tensor, np.ndarray)) or _is_numbers(source):
        if key is not None:
            raise ValueError(f"key= is for batches, got one {type(source).__name__}")
        yield "the ids", source
        return
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise TypeError(
            f"cannot count ids in a {type(source).__name__}: give a tensor, an array, an iterable of batches, or a file"
        )
    for number, batch in enumerate(source):
        where = f"batch {number}"
        yield where, _pick(batch, key, where)


def _pick(batch: Any, key: Key | None, where: str) -> Any:
    if key is None:
        if isinstance(batch, Mapping):
            raise TypeError(f"{where} is a mapping of {sorted(map(str, batch))}: say which with key=")
        if isinstance(batch, (tuple, list)) and batch and not _is_numbers(batch):
            raise TypeError(f"{where} is a {type(batch).__name__} of {len(batch)}: say which with key=0, 1, ...")
        return batch
    if callable(key):
        return key(batch)
    try:
        return batch[key]
    except (KeyError, IndexError, TypeError) as error:
        what = f"keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise KeyError(f"{where} has no {key!r}: it is {what}") from error


def _as_integers(ids: Any, where: str) -> np.ndarray:
    """Ids as a flat int64 array."""
    if isinstance(ids, Tensor):
        check_dense(ids, where)
        if ids.is_meta:
            raise no_values(where)
    try:
        array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where}: expected integers, got {type(ids).__name__}") from error
    array = array.reshape(-1)
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError(f"{where}: NaN at position {int(np.isnan(array).argmax())}: drop or fill missing ids first")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{where}: expected integers, got {array.dtype}: number the ids first, or cast them")
    if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
        raise ValueError(f"{where}: id {int(array.max())} is out of range")
    return array.astype(np.int64)


def _add(counts: np.ndarray, ids: np.ndarray, times: np.ndarray | None, ignored: list[int], where: str) -> None:
    """Add ids (n,), each of which occurs ``times`` (n,) times, or once; ValueError if one lies outside the table."""
    if ignored:
        keep = ~np.isin(ids, ignored)
        ids, times = ids[keep], None if times is None else times[keep]
    if ids.size and (ids.min() < 0 or ids.max() >= len(counts)):
        outside = ids[(ids < 0) | (ids >= len(counts))]
        raise ValueError(
            f"{where}: id {outside[0]} is out of range, valid ids are 0 to {len(counts) - 1}; "
            "padding and the like can be left out with ignore="
        )
    if times is None and ids.size >= len(counts):
        counts += np.bincount(ids, minlength=len(counts))
    else:  # of a few ids, for which bincount would pass over all counts
        np.add.at(counts, ids, 1 if times is None else times)


def _is_numbers(value: Any) -> bool:
    """Whether this is a list or tuple of plain numbers, which are ids and not batches."""
    first = value[0] if isinstance(value, (list, tuple)) and value else None
    return isinstance(first, (int, float, np.number)) and not isinstance(first, bool)


# ---- files -------------------------------------------------------------------------------------------------


def _count_log(
    source: Any, num_embeddings: int, column: str | int | Sequence[str | int], ignored: list[int], layout: TextLayout
) -> Tensor:
    pl = import_polars()
    names = column_names(column)
    counts = np.zeros(num_embeddings, dtype=np.int64)
    total = 0
    with open_log(pl, source, names, layout) as log:
        for name in names:
            where = f"column {name!r}"
            try:
                kind = _integer_kind(pl, log, name)
                frame = collect(id_frame(pl, log, [name], kind).group_by("id").agg(pl.len().alias("count")))
            except pl.exceptions.PolarsError:
                raise explain(pl, log, [name], "int64") from None
            if frame["id"].null_count():
                raise explain(pl, log, [name], kind)
            ids, times = _as_integers(frame["id"].to_numpy(), where), frame["count"].to_numpy().astype(np.int64)
            _add(counts, ids, times, ignored, where)
            total += frame.height
    if not total:
        raise ValueError(f"{source}: there are no ids to count in {', '.join(names)}")
    return torch.from_numpy(counts)


def _integer_kind(pl: Any, log: Log, name: str) -> str:
    """int64 or uint64. Raises TypeError if the column holds something else, ValueError if it holds NaN."""
    kind = kind_of_column(pl, log, name)
    if kind == FLOAT and any(collect(part.frame.select(pl.col(name).is_nan().any())).item() for part in log.parts):
        raise ValueError(f"column {name!r}: NaN among the ids: drop or fill missing ids first, and cast them")
    if kind not in INTEGERS:
        what = {FLOAT: "float64", "string": "String", "binary": "Binary"}[kind]
        raise TypeError(f"column {name!r}: expected integers, got {what}: number the ids first, or cast them")
    return kind
