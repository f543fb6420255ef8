"""Rows of a user, an item and the context in which the user took it, as integers; their split into three parts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from mgqe.log_paths import exists
from mgqe.recsys.datasets import DATASETS, load_data
from mgqe.recsys.files import Columns, read_any, read_frame
from mgqe.recsys.interactions import IdMap, offsets_of
from mgqe.recsys.models.wide_deep import field_order


@dataclass(frozen=True)
class ContextRows:
    """Who took what in which context.

    fields: names of the columns of `context`, "user" first, the others by name.
    context: int64 (n, len(fields)) rows of these fields; items: int64 (n,). No row is there twice.
    ids: field ("item" too) -> the file's ids of the rows.
    ordered: rows are grouped by user, ascending, each user's in time order; else their order says nothing.
    num_repeats: rows of the file that repeat one in all fields and are left out.
    """

    fields: tuple[str, ...]
    context: Tensor
    items: Tensor
    ids: Mapping[str, IdMap]
    ordered: bool
    num_repeats: int = 0

    def __len__(self) -> int:
        return int(self.items.numel())

    @property
    def fingerprint(self) -> str:
        """A digest of the fields and rows, in order."""
        digest = hashlib.sha256(",".join(self.fields).encode())
        for rows in (self.context, self.items):
            digest.update(rows.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> ContextRows:
        """From a frame with `user`, `item`, perhaps `time`, and further columns, which are the context."""
        ordered = "time" in frame.columns
        ids = {name: IdMap(frame[name].unique().sort().alias("id")) for name in frame.columns if name != "time"}
        rows = frame.with_columns(
            frame[name].replace_strict(old=known.ids, new=list(range(len(known))), return_dtype=pl.Int64).alias(name)
            for name, known in ids.items()
        )
        # Without a time the order of a file decides nothing, so that the seed alone does.
        rows = rows.sort(["user", "time"], maintain_order=True) if ordered else rows.sort(sorted(ids))
        kept = rows.unique(subset=list(ids), keep="first", maintain_order=True)
        fields = field_order(ids)
        context = torch.from_numpy(kept.select(fields).to_numpy().copy(order="C"))
        items = torch.from_numpy(kept["item"].to_numpy().copy())
        return cls(fields, context, items, ids, ordered, frame.height - kept.height)


def load_rows(data: str, data_dir: str | None, format: str | None, columns: Columns) -> ContextRows:
    """A known set, `planted` or a file; a file's context is what `columns` names. ValueError says what is wrong."""
    known = DATASETS.get(data)
    if columns.context and not exists(data):
        raise ValueError(f"context_columns are those of a file of your own, got data {data!r}, which is no file")
    if known is not None and known.context:
        path = known.checked_path(data_dir)
        return ContextRows.from_frame(read_frame(path, known.format, Columns(context=known.context)))
    if columns.context:
        return ContextRows.from_frame(read_any(data, format, columns))
    found = load_data(data, data_dir, format, columns)
    ids = {"user": found.user_ids, "item": found.item_ids}
    return ContextRows(("user",), found.users[:, None], found.items, ids, True, found.num_repeats)


@dataclass(frozen=True)
class Parts:
    """Rows of the training, the validation and the test part: int64 each, ascending, none in two."""

    train: Tensor
    valid: Tensor
    test: Tensor


def split_rows(rows: ContextRows, seed: int) -> Parts:
    """By time where there is time, else at random.

    By time: a user's last row is for the test, the one before it for validation; users with fewer than 3 rows are in
    the training part only. At random, by `seed`: 80% to train, 10% to validate, 10% to test. ValueError when there
    are too few rows.
    """
    num = len(rows)
    if rows.ordered:
        offsets = offsets_of(rows.context[:, 0], len(rows.ids["user"]))
        ends = offsets[1:][offsets.diff() >= 3]
        if ends.numel() == 0:
            raise ValueError("no user has 3 interactions: the split needs one each to train, validate and test")
        train = torch.ones(num, dtype=torch.bool)
        train[ends - 1] = False
        train[ends - 2] = False
        return Parts(train.nonzero().squeeze(1), ends - 2, ends - 1)
    tenth = num // 10
    if tenth == 0:
        raise ValueError(f"{num} different rows: expected 10 or more, to split 80/10/10")
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    test, valid, train = (part.sort().values for part in torch.tensor_split(order, [tenth, 2 * tenth]))
    return Parts(train, valid, test)
