"""Reads text files without columns: one line per interaction, or one line per user."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import polars as pl

from mgqe.ids.logs.log import ROW
from mgqe.ids.logs.paths import LogFile
from mgqe.ids.logs.text import LINE, TEXT, excerpt, first_lines, is_utf8, scan_lines
from mgqe.recsys.data.columns import USUAL
from mgqe.recsys.data.row_locator import FILE, RowLocator


def _text_lines(files: Sequence[LogFile]) -> tuple[pl.DataFrame, RowLocator]:
    """(frame of FILE, ROW (the line) and `field` (the list of its words), its locator); blank lines are left out."""
    frames = []
    for number, file in enumerate(files):
        first_lines(pl, file.path, 1)  # raises ValueError if the file cannot be read
        frames.append(scan_lines(pl, file.path, numbered=True).collect().with_columns(pl.lit(number).alias(FILE)))
    frame = pl.concat(frames).rename({LINE: ROW}).filter(pl.col(TEXT).str.contains(r"\S"))
    locator = RowLocator([file.path for file in files], "line")
    suspects = frame.filter(pl.col(TEXT).str.contains("\ufffd", literal=True))
    for number in suspects[FILE].unique(maintain_order=True).to_list():
        if not is_utf8(files[number].path):
            lines = suspects.filter(pl.col(FILE) == number)
            raise ValueError(
                f"{locator.describe(lines, 0)}: {excerpt(lines[TEXT][0])} is not UTF-8: write the file as UTF-8"
            )
    words = pl.col(TEXT).str.replace_all(r"\s+", " ").str.strip_chars().str.split(" ").alias("field")
    return frame.select(FILE, ROW, words), locator


def read_pairs(files: Sequence[LogFile]) -> pl.DataFrame:
    """Columns user and item of lines `user item`."""
    frame, locator = _text_lines(files)
    wrong = frame.filter(pl.col("field").list.len() != 2)
    if wrong.height:
        fields = wrong["field"][0].to_list()
        raise ValueError(
            f"{locator.describe(wrong, 0)}: expected 2 fields, `user item`, got {len(fields)}: "
            f"{excerpt(' '.join(fields))} "
            "(if each line is one user and all their items, say --format lines; if the file has columns with a header, "
            "--format csv; without a header, --no-header too, and name the columns by their numbers from 1; if spaces "
            "separate them, --separator space)"
        )
    frame = frame.select(pl.col("field").list.get(0).alias("user"), pl.col("field").list.get(1).alias("item"))
    if frame.height and tuple(word.lower() for word in frame.row(0)) in itertools.product(USUAL["user"], USUAL["item"]):
        raise ValueError(
            f"{files[0].path}, line 1: expected `user item`, got what looks like a header, "
            f"{excerpt(' '.join(frame.row(0)))}: delete that line, or separate the columns by commas or tabs and "
            "say --format csv"
        )
    return frame


def read_lines(files: Sequence[LogFile]) -> pl.DataFrame:
    """Columns user and item of lines `user item item ...`."""
    frame, locator = _text_lines(files)
    frame = frame.with_columns(pl.col("field").list.get(0).alias("user"))
    wrong = frame.filter(pl.col("field").list.len() < 2)
    if wrong.height:
        text = " ".join(wrong["field"][0])
        raise ValueError(
            f"{locator.describe(wrong, 0)}: expected `user item item ...`, got {excerpt(text)} and no item"
        )
    repeated = frame.filter(~pl.col("user").is_first_distinct())
    if repeated.height:
        user = repeated["user"][0]
        first = frame.filter(pl.col("user") == user)[ROW][0]
        raise ValueError(
            f"{locator.describe(repeated, 0)}: user {user} already has line {first}: expected one line per user "
            "(if each line is one interaction, `user item`, say --format pairs: every line must then have 2 fields)"
        )
    return frame.select("user", pl.col("field").list.slice(1).alias("item")).explode("item")
