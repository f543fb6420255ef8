"""Vectors in tables: Parquet, CSV and JSON lines, with a column of ids, and one of vectors or one per dimension."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mgqe.vectors.columns import ID_NAMES, Columns, IdColumn, choose_columns
from mgqe.vectors.vectors import Vectors

PARQUET = (".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson", ".json")
IN_MEMORY = 1 << 28  # bytes of rows; more of them go to a file that is mapped
BATCH = 1 << 15  # rows


class BadRow(ValueError):
    """A row that cannot be read: what is said before its place, and after it."""

    def __init__(self, before: str, row: Any, after: str = "") -> None:
        self.before, self.row, self.after = before, int(row), after
        super().__init__(self.at(f"row {self.row}"))

    def at(self, place: str) -> str:
        """The message, with the row called ``place``."""
        return f"{self.before} {place}{self.after}"


def read_frame(path: Path, ids: IdColumn, vector: str | None, separator: str = ",") -> Vectors:
    """The rows and ids of a table's file. Parquet is read in parts, into a file in TMPDIR where it has many rows.

    Args:
        ids, vector: the columns of ids and of vectors, which are lists of numbers, or text such as "[0.1, 0.2]" or
            "0.1 0.2"; see :func:`mgqe.vectors.columns.choose_columns`.

    Raises:
        ImportError: polars is not installed. ValueError: no such column, missing values, or vectors of unequal length;
            the message names the line, or, where rows are no lines, the row from 0.
    """
    if path.suffix.lower() in PARQUET:
        return _read_parquet(path, ids, vector)
    frame = _frame(path, separator)
    try:
        return frame_vectors(frame, ids, vector)
    except BadRow as error:
        line = _line(path, error.row, len(frame))
        raise error if line is None else ValueError(error.at(f"line {line}")) from None


def _read_parquet(path: Path, ids: IdColumn, vector: str | None) -> Vectors:
    import polars as pl

    try:
        source = pl.scan_parquet(path)
        columns = choose_columns(source.collect_schema(), ids, vector)
        count = int(source.select(pl.len()).collect().item())
        wanted = source.select(*filter(None, (columns.vector, columns.ids)), *columns.dimensions)
        rows, listed = np.empty((0, 0), np.float32), []
        for start in range(0, count, BATCH):
            part = wanted.slice(start, BATCH).collect()
            try:
                read = _rows_and_ids(part, columns, rows.shape[1] or None)
            except BadRow as error:
                raise BadRow(error.before, error.row + start, error.after) from None
            if start == 0:
                rows = _room((count, read.rows.shape[1]))
            rows[start : start + len(part)] = read.rows
            listed.append(read.ids)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"it cannot be read as {path.suffix}: {error}") from error
    whole = None if columns.ids is None or not listed else _joined(listed)
    return Vectors(rows, whole, columns.name, columns.notes)


def _room(shape: tuple[int, int]) -> np.ndarray:
    """Room for rows: in memory, or, where they are many, in a file that goes when nothing uses it any more."""
    if 4 * shape[0] * shape[1] <= IN_MEMORY:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)


def _joined(parts: list[Any]) -> Any:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [each for part in parts for each in part]


def _line(path: Path, row: int, rows: int) -> int | None:
    """The line of a text file that holds a row; None if rows are no lines of it."""
    before = 0 if path.suffix.lower() in JSON_LINES else 1
    with path.open("rb") as file:
        lines = sum(1 for _ in file)
    return row + before + 1 if lines == rows + before else None


def frame_vectors(frame: Any, ids: IdColumn = None, vector: str | None = None) -> Vectors:
    """The same of a polars frame."""
    others = frame.select([name for name, kind in frame.schema.items() if not kind.is_float()])
    try:
        columns = choose_columns(frame.schema, ids, vector)
    except ValueError:
        _refuse_text_among_numbers(others, ids)  # which may be why
        raise
    if columns.vector is None:
        _refuse_text_among_numbers(others, columns.ids)
    return _rows_and_ids(frame, columns)


def _rows_and_ids(frame: Any, columns: Columns, width: int | None = None) -> Vectors:
    """Some rows of a table, whose vectors have ``width`` numbers if that is known."""
    if columns.vector is None:
        rows = _rows_of_columns(frame.select(columns.dimensions))
    else:
        rows = _rows_of_column(frame[columns.vector], width)
    listed = None if columns.ids is None else _ids(frame[columns.ids])
    return Vectors(rows, listed, columns.name, columns.notes)


def _frame(path: Path, separator: str) -> Any:
    """A table of text. Types are told by its first rows, or by all where later ones are of another type."""
    import polars as pl

    def read(rows: int | None) -> Any:
        if path.suffix.lower() in JSON_LINES:
            return pl.read_ndjson(path, infer_schema_length=rows)
        return pl.read_csv(path, separator=separator, infer_schema_length=rows)

    try:
        try:
            frame = read(10_000)
        except pl.exceptions.ComputeError:
            frame = read(None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(_bad_line(path, separator) or f"it cannot be read as {path.suffix}: {error}") from error
    if number := next(filter(_is_fraction, frame.columns), None):
        raise ValueError(
            f"its first line holds numbers ({number}) instead of names: put names of columns before it, as id,d0,d1"
        )
    return frame


def _is_fraction(name: str) -> bool:
    """Whether a column's name is a number such as 0.25; whole ones may be those of dimensions."""
    try:
        float(name)
    except ValueError:
        return False
    return not name.strip().isdigit() and any(sign.isdigit() for sign in name)


def _bad_line(path: Path, separator: str) -> str | None:
    """What is wrong with the first line that is no record of a text file; None where every line is one."""
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


def _ids(column: Any) -> Any:
    if column.null_count():
        raise BadRow(f"column {column.name!r} has no id in", column.is_null().arg_max(), ": give every row one")
    return column.to_numpy() if column.dtype.is_integer() else column.to_list()


def _refuse_text_among_numbers(frame: Any, ids: IdColumn) -> None:
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


def _rows_of_column(column: Any, width: int | None) -> np.ndarray:
    import polars as pl

    if column.dtype == pl.String:
        column = _numbers_of_texts(column)
    lengths = column.list.len() if isinstance(column.dtype, pl.List) else None
    if not len(column):
        raise ValueError(f"column {column.name!r} has no vectors: there is no row after the header")
    if column.null_count():
        raise BadRow(f"column {column.name!r} has no vector in", column.is_null().arg_max())
    if lengths is not None:
        width = width or int(lengths[0])
        uneven = (lengths != width).arg_true()
        if len(uneven):
            row = int(uneven[0])
            raise BadRow(
                f"column {column.name!r}: the vector in",
                row,
                f" has {lengths[row]} numbers, the first one {width}: all must be as long",
            )
        column = column.list.to_array(width)
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
