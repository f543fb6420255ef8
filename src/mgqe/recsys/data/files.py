"""Reads files of interactions into a data frame with columns `user` or `session`, `item` and perhaps `time`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mgqe.ids.logs.paths import log_files
from mgqe.ids.logs.text import first_lines, is_recbole
from mgqe.ids.logs.text_layout import NO_HEADER
from mgqe.recsys.data.column_files import read_table
from mgqe.recsys.data.columns import SEPARATORS, Columns, owner_of
from mgqe.recsys.data.line_files import read_lines, read_pairs

IN_ORDER = ("pairs", "lines")  # formats whose lines are in time order; of the others a column of times says it
FORMATS = ("csv", "parquet", "inter", *IN_ORDER)


def recognise(source: Path | str) -> str:
    """The format of a file, or of the first of several, by its extension and first lines; ValueError if none fits."""
    file = log_files(source)[0]
    if file.parquet:
        return "parquet"
    path, head = file.path, first_lines(pl, file.path)
    text = "".join(head)
    if text.count("\ufffd") > len(text) // 4:
        raise ValueError(f"{path}: expected UTF-8 text or Parquet, got bytes that are neither")
    lines = [line.strip() for line in head if line.strip()]
    if is_recbole(path, lines[0]):
        return "inter"
    if Path(path).suffix.lower() in (".csv", ".tsv") or any(s in lines[0] for s in SEPARATORS if s != "\t"):
        return "csv"
    if "\t" in lines[0] and not lines[0].split("\t")[0].strip().isdigit():
        return "csv"
    # In lines of `user item`, users occur repeatedly; with one line per user they do not.
    rows = [line.split() for line in lines]
    if all(len(row) == 2 for row in rows):
        return "pairs"
    alike = len(rows) > 1 and len({len(row) for row in rows}) == 1
    repeated = len({row[0] for row in rows}) < len(rows)
    if alike and repeated and all(len(line.split("\t")) == len(rows[0]) for line in lines):
        return "csv"  # whose reader raises the error that the header is missing
    if repeated:
        return "pairs"
    if alike:
        raise ValueError(
            f"{path}: every line has {len(rows[0])} words, which may be columns or a user and all their items: "
            f"say --format lines, or, if they are columns without a header, --format csv --separator space; {NO_HEADER}"
        )
    return "lines"


def read_frame(source: Path | str, format: str, columns: Columns) -> pl.DataFrame:
    """Read files in a format; ids become Int64 if all of them are integers, else String.

    source: a file, a folder of files as Spark writes it, or a pattern.
    """
    if columns.context and format in ("pairs", "lines"):
        raise ValueError(
            f"{source}: context columns ({', '.join(columns.context)}) need a file whose columns have names, got "
            f"format {format}: give it a header and say --format csv"
        )
    if format in ("pairs", "lines") and (named_columns := columns.named):
        role, name = named_columns[0]
        raise ValueError(
            f"{source}: --{role}-column {name} is for files with columns, got format {format}: leave it out, or say "
            f"--format csv, and if the file has no header, {NO_HEADER}"
        )
    try:
        files = log_files(source)
        if files[0].parquet != (format == "parquet"):
            raise ValueError(
                f"{files[0].path}: cannot be read as {format}: it is {'Parquet' if files[0].parquet else 'text'}; "
                "name its layout with --format"
            )
        if format == "pairs":
            frame = read_pairs(files)
        elif format == "lines":
            frame = read_lines(files)
        else:
            frame = read_table(source, files, format, columns)
    except pl.exceptions.PolarsError:
        raise ValueError(
            f"{source}: cannot be read as {format}: damaged, or it holds NUL bytes; name its layout with --format"
        ) from None
    except FileNotFoundError as error:
        raise ValueError(error.args[0]) from None
    except OSError as error:
        raise ValueError(f"{source}: cannot be read: {error.strerror or error}") from error
    if frame.height == 0:
        raise ValueError(f"{source} holds no interactions: expected at least one")
    return frame.with_columns(_as_ids(source, frame[name]) for name in (owner_of(frame), "item", *columns.context))


def read_any(source: Path | str, format: str | None, columns: Columns) -> pl.DataFrame:
    """Like read_frame, with what `format_of` makes of the format."""
    return read_frame(source, format_of(source, format, columns), columns)


def format_of(source: Path | str, format: str | None, columns: Columns) -> str:
    """The format; None means csv if `columns` has a separator or a header, else it is recognised."""
    try:
        if format is None and columns.lays_out and not log_files(source)[0].parquet:
            return "csv"
        return format or recognise(source)
    except FileNotFoundError as error:
        raise ValueError(error.args[0]) from None


def _as_ids(path: Path | str, column: pl.Series) -> pl.Series:
    """Int64 if every id is a plain integer (`7`, not `007` or `7.0`), else String."""
    integers: pl.Series
    if column.dtype.is_integer():
        integers = column.cast(pl.Int64, strict=False)
        if integers.null_count():
            raise ValueError(
                f"{path}: expected {column.name} ids that fit signed 64-bit integers, below 2^63, got "
                f"{column.max()!r}: cast the column to text"
            )
        return integers
    if column.dtype.is_float():
        whole: pl.Series = column.cast(pl.Int64, strict=False)
        if not whole.null_count() and bool((whole.cast(column.dtype) == column).all()):
            return whole
        raise ValueError(
            f"{path}: expected whole numbers or text as {column.name} ids, got fractions: cast the column to one of "
            "these"
        )
    if column.dtype not in (pl.String, pl.Categorical) and not isinstance(column.dtype, pl.Enum):
        raise ValueError(
            f"{path}: expected integers or text as {column.name} ids, got {column.dtype}: cast the column to one of "
            "these"
        )
    text: pl.Series = column.cast(pl.String).str.strip_chars()
    if text.str.contains(r"^(0|-?[1-9]\d{0,17})$").all():
        integers = text.cast(pl.Int64)
        return integers
    return text
