"""Columns of frames, of packages that need not be installed."""

from __future__ import annotations

from typing import Any

PACKAGES = ("polars", "pandas", "pyarrow")


def is_column(values: Any) -> bool:
    """Whether this is a column of a polars, pandas or Arrow frame."""
    return type(values).__module__.split(".")[0] in PACKAGES


def column_values(column: Any) -> list[Any]:
    """The values of a column, those of lists as lists. ValueError: missing ones."""
    values: list[Any] = column.to_pylist() if hasattr(column, "to_pylist") else column.to_list()
    for row, value in enumerate(values):
        if value is None or (isinstance(value, float) and value != value):  # pandas has NaN for what is missing
            raise ValueError(f"a value is missing (null) in row {row} of the column: drop or fill it first")
    return values
