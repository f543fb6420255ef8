"""Errors for a log that could not be counted: the file and the row that are to blame are searched afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mgqe.ids.logs.frames import collect, scan_parquet
from mgqe.ids.logs.id_columns import INTEGERS, NULL_WORDS, as_kind, kind_of_type, mixes_number_types, raw_ids
from mgqe.ids.logs.log import ROW, Log, LogPart
from mgqe.ids.logs.text import COUNT, LINE, QUOTES, TEXT, TextFile, excerpt, scan_lines, split_line
from mgqe.ids.logs.text_layout import NO_QUOTE


def explain(pl: Any, log: Log, names: Sequence[str], kind: str) -> ValueError:
    """The error for ids that are missing or of another kind, or for a file that polars could not read."""
    for part in log.parts:
        try:
            wrong = next((text for name in names if (text := _wrong_in(pl, log, part, name, kind))), None)
        except pl.exceptions.PolarsError:
            return _part_error(pl, part)
        if wrong:
            return ValueError(f"{part.where}: {wrong}")
    columns = ", ".join(map(repr, names))
    return ValueError(
        f"{log.source}: column {columns} could not be counted, but no row of it is wrong any more: count again when "
        "no program writes to it"
    )


def _part_error(pl: Any, part: LogPart) -> ValueError:
    """The error for a log part that polars cannot read."""
    if part.path is None:
        return ValueError("the frame cannot be computed: call its method collect to see the reason")
    if part.text is not None:
        return ValueError(f"{part.path}: cannot be read as text: damaged, or it holds NUL bytes")
    try:
        scan_parquet(pl, part.path).collect_schema()
    except pl.exceptions.PolarsError:
        return ValueError(f"{part.path}: cannot be read as parquet: damaged, or cut short")
    return ValueError(f"{part.path}: cannot be read as parquet: pages of its columns are damaged")


def _wrong_in(pl: Any, log: Log, part: LogPart, name: str, kind: str) -> str | None:
    """What is wrong with the first bad row of a column in a log part; None if there is none."""
    whole = mixes_number_types(kind_of_type(name, raw_ids(pl, other, name)[1]) for other in log.parts)
    ids, dtype = raw_ids(pl, part, name, rows=True)
    bad = as_kind(pl, dtype, kind, whole).is_null()
    if part.text is not None:
        bad = bad | (pl.col(COUNT) != part.text.width)
    first_bad = collect(ids.filter(bad).head(1))
    if not first_bad.height:
        return None
    row = first_bad.row(0, named=True)
    if part.text is not None:
        return explain_line(pl, part.text, row[ROW], row[COUNT]) or (
            f"line {row[ROW]:,}, column {name!r}: {_wrong_text(pl, part.text, name, row, kind)}"
        )
    where, value = f"column {name!r}, row {row[ROW]:,} from 0:", row["id"]
    if value is None or value != value:
        missing = collect(ids.filter(bad).select(pl.len())).item()
        return f"{where} {missing:,} missing ids (null): drop or fill them first"
    return (
        f"{where} holds {excerpt(str(value))}, cannot be read as {kind}: correct or drop what is wrong, or say what "
        "the ids are with kind="
    )


def explain_line(pl: Any, file: TextFile, line: int, count: int) -> str | None:
    """What an error says about a line with too many or too few fields; None if the number is right."""
    if count == file.width:
        return None
    text = read_line(pl, file, line)
    quotes = f"; if its quotes are plain text, {NO_QUOTE}" if has_quote(file, text) else ""
    return (
        f"line {line:,} has {count} fields, expected {_expected(file)}: correct or drop that line, or say what "
        f"separates the fields with separator= (--separator){quotes}: {excerpt(text)}"
    )


def _expected(file: TextFile) -> str:
    return f"the header's {file.width}" if file.header else f"{file.width} as in line 1"


def _wrong_text(pl: Any, file: TextFile, name: str, row: dict[str, Any], kind: str) -> str:
    field = row["id"]
    if field is None:
        return explain_field(pl, file, name, row[ROW]) or f"missing id, expected {kind}: fill it, or drop that line"
    if not field.strip() or (kind in INTEGERS and field.strip().lower() in NULL_WORDS):
        return f"missing id, expected {kind}: fill it, or drop that line"
    return (
        f"expected an integer ({kind}), got {excerpt(field)}: correct or drop that line, or count the ids as text with "
        "kind='string'"
    )


def explain_field(pl: Any, file: TextFile, name: str, line: int) -> str | None:
    """Why a field of a line could not be read as text; None if the field is empty."""
    text = read_line(pl, file, line)
    fields = split_line(text, file.layout)
    if name not in file.positions:
        return "missing id in the name of the folder: drop that folder, or read its files separately"
    field = fields[file.positions[name]] if len(fields) == file.width else text
    if "\ufffd" in field:
        return f"{excerpt(field)} is not UTF-8: write the file as UTF-8"
    if has_quote(file, field) or (has_quote(file, text) and field.strip()):
        return f"quotes around a part of {excerpt(field)}: {QUOTES}"
    return None


def has_quote(file: TextFile, text: str) -> bool:
    """Whether a text has the quote character of the file."""
    return bool(file.layout.quote) and file.layout.quote in text


def read_line(pl: Any, file: TextFile, line: int) -> str:
    """A line by its number from 1; empty if there is no such line."""
    lines = collect(scan_lines(pl, file.path, numbered=True).filter(pl.col(LINE) == line).select(TEXT))[TEXT].to_list()
    return (lines[0] if lines else None) or ""
