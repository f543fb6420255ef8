"""Reads files with columns, csv, inter and Parquet: the user, item, time and context of all log parts, checked."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from mgqe.ids.logs.bad_rows import explain_field, has_quote, read_line
from mgqe.ids.logs.id_columns import NULL_WORDS, exact_integer_limit
from mgqe.ids.logs.log import ROW, Log, open_log, parquet_schema
from mgqe.ids.logs.paths import LogFile
from mgqe.ids.logs.text import COUNT, excerpt, first_lines, parse_header
from mgqe.ids.logs.text_layout import NO_QUOTE, TextLayout
from mgqe.recsys.data.columns import USUAL, Columns, owner_of, pick_columns
from mgqe.recsys.data.row_locator import FILE, RowLocator


def read_table(source: Path | str, files: Sequence[LogFile], format: str, columns: Columns) -> pl.DataFrame:
    """The user (or session), item, time and context columns of csv, inter or Parquet files.

    ValueError for missing values.
    """
    path, head, layout = files[0].path, [""], TextLayout("\t", "", columns.header)
    if format == "parquet":
        names = list(parquet_schema(pl, path))
    else:
        head = first_lines(pl, path)
        layout = columns.layout(head[0]) if format == "csv" else layout
        names = parse_header(path, head, layout).names
    column_of_role = pick_columns(path, [*names, *(key for key in files[0].partitions if key not in names)], columns)
    if format != "parquet" and columns.header is False:
        _check_no_header(path, head, layout, column_of_role)
    try:
        with open_log(pl, source, list(column_of_role.values()), layout) as log:
            frames, locator = _collect(log, column_of_role)
            _check_fields(log, frames, locator)
            frame = _join(frames, locator, column_of_role)
            if "time" in column_of_role:
                frame = frame.with_columns(_as_time(locator, frame, column_of_role["time"]))
            _check_missing(log, frame, locator, column_of_role)
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]}") from None
    contexts = [_as_context(locator, frame, name) for name in columns.context]
    return frame.with_columns(contexts).select(list(column_of_role))


def _check_no_header(path: str, head: list[str], layout: TextLayout, column_of_role: dict[str, str]) -> None:
    """ValueError if the first line, which the user says is data, has the usual names of a user and an item column."""
    first = [name.lower() for name in parse_header(path, head, replace(layout, header=True)).names]
    positions = {
        role: int(name) - 1
        for role, name in column_of_role.items()
        if role in USUAL and role != "time" and name.isdigit()
    }
    if len(positions) == 2 and all(first[position] in USUAL[role] for role, position in positions.items()):
        raise ValueError(
            f"{path}: expected no header, but line 1 looks like one: {excerpt(head[0])}: leave out header=False "
            "(--no-header)"
        )


def _collect(log: Log, column_of_role: dict[str, str]) -> tuple[list[pl.DataFrame], RowLocator]:
    """(frame per log part, their locator): the columns by role, FILE, ROW, and for text COUNT."""
    frames = []
    for number, part in enumerate(log.parts):
        roles = [pl.col(name).alias(role) for role, name in column_of_role.items()]
        counts = [] if part.text is None else [COUNT]
        try:
            frame = part.numbered.select(pl.lit(number).alias(FILE), ROW, *counts, *roles).collect()
        except pl.exceptions.PolarsError:
            what = "parquet" if part.text is None else "text"
            raise ValueError(f"{part.where}: cannot be read as {what}: damaged, or cut short") from None
        frames.append(frame)
    locator = RowLocator([part.where for part in log.parts], "row", 1)
    return frames, RowLocator(locator.paths, "line") if log.parts[0].text is not None else locator


def _check_fields(log: Log, frames: Sequence[pl.DataFrame], locator: RowLocator) -> None:
    """ValueError if a line has other than its file's number of fields."""
    for part, frame in zip(log.parts, frames, strict=True):
        if part.text is None:
            continue
        wrong = frame.filter(pl.col(COUNT) != part.text.width)
        if wrong.height:
            as_in = "the header" if part.text.header else "line 1"
            line = read_line(pl, part.text, wrong[ROW][0])
            quotes = f"; if its quotes are plain text, {NO_QUOTE}" if has_quote(part.text, line) else ""
            raise ValueError(
                f"{locator.describe(wrong, 0)}: expected {part.text.width} fields as in {as_in}, got "
                f"{wrong[COUNT][0]}: {excerpt(line)}: correct or drop that line, or say what separates the "
                f"fields with --separator{quotes}"
            )


def _join(frames: Sequence[pl.DataFrame], locator: RowLocator, column_of_role: dict[str, str]) -> pl.DataFrame:
    """One frame of all log parts, in which the types of a column may differ."""
    series = {role: _one_type([frame[role] for frame in frames], role, locator) for role in column_of_role}
    positions = pl.concat([frame.select(FILE, ROW) for frame in frames])
    return positions.with_columns(**series)


def _one_type(parts: list[pl.Series], role: str, locator: RowLocator) -> pl.Series:
    """The column of all log parts as one type. Integers are widened; floats beside them must be integers, or times."""
    types = {part.dtype: number for number, part in enumerate(parts) if part.dtype != pl.Null}
    if len(types) <= 1:
        casts = [part.cast(next(iter(types), pl.String)) for part in parts]
    else:
        casts = _widen(parts, types, role, locator)
    column: pl.Series = pl.concat(casts)
    return column


def _widen(parts: list[pl.Series], types: dict[Any, int], role: str, locator: RowLocator) -> list[pl.Series]:
    kinds = types.keys()
    if all(kind.is_numeric() for kind in kinds):
        if any(kind.is_float() for kind in kinds) and role == "time":
            return [part.cast(pl.Float64) for part in parts]
        return [_as_integers(part, locator.paths[number], role) for number, part in enumerate(parts)]
    if all(kind == pl.String or isinstance(kind, (pl.Categorical, pl.Enum)) for kind in kinds):
        return [part.cast(pl.String) for part in parts]
    if all(kind.is_temporal() for kind in kinds):
        return [part.cast(pl.Datetime("us")) for part in parts]
    (kind, number), (other, another) = list(types.items())[:2]
    raise ValueError(
        f"{locator.paths[another]}: column of the {role} holds {other}, but {kind} in {locator.paths[number]}: write "
        "both as one type"
    )


def _as_integers(part: pl.Series, path: str, role: str) -> pl.Series:
    part = part.fill_nan(None) if part.dtype.is_float() else part
    whole: pl.Series = part.cast(pl.Int64, strict=False)
    bad = part.is_not_null() & whole.is_null()
    if part.dtype.is_float():
        bad = bad | (part != part.floor()) | (part.abs() >= exact_integer_limit(part.dtype))
    if bad.any():
        row = int(bad.arg_true()[0])
        raise ValueError(
            f"{path}, row {row + 1}: expected a whole number below 2^63 as the {role}, as in the other files, got "
            f"{part[row]}: write the column as one type in all files"
        )
    return whole


def _check_missing(log: Log, frame: pl.DataFrame, locator: RowLocator, column_of_role: dict[str, str]) -> None:
    """ValueError if a value is null, NaN or blank; blank categories of Parquet are checked in _as_context."""
    for role, name in column_of_role.items():
        column = frame[role]
        bad = column.is_null() | (column.is_nan() if column.dtype.is_float() else False)
        if column.dtype == pl.String and (role in USUAL or locator.unit == "line"):
            bad = bad | ~column.str.contains(r"\S").fill_null(True)
        if column.dtype == pl.String and role in (owner_of(frame), "item"):
            bad = bad | _words_for_none(column)
        if bad.any():
            row = int(bad.arg_true()[0])
            text = log.parts[frame[FILE][row]].text
            why = explain_field(pl, text, name, frame[ROW][row]) if text is not None and column[row] is None else None
            article = "an" if role == "item" else "a"
            value = repr(column[row]) if column.dtype == pl.String and (column[row] or "").strip() else "nothing"
            raise ValueError(
                f"{locator.describe(frame, row)}: expected {article} {role} in column {name!r}, got "
                f"{why or f'{value}: fill it, or drop that {locator.unit}'}"
            )


def _words_for_none(column: pl.Series) -> pl.Series:
    """bool (n,): values of a text column that are NULL or the like, if all others are integers."""
    words: pl.Series = column.str.strip_chars().str.to_lowercase().is_in(NULL_WORDS).fill_null(False)
    others = column.filter(~words) if words.any() else column.head(0)
    integers = len(others) > 0 and others.str.contains(r"^\s*[+-]?\d+\s*$").fill_null(True).all()
    return words if integers else words & False


def _as_context(locator: RowLocator, frame: pl.DataFrame, name: str) -> pl.Series:
    """A column of categories; ValueError for `nan` in text, which is a missing value that a program wrote."""
    column = frame[name]
    text = column.cast(pl.String) if column.dtype == pl.Boolean else column
    if text.dtype == pl.String:
        missing = text.str.strip_chars().str.to_lowercase().is_in(["", "nan"])
        if missing.any():
            at = int(missing.arg_true()[0])
            raise ValueError(
                f"{locator.describe(frame, at)}: expected a category in column {name!r}, got {text[at]!r}; give "
                "missing values a name such as unknown"
            )
    return text


def _as_time(locator: RowLocator, frame: pl.DataFrame, name: str) -> pl.Series:
    """Numbers stay numbers; text becomes numbers or else dates."""
    column = frame["time"]
    if column.dtype.is_numeric() or column.dtype.is_temporal():
        return column
    text: pl.Series = column.cast(pl.String).str.strip_chars()
    text = text.set(text == "", None)
    for kind in (pl.Int64, pl.Float64):
        numbers: pl.Series = text.cast(kind, strict=False)
        if numbers.null_count() == text.null_count():
            return numbers
    try:
        dates: pl.Series = text.str.to_datetime(strict=True)
        return dates
    except pl.exceptions.PolarsError:
        wrong = _first_wrong(text, numbers)
        raise ValueError(
            f"{locator.describe(frame, wrong)}: expected a number or a date in column {name!r}, got {text[wrong]!r}"
        ) from None


def _first_wrong(text: pl.Series, numbers: pl.Series) -> int:
    """The first text that is no date, or no number, whichever most of them are; numbers: null where there is none."""
    readable = numbers.is_not_null()
    with contextlib.suppress(pl.exceptions.PolarsError):  # no text looks like a date
        dates = text.str.to_datetime(strict=False).is_not_null()
        readable = dates if dates.sum() > readable.sum() else readable
    return int((~readable & text.is_not_null()).arg_true()[0])
