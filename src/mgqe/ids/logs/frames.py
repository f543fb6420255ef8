"""polars: imported when it is first needed, and called in ways that all supported versions have."""

from __future__ import annotations

import importlib
from typing import Any


def is_frame(source: Any) -> bool:
    """Whether this is a polars frame, lazy or not, without importing polars."""
    return type(source).__module__.split(".")[0] == "polars" and hasattr(source, "lazy")


def import_polars(what: str = "counting in files") -> Any:
    """The module polars; ImportError says how to install it."""
    try:
        return importlib.import_module("polars")
    except ImportError as error:
        raise ImportError(f"{what} needs polars: pip install 'mgqe[recsys]'") from error


def scan_parquet(pl: Any, path: str) -> Any:
    """Lazy frame of one Parquet file, whose name may hold characters of patterns."""
    return pl.scan_parquet(path, glob=False, hive_partitioning=False)


def collect(frame: Any) -> Any:
    """The result of a lazy frame, computed batch by batch; the argument's name changed in polars 1.25."""
    try:
        return frame.collect(engine="streaming")
    except TypeError:
        return frame.collect(streaming=True)
