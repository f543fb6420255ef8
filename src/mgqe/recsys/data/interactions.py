"""A user's own file of interactions -> rows of integers, with the map back to the file's ids kept.

Five layouts are read, recognised by themselves or named by `format`:

==========  ====================================================================================
`csv`       comma, tab, semicolon, bar or any other text between fields; columns found by the header's
            names, or by numbers from 1 without a header
`parquet`   columns found by name
`inter`     RecBole: tab-separated, header `user_id:token item_id:token timestamp:float`
`pairs`     SASRec: a line an interaction, `user item`, no header, in time order within a user
`lines`     a line a user, `user item item ...`, in time order
==========  ====================================================================================

Ids may be integers or strings of any kind. Rows are numbered by sorted id, so that shuffling a file's lines
does not change which row an id has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mgqe.checks.scalars import as_int
from mgqe.recsys.data.columns import Columns
from mgqe.recsys.data.files import FORMATS, read_any


@dataclass(frozen=True)
class FileIds:
    """Ids of a file, one a row: `ids[row]` is the id (an int or a str) that row stands for. Sorted, distinct."""

    ids: pl.Series

    def __len__(self) -> int:
        return len(self.ids)

    def id(self, row: int) -> object:
        """The file's id of `row`; IndexError outside [0, len)."""
        row = as_int("row", row)
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside [0, {len(self)})")
        return self.ids[row]

    def row(self, id: object) -> int:
        """The row of the file's id `id`, a number of NumPy's or torch's too; KeyError when the file had no such id."""
        if isinstance(id, (np.generic, np.ndarray, Tensor)) and id.ndim == 0:
            id = id.item()
        if self.ids.dtype == pl.String and not isinstance(id, str):
            id = str(id)
        if self.ids.dtype == pl.Int64 and (not isinstance(id, int) or isinstance(id, bool)):
            raise KeyError(f"{id!r} cannot be an id here: the file's ids are integers")
        at = int(self.ids.search_sorted(id))  # type: ignore[call-overload]
        if at == len(self) or self.ids[at] != id:
            raise KeyError(f"id {id!r} is not in the training file ({len(self)} ids of type {self.ids.dtype})")
        return at

    def save(self, path: Path | str | BinaryIO) -> None:
        """Write a Parquet file, to a path or an open file, with the columns `row` (int64) and `id`."""
        rows = pl.Series("row", range(len(self)), dtype=pl.Int64)
        pl.DataFrame({"row": rows, "id": self.ids}).write_parquet(path)

    @classmethod
    def load(cls, path: Path | str) -> FileIds:
        """Read what `save` wrote; ValueError for anything else."""
        try:
            frame = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ValueError(f"{path}: expected a Parquet file with columns row, id: {error}") from error
        if frame.columns != ["row", "id"] or not frame["row"].equals(
            pl.Series("row", range(len(frame)), dtype=pl.Int64)
        ):
            raise ValueError(f"{path}: expected columns row (0, 1, 2, ...) and id, got {frame.columns}")
        return cls(frame["id"])


@dataclass(frozen=True)
class Interactions:
    """Who took what, in order.

    users, items: int64 (n,) rows, grouped by user (ascending), each user's items in time order and distinct.
    offsets: int64 (num_users + 1,); user u's interactions are [offsets[u], offsets[u + 1]).
    user_ids, item_ids: the file's ids of the rows.
    num_repeats: interactions left out because the user already had that item (the first one is kept).
    times: float64 (n,), the file's times where it has some; dates and times of day as seconds since 1970, UTC.
    """

    users: Tensor
    items: Tensor
    offsets: Tensor
    user_ids: FileIds
    item_ids: FileIds
    num_repeats: int = 0
    times: Tensor | None = None

    def __len__(self) -> int:
        return int(self.users.numel())

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> Interactions:
        """From a frame with columns `user`, `item` and, if known, `time`; without it, a user's rows are in order."""
        if frame.height == 0:
            raise ValueError("no interactions: expected at least one (user, item) pair")
        frame = frame.with_row_index("position")
        order = ["position"] if "time" not in frame.columns else ["time", "position"]
        user_ids, item_ids = (FileIds(frame[name].unique().sort().alias("id")) for name in ("user", "item"))
        frame = _with_rows(_with_rows(frame, "user", user_ids), "item", item_ids)
        frame = frame.sort(["user_row", *order])
        kept = frame.unique(subset=["user_row", "item_row"], keep="first", maintain_order=True)
        users = torch.from_numpy(kept["user_row"].to_numpy().copy())
        items = torch.from_numpy(kept["item_row"].to_numpy().copy())
        times = times_of(kept["time"]) if "time" in kept.columns else None
        repeats = frame.height - kept.height
        return cls(users, items, offsets_of(users, len(user_ids)), user_ids, item_ids, repeats, times)


def times_of(column: pl.Series) -> Tensor:
    """Numbers as they are, dates and moments as seconds since 1970, UTC: float64 (n,)."""
    if column.dtype == pl.Date or column.dtype.base_type() == pl.Datetime:
        column = column.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
    return torch.from_numpy(column.to_physical().cast(pl.Float64).to_numpy().copy())


def offsets_of(sorted_rows: Tensor, num_rows: int) -> Tensor:
    """Where each row's run starts in an ascending int64 (n,): int64 (num_rows + 1,)."""
    counts = torch.bincount(sorted_rows, minlength=num_rows)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _with_rows(frame: pl.DataFrame, name: str, ids: FileIds) -> pl.DataFrame:
    rows = pl.Series(f"{name}_row", range(len(ids)), dtype=pl.Int64)
    return frame.join(pl.DataFrame({name: ids.ids, f"{name}_row": rows}), on=name, how="left")


def load_interactions(path: Path | str, format: str | None = None, columns: Columns | None = None) -> Interactions:
    """Read a file of interactions, a folder of files as Spark writes it, or a pattern.

    format: one of FORMATS, or None to recognise it. columns: names of the user, item and time columns of a
    csv, parquet or inter file where they are not usual ones, and how a csv file is laid out.
    Raises ValueError that names the file, the line, what was expected and what to do about it.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: expected one of {', '.join(FORMATS)}")
    return Interactions.from_frame(read_any(path, format, columns or Columns()))
