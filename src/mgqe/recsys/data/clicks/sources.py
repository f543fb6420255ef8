"""Logs of clicks as they lie on disk: their files, and their rows, one chunk after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import polars as pl

from mgqe.recsys.data.clicks.layouts import AVAZU, CRITEO, LABEL, Layout
from mgqe.recsys.data.clicks.text_blocks import BLOCK, text_blocks
from mgqe.recsys.data.datasets import CLICK_LOGS, require_data_dir


@dataclass(frozen=True)
class Chunk:
    """Rows that are read together.

    content: what identifies them. frame: reads LABEL (uint8) and the fields (int64, null where one is missing).
    """

    num_rows: int
    content: Callable[[], bytes]
    frame: Callable[[], pl.DataFrame]


class ClickSource(Protocol):
    """A log on disk. files: its files, in the order of the rows. fields: names, in the order of the columns."""

    @property
    def files(self) -> Sequence[Path]: ...
    @property
    def fields(self) -> tuple[str, ...]: ...
    def chunks(self) -> Iterator[Chunk]:
        """All rows, in order, in the same chunks each time; ValueError names the line that is wrong."""

    def texts(self, field: str, values: Sequence[int]) -> list[str]:
        """Values of a field as text."""


@dataclass(frozen=True)
class TextSource:
    """Text files of one layout, plain or gzip, of which each may lack nothing but categories."""

    files: Sequence[Path]
    layout: Layout
    block: int = BLOCK

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.layout.fields)

    def chunks(self) -> Iterator[Chunk]:
        layout = self.layout
        for file in self.files:
            for block in text_blocks(str(file), layout.separator, tuple(layout.kinds), layout.header, self.block):
                yield Chunk(len(block), partial(getattr, block, "content"), partial(layout.parse, block))

    def texts(self, field: str, values: Sequence[int]) -> list[str]:
        return self.layout.texts(field, values)


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files with the columns LABEL and `fields`, integers without missing values, one chunk each."""

    files: Sequence[Path]
    fields: tuple[str, ...]

    def chunks(self) -> Iterator[Chunk]:
        for file in self.files:
            frame = pl.read_parquet(file, columns=[LABEL, *self.fields])
            yield Chunk(frame.height, partial(_bytes, frame), partial(_with_int64, frame, self.fields))

    def texts(self, field: str, values: Sequence[int]) -> list[str]:
        return [str(value) for value in values]


def _bytes(frame: pl.DataFrame) -> bytes:
    return b"".join(column.to_numpy().tobytes() for column in frame.get_columns())


def _with_int64(frame: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    return frame.with_columns(pl.col(names).cast(pl.Int64))


def find_log(name: str, data_dir: str | None) -> TextSource:
    """The files of `criteo` or `avazu` in `data_dir`, or in a folder of that name there; ValueError says which."""
    known = CLICK_LOGS[name]
    below = require_data_dir(name, data_dir, f"{known.files} in DIR/{name} or in DIR", known.obtain, known.home)
    for folder in (below / name, below):
        if found := (_criteo_files(folder) if name == "criteo" else _one_of(folder, "train", "train.csv")):
            return TextSource(found, CRITEO if name == "criteo" else AVAZU)
    raise ValueError(
        f"{name}: expected {known.files} in {below / name} or in {below}; to obtain them: {known.obtain} ({known.home})"
    )


def _criteo_files(folder: Path) -> list[Path]:
    days: dict[int, Path] = {}
    for path in sorted(folder.glob("day_*")):
        if match := re.fullmatch(r"day_(\d+)(\.gz)?", path.name):
            if int(match[1]) in days:
                raise ValueError(f"{folder}: day {match[1]} is there twice, plain and as gzip: remove one of the two")
            days[int(match[1])] = path
    kaggle = _one_of(folder, "train.txt")
    if kaggle and days:
        raise ValueError(
            f"{folder} holds {kaggle[0].name} and {days[min(days)].name}: put one of the two logs elsewhere"
        )
    if missing := sorted({*range(max(days, default=-1))} - {*days}):
        raise ValueError(f"{folder} lacks day_{missing[0]}: expected all days from day_0 to day_{max(days)}")
    return kaggle or [days[number] for number in sorted(days)]


def _one_of(folder: Path, *names: str) -> list[Path]:
    found = [path for name in names for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} holds {found[0].name} and {found[1].name}: remove one of the two")
    return found
