"""Reads the ids of logs in every layout that `mgqe train` reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def read_ids(
    logs: Sequence[str], field: str, format: str | None, separator: str | None, quote: str, header: bool | None
) -> Any:
    """A polars frame of one column, `field`, "item" or "user" (which a session is, too): a row per interaction.

    Raises ValueError for another field, and for logs that cannot be read or that hold ids of several types.
    """
    import polars as pl

    from mgqe.recsys.data.columns import Columns
    from mgqe.recsys.data.files import read_any

    if field not in ("item", "user"):
        raise ValueError(f"--field must be item or user, got {field!r}")
    columns = Columns(separator=separator, quote=quote, header=header)
    frames = [read_any(log, format, columns).rename({"session": "user"}, strict=False).select(field) for log in logs]
    if len({frame[field].dtype for frame in frames}) > 1:
        frames = [frame.cast(pl.String) for frame in frames]
    return pl.concat(frames)
