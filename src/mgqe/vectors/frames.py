"""Vectors in tables: Parquet, CSV and JSON lines, with a column of ids, and one of vectors or one per dimension."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mgqe.vectors.vectors import Vectors

VECTOR_NAMES = ("vector", "embedding", "vec", "emb", "embeddings", "vectors", "values")
ID_NAMES = ("id", "ids", "item", "item_id", "itemid", "key", "word", "token", "name", "user", "user_id")


def read_frame(path: Path, ids: str | None, vector: str | None, separator: str = ",") -> Vectors:
    """The rows and ids of a table's file.

    Args:
        ids: the column of ids; by default the only one that is named like one, or that holds no floats.
        vector: the column of vectors, lists of numbers, or text such as "[0.1, 0.2]" or "0.1 0.2". By default the only
            list column, or, where there is none, all columns of floats are dimensions.

    Raises:
        ImportError: polars is not installed. ValueError: no such column, missing values, or vectors of unequal length;
            the message names the row.
    """
    return frame_vectors(_frame(path, separator), ids, vector)


def frame_vectors(frame: Any, ids: str | None = None, vector: str | None = None) -> Vectors:
    """The same of a polars frame."""
    import polars as pl

    for name in (ids, vector):
        if name is not None and name not in frame.columns:
            raise ValueError(f"there is no column {name!r}: it has {', '.join(frame.columns)}")
    lists = [name for name, kind in frame.schema.items() if isinstance(kind, (pl.List, pl.Array))]
    if vector is None and len(lists) > 1:
        raise ValueError(f"columns {', '.join(lists)} hold lists: name the one of vectors with vectors= (--vectors)")
    if vector is None and not lists:
        texts = [name for name, kind in frame.schema.items() if kind == pl.String and name.lower() in VECTOR_NAMES]
        vector = texts[0] if len(texts) == 1 else None
    vector = vector or (lists[0] if lists else None)
    if vector is not None:
        name, rows = vector, _rows_of_column(frame[vector])
    else:
        dimensions = [each for each, kind in frame.schema.items() if kind.is_float() and each != ids]
        if not dimensions:
            raise ValueError(f"no column holds vectors or floats: it has {', '.join(frame.columns)}")
        _refuse_text_among_numbers(frame.drop(dimensions), ids)
        name, rows = "", _rows_of_columns(frame.select(dimensions))
    rest = [each for each in frame.columns if each not in (vector, *(() if vector else dimensions))]
    return Vectors(rows, _ids(frame, ids, rest), name)


def _frame(path: Path, separator: str) -> Any:
    import polars as pl

    try:
        if path.suffix in (".parquet", ".pq"):
            return pl.read_parquet(path)
        if path.suffix in (".jsonl", ".ndjson", ".json"):
            return pl.read_ndjson(path, infer_schema_length=1000)
        return pl.read_csv(path, separator=separator, infer_schema_length=10_000)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"it cannot be read as {path.suffix}: {error}") from error


def _ids(frame: Any, wanted: str | None, rest: list[str]) -> Any:
    if wanted is None:
        named = [name for name in rest if name.lower() in ID_NAMES] or (rest if len(rest) == 1 else [])
        if len(named) > 1 or (rest and not named):
            raise ValueError(f"which of {', '.join(rest)} holds the ids? Name it with ids= (--ids)")
        if not named:
            return None
        wanted = named[0]
    column = frame[wanted]
    if column.null_count():
        raise ValueError(f"column {wanted!r} has no id in row {int(column.is_null().arg_max())}: give every row one")
    return column.to_numpy() if column.dtype.is_integer() else column.to_list()


def _refuse_text_among_numbers(frame: Any, ids: str | None) -> None:
    """ValueError for a column of text that is a dimension but for a few cells."""
    import polars as pl

    are_ids = {name for name in frame.columns if name == ids or name.lower() in ID_NAMES} or set(frame.columns[:1])
    for column in frame.iter_columns():
        if column.dtype == pl.String and column.name not in are_ids:
            unread = column.cast(pl.Float32, strict=False).is_null() & column.is_not_null()
            if 0 < int(unread.sum()) <= len(column) / 2:
                row = int(unread.arg_max())
                raise ValueError(
                    f"row {row} of column {column.name!r} holds text where numbers should be: {column[row]!r}"
                )


def _rows_of_columns(frame: Any) -> np.ndarray:
    for column in frame.iter_columns():
        if column.null_count():
            raise ValueError(f"column {column.name!r} has no number in row {int(column.is_null().arg_max())}")
    rows: np.ndarray = frame.to_numpy().astype(np.float32, copy=False)
    return rows


def _rows_of_column(column: Any) -> np.ndarray:
    import polars as pl

    if column.dtype == pl.String:
        column = _numbers_of_texts(column)
    lengths = column.list.len() if isinstance(column.dtype, pl.List) else None
    if column.null_count():
        raise ValueError(f"column {column.name!r} has no vector in row {int(column.is_null().arg_max())}")
    if lengths is not None:
        uneven = (lengths != lengths[0]).arg_true()
        if len(uneven):
            row = int(uneven[0])
            raise ValueError(
                f"the vector in row {row} of column {column.name!r} has {lengths[row]} numbers, that in row 0 has "
                f"{lengths[0]}: all must be as long"
            )
        column = column.list.to_array(int(lengths[0]))
    try:
        numbers = column.cast(pl.Array(pl.Float32, column.dtype.size))
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"column {column.name!r} holds no vectors of numbers: {error}") from error
    flat = numbers.explode()
    if flat.null_count():
        row = int(flat.is_null().arg_max()) // column.dtype.size
        raise ValueError(f"the vector in row {row} of column {column.name!r} lacks a number")
    rows: np.ndarray = flat.to_numpy().reshape(len(column), column.dtype.size)
    return rows


def _numbers_of_texts(column: Any) -> Any:
    import polars as pl

    parts = column.str.strip_chars("[]() ").str.replace_all(r"[,;\s]+", " ").str.split(" ")
    numbers = parts.cast(pl.List(pl.Float32), strict=False)
    unread = numbers.list.eval(pl.element().is_null()).list.any()
    if unread.any():
        row = int(unread.arg_max())
        raise ValueError(f"row {row} of column {column.name!r} holds text where numbers should be: {column[row]!r}")
    return numbers
