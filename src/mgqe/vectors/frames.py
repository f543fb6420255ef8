"""Vectors in tables: Parquet, CSV and JSON lines, with a column of ids, and one of vectors or one per dimension."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from mgqe.vectors.vectors import Vectors

PARQUET = (".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson", ".json")
VECTOR_NAMES = ("vector", "embedding", "vec", "emb", "embeddings", "vectors", "values")
ID_NAMES = ("id", "ids", "item", "item_id", "itemid", "key", "word", "token", "name", "user", "user_id")


class BadRow(ValueError):
    """A row that cannot be read: what is said before its place, and after it."""

    def __init__(self, before: str, row: Any, after: str = "") -> None:
        self.before, self.row, self.after = before, int(row), after
        super().__init__(self.at(f"row {self.row}"))

    def at(self, place: str) -> str:
        """The message, with the row called ``place``."""
        return f"{self.before} {place}{self.after}"


def read_frame(path: Path, ids: str | None, vector: str | None, separator: str = ",") -> Vectors:
    """The rows and ids of a table's file.

    Args:
        ids: the column of ids; by default the only one that is named like one, or that holds no floats.
        vector: the column of vectors, lists of numbers, or text such as "[0.1, 0.2]" or "0.1 0.2". By default the only
            list column, or, where there is none, all columns of floats are dimensions.

    Raises:
        ImportError: polars is not installed. ValueError: no such column, missing values, or vectors of unequal length;
            the message names the line, or, where rows are no lines, the row from 0.
    """
    frame = _frame(path, separator)
    try:
        return frame_vectors(frame, ids, vector)
    except BadRow as error:
        line = _line(path, error.row, len(frame))
        raise error if line is None else ValueError(error.at(f"line {line}")) from None


def _line(path: Path, row: int, rows: int) -> int | None:
    """The line of a text file that holds a row; None if rows are no lines of it."""
    if path.suffix.lower() in PARQUET:
        return None
    before = 0 if path.suffix.lower() in JSON_LINES else 1
    with path.open("rb") as file:
        lines = sum(1 for _ in file)
    return row + before + 1 if lines == rows + before else None


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
        if path.suffix.lower() in PARQUET:
            return pl.read_parquet(path)
        if path.suffix.lower() in JSON_LINES:
            return pl.read_ndjson(path, infer_schema_length=1000)
        return pl.read_csv(path, separator=separator, infer_schema_length=10_000)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(_bad_line(path, separator) or f"it cannot be read as {path.suffix}: {error}") from error


def _bad_line(path: Path, separator: str) -> str | None:
    """What is wrong with the first line that is no record of a text file; None where every line is one."""
    if path.suffix.lower() in PARQUET:
        return None
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        if path.suffix.lower() in JSON_LINES:
            return next(
                (f"line {n}: expected one JSON object" for n, line in enumerate(file, 1) if _no_object(line)), None
            )
        reader = csv.reader(file, delimiter=separator)
        width = len(next(reader, ()))
        for fields in reader:
            if len(fields) > width:
                return f"line {reader.line_num} has {len(fields)} fields, the first line {width}"
    return None


def _no_object(line: str) -> bool:
    try:
        return bool(line.strip()) and not isinstance(json.loads(line), dict)
    except ValueError:
        return True


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
        raise BadRow(f"column {wanted!r} has no id in", column.is_null().arg_max(), ": give every row one")
    return column.to_numpy() if column.dtype.is_integer() else column.to_list()


def _refuse_text_among_numbers(frame: Any, ids: str | None) -> None:
    """ValueError for a column of text that is a dimension but for a few cells, such as nan, which polars calls text."""
    import polars as pl

    are_ids = {name for name in frame.columns if name == ids or name.lower() in ID_NAMES} or set(frame.columns[:1])
    for column in frame.iter_columns():
        if column.dtype == pl.String and column.name not in are_ids:
            numbers = column.cast(pl.Float32, strict=False)
            unread = (numbers.is_null() | numbers.is_nan()) & column.is_not_null()
            if 0 < int(unread.sum()) <= len(column) / 2:
                row = int(unread.arg_max())
                raise _text(column, row)


def _rows_of_columns(frame: Any) -> np.ndarray:
    for column in frame.iter_columns():
        if column.null_count():
            raise BadRow(f"column {column.name!r} has no number in", column.is_null().arg_max())
    rows: np.ndarray = frame.to_numpy().astype(np.float32, copy=False)
    return rows


def _rows_of_column(column: Any) -> np.ndarray:
    import polars as pl

    if column.dtype == pl.String:
        column = _numbers_of_texts(column)
    lengths = column.list.len() if isinstance(column.dtype, pl.List) else None
    if column.null_count():
        raise BadRow(f"column {column.name!r} has no vector in", column.is_null().arg_max())
    if lengths is not None:
        uneven = (lengths != lengths[0]).arg_true()
        if len(uneven):
            row = int(uneven[0])
            raise BadRow(
                f"column {column.name!r}: the vector in",
                row,
                f" has {lengths[row]} numbers, the first one {lengths[0]}: all must be as long",
            )
        column = column.list.to_array(int(lengths[0]))
    try:
        flat = column.cast(pl.Array(pl.Float32, column.dtype.size), strict=False).explode()
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"column {column.name!r} holds no vectors of numbers: {error}") from error
    if flat.null_count():
        entry = int(flat.is_null().arg_max())
        row, found = entry // column.dtype.size, column.explode()[entry]
        what = "lacks a number" if found is None else f"holds text where numbers should be: {found!r}"
        raise BadRow(f"column {column.name!r}: the vector in", row, f" {what}")
    rows: np.ndarray = flat.to_numpy().reshape(len(column), column.dtype.size)
    return rows


def _numbers_of_texts(column: Any) -> Any:
    import polars as pl

    parts = column.str.strip_chars("[]() ").str.replace_all(r"[,;\s]+", " ").str.split(" ")
    numbers = parts.cast(pl.List(pl.Float32), strict=False)
    unread = numbers.list.eval(pl.element().is_null()).list.any()
    if unread.any():
        row = int(unread.arg_max())
        raise _text(column, row)
    return numbers


def _text(column: Any, row: int) -> BadRow:
    return BadRow(f"column {column.name!r}:", row, f" holds text where numbers should be: {column[row]!r}")
