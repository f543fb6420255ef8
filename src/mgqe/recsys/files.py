"""Files of interactions -> a data frame with columns `user`, `item` and, where there is one, `time`."""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path

import polars as pl

FORMATS = ("csv", "parquet", "inter", "pairs", "lines")
_SEPARATORS = (",", "\t", ";", "|")
_NAMES = {
    "user": ("user", "user_id", "userid", "uid", "reviewerid", "reviewer_id", "customer_id", "visitorid", "session_id"),
    "item": (
        "item", "item_id", "itemid", "iid", "movie", "movie_id", "movieid", "product", "product_id", "productid",
        "asin", "book_id", "track_id", "business_id", "article_id", "app_id",
    ),
    "time": ("timestamp", "time", "ts", "datetime", "date", "unixreviewtime", "event_time", "created_at"),
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the user, the item and the time; None: look for a usual name.

    context: names of further columns to read, each a category (weekday, country, ...).
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None
    context: tuple[str, ...] = ()


def recognise(path: Path) -> str:
    """The layout of `path`, by its ending and its first lines; ValueError when nothing fits."""
    with path.open("rb") as file:
        head = file.read(65536)
    if head[:4] == b"PAR1":
        return "parquet"
    if path.suffix.lower() in (".parquet", ".pq"):
        raise ValueError(f"{path}: expected Parquet by its name, but it does not begin with PAR1")
    try:
        text = head.decode("utf-8-sig") if len(head) < 65536 else head[: head.rfind(b"\n")].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text or Parquet, got bytes that are neither") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty: expected at least one interaction")
    if path.suffix.lower() == ".inter" or ":token" in lines[0]:
        return "inter"
    if path.suffix.lower() in (".csv", ".tsv") or any(s in lines[0] for s in _SEPARATORS if s != "\t"):
        return "csv"
    if "\t" in lines[0] and not lines[0].split("\t")[0].strip().isdigit():
        return "csv"
    # `user item` rows repeat their users; a line a user does not.
    rows = [line.split() for line in lines]
    if all(len(row) == 2 for row in rows):
        return "pairs"
    if len({row[0] for row in rows}) < len(rows):
        return "pairs"
    if len(rows) > 1 and len({len(row) for row in rows}) == 1:
        raise ValueError(
            f"{path}: every line has {len(rows[0])} words, which may be columns or a user and all its items: "
            "say --format lines, or give the columns a header and say --format csv"
        )
    return "lines"


def read_frame(path: Path, format: str, columns: Columns) -> pl.DataFrame:
    """Read `path` laid out as `format`; ids come out as Int64 where all of them are integers, else as String."""
    if columns.context and format in ("pairs", "lines"):
        raise ValueError(
            f"{path}: context columns ({', '.join(columns.context)}) need a file whose columns have names, got format "
            f"{format}: give it a header and say --format csv"
        )
    try:
        if format == "pairs":
            frame = _read_pairs(path)
        elif format == "lines":
            frame = _read_lines(path)
        elif format == "parquet":
            frame = _pick(path, pl.read_parquet(path), columns, first_line=1, unit="row")
        else:
            frame = _read_csv(path, columns, "\t" if format == "inter" else None)
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: cannot be read as {format}: {reason}; name its layout with --format") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if frame.height == 0:
        raise ValueError(f"{path} holds no interactions: expected at least one")
    try:
        return frame.with_columns(_as_ids(path, frame[name]) for name in ("user", "item", *columns.context))
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: expected ids that fit 64-bit integers, or text: {error}") from error


def _text_lines(path: Path) -> pl.DataFrame:
    """Columns `line` (number, from 1) and `field` (list of the line's words); blank lines left out."""
    try:
        # \x01 stands for a separator that never comes: every line is one field.
        frame = pl.read_csv(
            path, separator="\x01", has_header=False, new_columns=["text"], quote_char=None, infer_schema=False
        )
    except pl.exceptions.NoDataError:
        raise ValueError(f"{path} is empty: expected at least one interaction") from None
    words = pl.col("text").str.replace_all(r"\s+", " ").str.strip_chars().str.split(" ").alias("field")
    frame = frame.with_row_index("line", offset=1).filter(pl.col("text").str.strip_chars() != "")
    return frame.select("line", words)


def _read_pairs(path: Path) -> pl.DataFrame:
    frame = _text_lines(path)
    wrong = frame.filter(pl.col("field").list.len() != 2)
    if wrong.height:
        line, field = wrong.row(0)
        raise ValueError(
            f"{path}, line {line}: expected 2 fields, `user item`, got {len(field)}: {_shown(field)} "
            "(if each line is one user and all their items, say --format lines; if the file has a header, csv)"
        )
    frame = frame.select(pl.col("field").list.get(0).alias("user"), pl.col("field").list.get(1).alias("item"))
    if frame.height and tuple(word.lower() for word in frame.row(0)) in itertools.product(
        _NAMES["user"], _NAMES["item"]
    ):
        raise ValueError(
            f"{path}, line 1: expected `user item`, got what looks like a header, {_shown(list(frame.row(0)))}: "
            "delete that line, or separate the columns by commas or tabs and say --format csv"
        )
    return frame


def _read_lines(path: Path) -> pl.DataFrame:
    frame = _text_lines(path).with_columns(pl.col("field").list.get(0).alias("user"))
    wrong = frame.filter(pl.col("field").list.len() < 2)
    if wrong.height:
        line, field, _ = wrong.row(0)
        raise ValueError(f"{path}, line {line}: expected `user item item ...`, got {_shown(field)} and no item")
    twice = frame.filter(~pl.col("user").is_first_distinct())
    if twice.height:
        line, _, user = twice.row(0)
        first = frame.filter(pl.col("user") == user)["line"][0]
        raise ValueError(
            f"{path}, line {line}: user {user} already has line {first}: expected one line a user "
            "(if each line is one interaction, `user item`, say --format pairs: every line must then have 2 fields)"
        )
    return frame.select("user", pl.col("field").list.slice(1).alias("item")).explode("item")


def _read_csv(path: Path, columns: Columns, separator: str | None) -> pl.DataFrame:
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline().rstrip("\r\n")
    if not header.strip():
        raise ValueError(f"{path}: expected a header line with the columns' names, got an empty line")
    separator = separator or max(_SEPARATORS, key=header.count)
    names = next(csv.reader([header], delimiter=separator))
    if len(set(names)) < len(names):
        raise ValueError(f"{path}, line 1: expected distinct column names, got {', '.join(names)}")
    try:
        frame = pl.read_csv(path, separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError:
        _check_ragged(path, separator)
        raise
    if frame.height and frame[frame.columns[-1]].null_count():
        _check_ragged(path, separator)
    # RecBole writes `name:type` in the header.
    frame = frame.rename({name: name.split(":")[0].strip() for name in frame.columns})
    return _pick(path, frame, columns, first_line=2, unit="line")


def _check_ragged(path: Path, separator: str) -> None:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=separator)
        width = len(next(rows))
        for row in rows:
            if row and len(row) != width:
                raise ValueError(
                    f"{path}, line {rows.line_num}: expected {width} fields as in the header, got {len(row)}: "
                    f"{_shown(row)}"
                )


def _pick(path: Path, frame: pl.DataFrame, columns: Columns, first_line: int, unit: str) -> pl.DataFrame:
    """The user, item, time and context columns of `frame`, checked for nulls."""
    taken: dict[str, str] = {}
    for role, given in (("user", columns.user), ("item", columns.item), ("time", columns.time)):
        lowered = {name.lower(): name for name in reversed(frame.columns)}
        if given is not None and given not in frame.columns:
            raise ValueError(f"{path}: no column {given!r} for the {role}; it has {', '.join(frame.columns)}")
        name = given or next((lowered[usual] for usual in _NAMES[role] if usual in lowered), None)
        if name is None and role != "time":
            raise ValueError(
                f"{path}: no column that looks like the {role} (such as {', '.join(_NAMES[role][:3])}); it has "
                f"{', '.join(frame.columns)}; name it with --{role}-column"
            )
        if name is not None:
            taken[role] = name
    for name in columns.context:
        if name not in frame.columns:
            raise ValueError(f"{path}: no context column {name!r}; it has {', '.join(frame.columns)}")
        if name in _NAMES or name in taken.values():
            raise ValueError(
                f"{path}: column {name!r} is the user, the item or the time, or has such a name: no context"
            )
    taken.update((name, name) for name in columns.context)
    frame = frame.select(pl.col(name).alias(role) for role, name in taken.items())
    if "time" in taken:
        frame = frame.with_columns(_as_time(path, frame["time"], taken["time"], first_line, unit))
    for role, name in taken.items():
        column = frame[role]
        bad = column.is_null() | (column.is_nan() if column.dtype.is_float() else False)
        if bad.any():
            line = int(bad.arg_true()[0]) + first_line
            article = "an" if role == "item" else "a"
            raise ValueError(f"{path}, {unit} {line}: expected {article} {role} in column {name!r}, got nothing")
    return frame.with_columns(_as_context(path, frame[name], first_line, unit) for name in columns.context)


def _as_context(path: Path, column: pl.Series, first_line: int, unit: str) -> pl.Series:
    """A column of categories; text that says `nan` is a value that some program did not have."""
    text = column.cast(pl.String) if column.dtype == pl.Boolean else column
    if text.dtype == pl.String:
        missing = text.str.strip_chars().str.to_lowercase().is_in(["", "nan"])
        if missing.any():
            at = int(missing.arg_true()[0])
            raise ValueError(
                f"{path}, {unit} {at + first_line}: expected a category in column {column.name!r}, got {text[at]!r}; "
                "give missing values a name such as unknown"
            )
    return text


def _as_time(path: Path, column: pl.Series, name: str, first_line: int, unit: str) -> pl.Series:
    """Numbers stay numbers; text becomes numbers or, failing that, dates."""
    if column.dtype.is_numeric() or column.dtype.is_temporal():
        return column
    text: pl.Series = column.cast(pl.String).str.strip_chars()
    for kind in (pl.Int64, pl.Float64):
        numbers: pl.Series = text.cast(kind, strict=False)
        if numbers.null_count() == text.null_count():
            return numbers
    try:
        dates: pl.Series = text.str.to_datetime(strict=True)
        return dates
    except pl.exceptions.PolarsError:
        odd = int((numbers.is_null() & text.is_not_null()).arg_true()[0])
        raise ValueError(
            f"{path}, {unit} {odd + first_line}: expected a number or a date in column {name!r}, got {text[odd]!r}"
        ) from None


def _as_ids(path: Path, column: pl.Series) -> pl.Series:
    """Int64 when every id is a plain integer (`7`, not `007` or `7.0`), else String."""
    integers: pl.Series
    if column.dtype.is_integer():
        integers = column.cast(pl.Int64)
        return integers
    if column.dtype.is_float():
        whole: pl.Series = column.cast(pl.Int64, strict=False)
        if not whole.null_count() and bool((whole.cast(column.dtype) == column).all()):
            return whole
        raise ValueError(f"{path}: expected whole numbers or text as {column.name} ids, got fractions")
    if column.dtype not in (pl.String, pl.Categorical) and not isinstance(column.dtype, pl.Enum):
        raise ValueError(f"{path}: expected integers or text as {column.name} ids, got {column.dtype}")
    text: pl.Series = column.cast(pl.String).str.strip_chars()
    if text.str.contains(r"^(0|-?[1-9]\d{0,17})$").all():
        integers = text.cast(pl.Int64)
        return integers
    return text


def _shown(fields: list[str]) -> str:
    text = " ".join(fields)
    return repr(text if len(text) <= 60 else text[:57] + "...")
