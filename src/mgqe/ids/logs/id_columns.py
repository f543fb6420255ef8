"""The columns of ids in a log, read as ids of one kind; null stands for a missing id or one of another kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mgqe.ids.logs.log import ROW, Log, LogPart
from mgqe.ids.logs.text import COUNT

INTEGERS = ("int64", "uint64")
KINDS = (*INTEGERS, "string", "binary")
FLOAT = "float"  # columns may hold floats, which are no kind of ids
NULL_WORDS = ("null", "nan", "none", "na", "n/a", "\\n", "<na>")  # as programs write a missing value
SAMPLE = 100  # ids of a text file from which their kind is guessed
_INTEGER = re.compile(r"\s*[+-]?\d{1,20}\s*")
_FRACTION = re.compile(r"\s*[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?\s*")


def polars_type(pl: Any, kind: str) -> Any:
    """The polars type of a kind of ids."""
    return {"int64": pl.Int64, "uint64": pl.UInt64, "string": pl.String, "binary": pl.Binary}[kind]


def exact_integer_limit(dtype: Any) -> float:
    """The limit below which a type of floats represents every integer."""
    return 2.0**24 if str(dtype) == "Float32" else 2.0**53


def raw_ids(pl: Any, part: LogPart, name: str, rows: bool = False) -> tuple[Any, Any]:
    """(lazy frame of the column ``id`` as the log part has it, polars type of an id); lists become one row per id.

    rows: adds the column ROW, see LogPart; with lists it is the position among all ids. Text also has COUNT then.
    """
    column = pl.col(name).alias("id")
    if part.text is not None:
        if not rows:
            column = pl.when(pl.col(COUNT) == part.text.width).then(pl.col(name)).alias("id")
            return part.frame.select(column), None
        return part.numbered.select(ROW, COUNT, column), None
    ids, kind = part.frame.select(column), part.types[name]
    while isinstance(kind, (pl.List, pl.Array)):
        if isinstance(kind, pl.List):  # an empty list has no ids, but would become a null
            ids = ids.filter(pl.col("id").is_null() | (pl.col("id").list.len() > 0))
        ids, kind = ids.explode("id"), kind.inner
    return (ids.with_row_index(ROW) if rows else ids), kind


def as_kind(pl: Any, dtype: Any, kind: str, whole: bool) -> Any:
    """Expression: ``id`` converted to the kind; null if it is missing or of another kind.

    whole: whether floats stand for integers, because other files of the log hold integers.
    """
    ids, target = pl.col("id"), polars_type(pl, kind)
    if dtype is not None and dtype.is_float():
        integers = (
            pl.when((ids == ids.floor()) & (ids.abs() < exact_integer_limit(dtype)))
            .then(ids)
            .cast(pl.Int64, strict=False)
        )
        if kind in INTEGERS or whole:
            return integers.cast(target if kind in INTEGERS else pl.String, strict=False).cast(target, strict=False)
        return ids.fill_nan(None).cast(pl.String).cast(target)
    if dtype is None or _is_text(dtype):
        text = ids.cast(pl.String)
        if kind in INTEGERS:
            return text.str.strip_chars().cast(target, strict=False)
        if dtype is None:  # Parquet and frames distinguish empty text from null, text files do not
            text = pl.when(text.str.contains(r"\S")).then(text)
        return text.cast(target)
    if kind == "binary" and dtype != pl.Binary:
        return ids.cast(pl.String).cast(pl.Binary)
    return ids.cast(target, strict=False)


def _is_text(dtype: Any) -> bool:
    return str(dtype).startswith(("String", "Categorical", "Enum"))


def id_frame(pl: Any, log: Log, names: Sequence[str], kind: str) -> Any:
    """Lazy frame of one column ``id``: the ids of all ``names`` and log parts, as ids of the kind."""
    frames = []
    for name in names:
        raw = [(part, *raw_ids(pl, part, name)) for part in log.parts]
        whole = mixes_number_types(kind_of_type(name, dtype) for _, _, dtype in raw)
        frames += [ids.select(id=as_kind(pl, dtype, kind, whole)) for part, ids, dtype in raw]
    return pl.concat(frames)


def mixes_number_types(kinds: Any) -> bool:
    """Whether some of the kinds are integers and some floats."""
    kinds = set(kinds)
    return FLOAT in kinds and bool(kinds & set(INTEGERS))


def kind_of_type(name: str, dtype: Any) -> str:
    """The kind of a polars type: one of KINDS, FLOAT, or "" if it is open. TypeError: no type that ids may have."""
    text = str(dtype)
    if dtype is None:
        return ""
    if dtype.is_integer() and "128" not in text:
        return "uint64" if text == "UInt64" else "int64"
    if text == "Binary":
        return "binary"
    if _is_text(dtype):
        return "string"
    if dtype.is_float():
        return FLOAT
    if text == "Null":  # a column without any value
        return ""
    raise TypeError(
        f"column {name!r}: expected integers, strings or binaries, got {text}: cast the ids to one of these"
    )


def kind_of_column(pl: Any, log: Log, name: str) -> str:
    """The kind of a column's ids in all log parts; FLOAT if all of them hold floats.

    Raises:
        ValueError: log parts hold different kinds. TypeError: a type that ids cannot have.
    """
    kinds: dict[str, LogPart] = {}
    guessed = _guess(pl, log, name) if any(part.types[name] is None for part in log.parts) else ""
    for part in log.parts:
        kind = kind_of_type(name, raw_ids(pl, part, name)[1]) or (guessed if part.types[name] is None else "")
        kinds.setdefault(kind, part)
    if len(kinds) > 1:
        kinds.pop("", None)
    elif "" in kinds:
        return "int64"
    if kinds.keys() <= {*INTEGERS, FLOAT}:
        return FLOAT if len(kinds) == 1 and FLOAT in kinds else "uint64" if "uint64" in kinds else "int64"
    if len(kinds) > 1:
        (kind, part), (other, another) = list(kinds.items())[:2]
        raise ValueError(
            f"{another.where}: column {name!r} holds ids of kind {other}, but of kind {kind} in {part.where}: choose "
            "one for both with kind= (--kind)"
        )
    return next(iter(kinds))


def _guess(pl: Any, log: Log, name: str) -> str:
    """The kind of the ids in text files, by their first ids; int64 if there are none."""
    ids: list[str] = []
    for part in log.parts:
        if part.types[name] is None:
            first = raw_ids(pl, part, name)[0].head(SAMPLE).collect()["id"].to_list()
            ids += [text for text in first if text and text.strip()]
        if len(ids) >= SAMPLE:
            break
    ids = [text for text in ids if text.strip().lower() not in NULL_WORDS] or ids
    if all(map(_INTEGER.fullmatch, ids)):
        numbers = [int(text) for text in ids]
        if not numbers or (min(numbers) >= -(2**63) and max(numbers) < 2**63):
            return "int64"
        return "uint64" if min(numbers) >= 0 else "string"
    return FLOAT if all(_INTEGER.fullmatch(text) or _FRACTION.fullmatch(text) for text in ids) else "string"
