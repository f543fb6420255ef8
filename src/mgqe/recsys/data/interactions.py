"""Reads a file of interactions into rows of integers, and keeps the map back to the file's ids.

Five formats are recognised, or named by `format`:

==========  ====================================================================================
`csv`       comma, tab, semicolon, bar or any other text between fields; columns are found by the names
            in the header, or by numbers from 1 without a header
`parquet`   columns are found by name
`inter`     RecBole: tab-separated, header `user_id:token item_id:token timestamp:float`
`pairs`     SASRec: one line per interaction, `user item`, no header, in time order for each user
`lines`     one line per user, `user item item ...`, in time order
==========  ====================================================================================

Ids are integers or strings. Rows are numbered by sorted id, so that the order of a file's lines does not change the
row of an id.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mgqe.checks.scalars import as_int
from mgqe.recsys.data.columns import Columns, owner_of
from mgqe.recsys.data.files import FORMATS, IN_ORDER, format_of, read_frame


@dataclass(frozen=True)
class FileIds:
    """The ids of a file, sorted and distinct: `ids[row]` is the id, an int or a str, that a row stands for."""

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
        """The row of the file's id `id`, which may be a number of NumPy or torch; KeyError for an unknown id."""
        if isinstance(id, (np.generic, np.ndarray, Tensor)) and id.ndim == 0:
            id = id.item()
        if self.ids.dtype == pl.String and not isinstance(id, str):
            id = str(id)
        if self.ids.dtype == pl.Int64 and (not isinstance(id, int) or isinstance(id, bool)):
            raise KeyError(f"{id!r} cannot be an id here: the file's ids are integers")
        row = int(self.ids.search_sorted(id))  # type: ignore[call-overload]
        if row == len(self) or self.ids[row] != id:
            raise KeyError(f"id {id!r} is not in the training file ({len(self)} ids of type {self.ids.dtype})")
        return row

    def save(self, path: Path | str | BinaryIO) -> None:
        """Write a Parquet file, to a path or an open file, with the columns `row` (int64) and `id`."""
        rows = pl.Series("row", range(len(self)), dtype=pl.Int64)
        pl.DataFrame({"row": rows, "id": self.ids}).write_parquet(path)

    @classmethod
    def load(cls, path: Path | str) -> FileIds:
        """Read a file that `save` wrote; ValueError for any other file."""
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
    """Interactions, which are pairs of a user and an item that the user took, in order.

    users, items: int64 (n,) rows, grouped by user (ascending), each user's items in time order, and distinct unless
        keeps_repeats.
    offsets: int64 (num_users + 1,); user u's interactions are [offsets[u], offsets[u + 1]).
    user_ids, item_ids: the file's ids of the rows.
    num_repeats: interactions with an item that the user already had; left out unless keeps_repeats.
    times: float64 (n,), the file's times, if it has any; dates and times of day as seconds since 1970, UTC.
    owner: whose interactions are grouped: a "user"'s or a "session"'s. Sessions stand wherever users do.
    ordered: whether the order is that of time, as far as the file says so.
    """

    users: Tensor
    items: Tensor
    offsets: Tensor
    user_ids: FileIds
    item_ids: FileIds
    num_repeats: int = 0
    times: Tensor | None = None
    owner: str = "user"
    keeps_repeats: bool = False
    ordered: bool = True

    def __len__(self) -> int:
        return int(self.users.numel())

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, keep_repeats: bool = False) -> Interactions:
        """From a frame with columns `user` or `session`, `item` and optionally `time`; without it, rows are in order.

        keep_repeats: keep what a user takes again, in its place; by default only the first time counts.
        """
        if frame.height == 0:
            raise ValueError("no interactions: expected at least one (user, item) pair")
        frame = frame.with_row_index("position")
        order = ["position"] if "time" not in frame.columns else ["time", "position"]
        owner = owner_of(frame)
        frame = frame.rename({owner: "user"})
        user_ids, item_ids = (FileIds(frame[name].unique().sort().alias("id")) for name in ("user", "item"))
        frame = _with_rows(_with_rows(frame, "user", user_ids), "item", item_ids)
        frame = frame.sort(["user_row", *order])
        distinct = frame.unique(subset=["user_row", "item_row"], keep="first", maintain_order=True)
        repeats = frame.height - distinct.height
        kept = frame if keep_repeats else distinct
        users = torch.from_numpy(kept["user_row"].to_numpy().copy())
        items = torch.from_numpy(kept["item_row"].to_numpy().copy())
        times = times_of(kept["time"]) if "time" in kept.columns else None
        offsets = offsets_of(users, len(user_ids))
        return cls(users, items, offsets, user_ids, item_ids, repeats, times, owner, keep_repeats)


def times_of(column: pl.Series) -> Tensor:
    """Numbers as they are, dates and moments as seconds since 1970, UTC: float64 (n,)."""
    if column.dtype == pl.Date or column.dtype.base_type() == pl.Datetime:
        column = column.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
    return torch.from_numpy(column.to_physical().cast(pl.Float64).to_numpy().copy())


def offsets_of(sorted_rows: Tensor, num_rows: int) -> Tensor:
    """Row r occupies [offsets[r], offsets[r + 1]) of `sorted_rows`, int64 (n,) ascending: int64 (num_rows + 1,)."""
    counts = torch.bincount(sorted_rows, minlength=num_rows)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _with_rows(frame: pl.DataFrame, name: str, ids: FileIds) -> pl.DataFrame:
    rows = pl.Series(f"{name}_row", range(len(ids)), dtype=pl.Int64)
    return frame.join(pl.DataFrame({name: ids.ids, f"{name}_row": rows}), on=name, how="left")


def load_interactions(
    path: Path | str, format: str | None = None, columns: Columns | None = None, keep_repeats: bool | None = False
) -> Interactions:
    """Read interactions from a file, a folder of files as Spark writes it, or a pattern.

    format: one of FORMATS, or None to recognise it. columns: the names of the user, item and time columns of a csv,
    parquet or inter file if they are unusual, and the layout of a csv file.
    keep_repeats: as in Interactions.from_frame; None: where the file has sessions.
    ValueError names the file, the line, what was expected and the remedy.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: expected one of {', '.join(FORMATS)}")
    columns = columns or Columns()
    format = format_of(path, format, columns)
    frame = read_frame(path, format, columns)
    keep_repeats = owner_of(frame) == "session" if keep_repeats is None else keep_repeats
    ordered = format in IN_ORDER or "time" in frame.columns
    return replace(Interactions.from_frame(frame, keep_repeats), ordered=ordered)
