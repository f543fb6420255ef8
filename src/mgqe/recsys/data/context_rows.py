"""Interactions with their context (weekday, country, ...) as rows of integers, and their split into three parts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import torch
from torch import Tensor

from mgqe.ids.logs.paths import path_exists
from mgqe.recsys.data.columns import Columns
from mgqe.recsys.data.datasets import DATASETS, check_layout, load_data
from mgqe.recsys.data.files import read_any, read_frame
from mgqe.recsys.data.held_out import TEST, TRAIN, VALID, cold_masks, count_cold, part_sizes, renumber, require_parts
from mgqe.recsys.data.interactions import FileIds, offsets_of, times_of
from mgqe.recsys.data.splits import (
    JUDGED,
    LEAVE_ONE_OUT,
    LEFT_OUT,
    SplitRule,
    concat_parts,
    hold_out_last,
    label,
    starts_summary,
)
from mgqe.recsys.models.wide_deep import field_order

AT_RANDOM = "at random, 80/10/10"


@dataclass(frozen=True)
class ContextRows:
    """Interactions with their context.

    fields: names of the columns of `context`, "user" first, the others by name.
    context: int64 (n, len(fields)) rows of these fields; items: int64 (n,). No row occurs twice.
    ids: field ("item" too) -> the file's ids of the rows.
    ordered: whether rows are grouped by user, ascending, and each user's are in time order.
    num_repeats: rows of the file that were left out because they repeat another one in all fields.
    times: float64 (n,) as in Interactions, if the file has times.
    """

    fields: tuple[str, ...]
    context: Tensor
    items: Tensor
    ids: Mapping[str, FileIds]
    ordered: bool
    num_repeats: int = 0
    times: Tensor | None = None

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
        """From a frame with `user`, `item`, optionally `time`, and further columns, which are the context."""
        frame = frame.rename({"session": "user"}, strict=False)
        ordered = "time" in frame.columns
        ids = {name: FileIds(frame[name].unique().sort().alias("id")) for name in frame.columns if name != "time"}
        rows = frame.with_columns(
            frame[name].replace_strict(old=known.ids, new=list(range(len(known))), return_dtype=pl.Int64).alias(name)
            for name, known in ids.items()
        )
        # Without times the rows are sorted, so that a random split depends on the seed and not on the file's order.
        rows = rows.sort(["user", "time"], maintain_order=True) if ordered else rows.sort(sorted(ids))
        distinct = rows.unique(subset=list(ids), keep="first", maintain_order=True)
        fields = field_order(ids)
        context = torch.from_numpy(distinct.select(fields).to_numpy().copy(order="C"))
        items = torch.from_numpy(distinct["item"].to_numpy().copy())
        times = times_of(distinct["time"]) if ordered else None
        return cls(fields, context, items, ids, ordered, frame.height - distinct.height, times)

    @property
    def columns(self) -> dict[str, Tensor]:
        """Field -> its rows, int64 (n,); "item" is the last field."""
        return {**dict(zip(self.fields, self.context.unbind(1), strict=True)), "item": self.items}

    def with_ids(self, label: int) -> pl.DataFrame:
        """The file's ids, one column per field, and the column `time`, which is `label` in all rows."""
        frame = pl.DataFrame(
            [self.ids[name].ids.gather(rows.numpy()).alias(name) for name, rows in self.columns.items()]
        )
        return frame.with_columns(pl.lit(label, pl.Int64).alias("time"))

    def select(self, known: Tensor) -> ContextRows:
        """The rows where `known`, bool (n,), is true, renumbered by the ids that are left."""
        columns = {name: renumber(rows[known], self.ids[name]) for name, rows in self.columns.items()}
        context = torch.stack([columns[name][0] for name in self.fields], dim=1)
        ids = {name: file_ids for name, (_, file_ids) in columns.items()}
        times = None if self.times is None else self.times[known]
        return replace(self, context=context, items=columns["item"][0], ids=ids, times=times)


def load_rows(data: str, data_dir: str | None, format: str | None, columns: Columns) -> ContextRows:
    """A known set, `planted` or a file, whose context `columns` names. ValueError says what is wrong."""
    known = DATASETS.get(data)
    if columns.context and not path_exists(data):
        raise ValueError(f"context_columns are for a file of your own, got data {data!r}, which is no file")
    check_layout(data, format, columns)
    if known is not None and known.context:
        path = known.checked_path(data_dir)
        return ContextRows.from_frame(read_frame(path, known.format, Columns(context=known.context)))
    if columns.context:
        return ContextRows.from_frame(read_any(data, format, columns))
    interactions = load_data(data, data_dir, format, columns)
    ids = {"user": interactions.user_ids, "item": interactions.item_ids}
    return ContextRows(
        ("user",),
        interactions.users[:, None],
        interactions.items,
        ids,
        interactions.ordered,
        interactions.num_repeats,
        interactions.times,
    )


@dataclass(frozen=True)
class RowParts:
    """The row numbers of the training, the validation and the test part: int64 each, ascending, disjoint."""

    train: Tensor
    valid: Tensor
    test: Tensor


def split_rows(rows: ContextRows, seed: int) -> RowParts:
    """Split by time if the rows are ordered by time, else at random.

    By time: the last row of each user is for the test, the one before it for validation; users with fewer than 3 rows
    are only in the training part. At random, by `seed`: 80% for training, 10% for validation, 10% for the test.
    ValueError if there are too few rows.
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
        return RowParts(train.nonzero().squeeze(1), ends - 2, ends - 1)
    tenth = num // 10
    if tenth == 0:
        raise ValueError(f"{num} different rows: expected 10 or more, to split 80/10/10")
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    test, valid, train = (part.sort().values for part in torch.tensor_split(order, [tenth, 2 * tenth]))
    return RowParts(train, valid, test)


@dataclass(frozen=True)
class RowSplit:
    """Rows in three parts. summary: how they were split and the size of each part, for the results."""

    rows: ContextRows
    parts: RowParts
    summary: dict[str, Any]


def split_by_rule(rows: ContextRows, rule: str | None, seed: int) -> RowSplit:
    """Split by a rule of mgqe.recsys.data.splits; None: as `split_rows` does. ValueError says why a rule does not fit.

    With all rules but leave-one-out and None, rows with an id that no training row has are left out.
    """
    parsed = None if rule is None else SplitRule.parse(rule)
    if parsed is None or (parsed.kind == LEAVE_ONE_OUT and rows.ordered):
        parts = split_rows(rows, seed)
        labels = torch.full((len(rows),), TRAIN)
        labels[parts.valid], labels[parts.test] = VALID, TEST
        return _build_split(rows, labels, {"rule": LEAVE_ONE_OUT if rows.ordered else AT_RANDOM}, False)
    if parsed.kind == LEAVE_ONE_OUT:
        raise ValueError(
            f"--split {parsed.text} needs an order of time, which this data set does not have: name the column with "
            "--time-column, or leave --split out, which divides the rows at random"
        )
    generator = None if rows.ordered else torch.Generator().manual_seed(seed)
    parts_by_rule = label(parsed, rows.context[:, 0], rows.times, generator)
    summary = {"rule": parsed.text, **starts_summary(rows.times, parts_by_rule.starts)}
    if not rows.ordered:
        summary["order"] = "each user's rows in random order, by the seed"
    return _build_split(rows, parts_by_rule.labels, summary, True)


def split_row_parts(train: ContextRows, valid: ContextRows | None, test: ContextRows, seed: int) -> RowSplit:
    """Split into the parts that are passed; a row in several parts stays only in the first of them.

    Validation and test rows with an id that no training row has are left out. Without `valid`, the last training row of
    each user with two or more is for validation; without times, it is a tenth of the training rows, chosen by `seed`.
    """
    parts = [(label, part) for label, part in ((TRAIN, train), (VALID, valid), (TEST, test)) if part is not None]
    rows = ContextRows.from_frame(concat_parts([part.with_ids(label) for label, part in parts]))
    assert rows.times is not None  # these are the labels
    labels = rows.times.long()
    summary: dict[str, Any] = {"rule": "files", "repeats_left_out": sum(len(part) for _, part in parts) - len(rows)}
    if valid is None and train.ordered:
        summary["valid"] = "the last training row of each user with two or more"
        labels = hold_out_last(rows.context[:, 0], labels)
    elif valid is None:
        summary["valid"] = "a tenth of the training rows, by the seed"
        positions = (labels == TRAIN).nonzero().squeeze(1)
        order = torch.randperm(positions.numel(), generator=torch.Generator().manual_seed(seed))
        labels[positions[order[: positions.numel() // 10]]] = VALID
    require_parts(labels, "files", "each of the files must have rows that no earlier one has")
    return _build_split(replace(rows, times=None), labels, summary, True)


def _build_split(rows: ContextRows, labels: Tensor, summary: dict[str, Any], drop_cold: bool) -> RowSplit:
    names, columns = list(rows.columns), list(rows.columns.values())
    summary = {**summary, "cold": count_cold(names, columns, labels), "cold_rule": LEFT_OUT if drop_cold else JUDGED}
    if drop_cold:
        known = ~torch.stack(cold_masks(columns, labels)).any(0)
        rows, labels = rows.select(known), labels[known]
        require_parts(labels, str(summary["rule"]), "all others have an id that no training row has")
    parts = RowParts(*((labels == number).nonzero().squeeze(1) for number in (TRAIN, VALID, TEST)))
    return RowSplit(rows, parts, {**summary, "interactions": part_sizes(labels)})
