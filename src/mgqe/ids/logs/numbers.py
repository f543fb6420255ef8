"""Reads a column of numbers, one per row, from the files of a log."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mgqe.ids.logs.bad_rows import explain_line
from mgqe.ids.logs.frames import import_polars
from mgqe.ids.logs.log import ROW, LogPart, open_log
from mgqe.ids.logs.text import COUNT, excerpt
from mgqe.ids.logs.text_layout import TextLayout


def read_numbers(source: Any, column: str, layout: TextLayout) -> Tensor:
    """The column in the order of files and rows: (n,), int64 or float64.

    Raises:
        ValueError: a value is missing or is no number; files that cannot be read. KeyError: no such column.
            FileNotFoundError.
    """
    pl = import_polars("reading files")
    with open_log(pl, source, [column], layout) as log:
        frames = [_numbers(pl, part, column) for part in log.parts]
    return torch.from_numpy(pl.concat(frames, how="vertical_relaxed")[column].to_numpy(writable=True))


def _numbers(pl: Any, part: LogPart, column: str) -> Any:
    """Frame of the column in one log part."""
    try:
        frame = part.numbered.collect()
    except pl.exceptions.PolarsError:
        raise ValueError(f"{part.where}: cannot be read: damaged, or cut short") from None
    if part.text is not None:
        wrong = frame.filter(pl.col(COUNT) != part.text.width)
        if wrong.height:
            raise ValueError(f"{part.where}: {explain_line(pl, part.text, wrong[ROW][0], wrong[COUNT][0])}")
    values = frame[column]
    numbers = _as_numbers(pl, values)
    bad = numbers.is_null() | (numbers.is_nan() if numbers.dtype.is_float() else False)
    if bad.any():
        row = int(bad.arg_true()[0])
        unit = "row" if part.text is None else "line"
        raise ValueError(
            f"{part.where}, {unit} {frame[ROW][row]}: column {column!r} must hold one number per id, none missing, got "
            f"{'nothing' if values[row] is None else excerpt(str(values[row]))}"
        )
    return pl.DataFrame({column: numbers})


def _as_numbers(pl: Any, values: Any) -> Any:
    """The values as int64 if all of them are whole numbers, else as float64; null for a value that is no number."""
    if values.dtype.is_integer():
        return values.cast(pl.Int64, strict=False)
    if values.dtype.is_float():
        return values.cast(pl.Float64)
    text = values.cast(pl.String, strict=False).str.strip_chars()
    whole = text.cast(pl.Int64, strict=False)
    return whole if not whole.null_count() else text.cast(pl.Float64, strict=False)
