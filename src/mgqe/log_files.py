"""Logs as people have them, Parquet and CSV files or polars frames: opened lazily, collected batch by batch."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARQUET = (".parquet", ".pq")


def is_path(source: Any) -> bool:
    """A path, or a list of nothing but paths."""
    if isinstance(source, (list, tuple)) and source:
        return all(isinstance(part, (str, os.PathLike)) for part in source)
    return isinstance(source, (str, os.PathLike))


def is_frame(source: Any) -> bool:
    """A polars frame, lazy or not; polars is not imported for the answer."""
    return type(source).__module__.split(".")[0] == "polars" and hasattr(source, "lazy")


def polars(what: str = "counting in files") -> Any:
    """The module polars, or ImportError that says how to install it."""
    try:
        return importlib.import_module("polars")
    except ImportError as error:
        raise ImportError(f"{what} needs polars: pip install 'mgqe[recsys]'") from error


def open_log(pl: Any, source: Any, names: Sequence[str], separator: str, dtype: Any = None) -> tuple[Any, Any]:
    """(lazy frame, its schema) of a frame, a path, a pattern or a list of paths.

    Args:
        names: the columns that will be read, as ``dtype`` where files are CSV and it is given.

    Raises:
        ValueError: files of both kinds; files that cannot be read. FileNotFoundError.
    """
    if is_frame(source):
        frame = source.lazy()
        return frame, frame.collect_schema()
    paths = [os.fspath(part) for part in (source if isinstance(source, (list, tuple)) else [source])]
    kinds = {Path(path).suffix.lower() for path in paths}
    if not kinds <= set(PARQUET) and kinds & set(PARQUET):
        raise ValueError(f"files of one kind at a time, got {sorted(kinds)}: count each, and merge_counts")
    try:
        if kinds <= set(PARQUET):
            frame = pl.scan_parquet(paths)
            return frame, frame.collect_schema()
        columns = pl.scan_csv(paths, separator=separator).collect_schema()
        others = [name for name in columns if name not in names]
        types = dict.fromkeys(others, pl.String) | ({} if dtype is None else dict.fromkeys(names, dtype))
        frame = pl.scan_csv(paths, separator=separator, schema_overrides=types)
        for name in others:  # always true. A line of too many fields is found only if all columns are asked for
            frame = frame.filter(pl.col(name).is_null() | pl.col(name).is_not_null())
        return frame, frame.collect_schema()
    except FileNotFoundError:
        raise
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{source}: cannot be read: {error}") from error


def id_column(pl: Any, frame: Any, schema: Any, name: str) -> tuple[Any, Any]:
    """(lazy frame of the one column ``id``, type of an id); lists in cells become a row an id. KeyError: no column."""
    if name not in schema:
        raise KeyError(f"no column {name!r}: the file has {', '.join(schema)}")
    ids, kind = frame.select(pl.col(name).alias("id")), schema[name]
    while isinstance(kind, (pl.List, pl.Array)):
        if isinstance(kind, pl.List):  # an empty list would become null, and is none
            ids = ids.filter(pl.col("id").is_null() | (pl.col("id").list.len() > 0))
        ids, kind = ids.explode("id"), kind.inner
    return ids, kind


def collect(frame: Any) -> Any:
    """The result, computed batch by batch; the argument's name changed in polars 1.25."""
    try:
        return frame.collect(engine="streaming")
    except TypeError:
        return frame.collect(streaming=True)


def names_of(column: str | Sequence[str]) -> list[str]:
    """One name or several, as a list."""
    return [column] if isinstance(column, str) else list(column)
