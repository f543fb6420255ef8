"""Reads columns of a text file lazily, so that no row is lost and every error has a line number.

A first pass checks each line, by its bytes alone if that is enough. If all lines are regular, polars' own reader is
correct and fastest. If some are not (a misplaced quote, a missing field), polars reads each line as one field and
expressions split it, so that an error in one line cannot swallow the next. A file with quoted fields of several lines
is read by mgqe.ids.logs.records.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgqe.ids.logs.frames import collect
from mgqe.ids.logs.line_check import all_lines_alike
from mgqe.ids.logs.records import scan_records
from mgqe.ids.logs.text import COUNT, LINE, TEXT, TextFile, is_utf8, scan_lines
from mgqe.ids.logs.text_layout import TextLayout


def scan_text(pl: Any, file: TextFile, folder: Callable[[], Path]) -> tuple[Any, Any]:
    """Two lazy frames of COUNT (the number of fields) and the columns to read as text, null for a missing field.

    The second one, which is for looking up lines, also has LINE, which takes memory for each line.

    Blank lines are left out, except in a file of one column, where they are missing values. ``folder`` returns a folder
    for temporary files; it is called only if quoted fields have several lines.
    """
    if file.empty:
        schema = {COUNT: pl.UInt32, **dict.fromkeys(file.positions, pl.String)}
        return pl.LazyFrame(schema=schema), pl.LazyFrame(schema={LINE: pl.UInt32, **schema})
    check = _check_lines(pl, file)
    if check.regular:
        frames = [_scan_regular(pl, file, numbered) for numbered in (False, True)]
    elif check.closed:
        lines = (scan_lines(pl, file.path, file.header, numbered) for numbered in (False, True))
        frames = [_split(pl, frame, file, check.quoted) for frame in lines]
    else:
        frames = [scan_records(pl, file, folder())] * 2
    if check.replaced and not is_utf8(file.path):  # such values become null; explain_field finds the reason
        good = {name: ~pl.col(name).str.contains("\ufffd", literal=True) for name in file.positions}
        columns = [pl.when(good[name]).then(pl.col(name)).alias(name) for name in good]
        frames = [frame.with_columns(columns) for frame in frames]
    return frames[0], frames[1]


@dataclass(frozen=True)
class _LineCheck:
    """The result of the first pass over a file's lines.

    replaced: there is a U+FFFD. quoted: there are quotes. regular: every line has all fields and its quotes enclose
    whole fields, so that polars' own reader is correct. closed: no line ends inside quotes.
    """

    replaced: bool
    quoted: bool
    regular: bool
    closed: bool = True


def _check_lines(pl: Any, file: TextFile) -> _LineCheck:
    lines, layout, text = scan_lines(pl, file.path), file.layout, pl.col(TEXT)
    known = len(layout.separator) == 1 and (layout.separator + layout.quote).isascii()
    if known and (utf8 := all_lines_alike(file.path, layout.separator, layout.quote, file.width)) is not None:
        return _LineCheck(replaced=not utf8, quoted=False, regular=True)
    result = lines.select(
        replaced=text.str.contains("\ufffd", literal=True).any(),
        quoted=text.str.contains(layout.quote, literal=True).any() if layout.quote else pl.lit(False),
        even=(text.fill_null("").str.count_matches(layout.separator, literal=True) == file.width - 1).all(),
    )
    replaced, quoted, even = collect(result).row(0)
    if not quoted:
        return _LineCheck(replaced, quoted, even and known)
    # With a separator before each line, one pattern fits the first field as well as the others.
    text = layout.separator + text.fill_null("")
    s, q = re.escape(layout.separator), re.escape(layout.quote)
    strict = f"{s}(?:{q}(?:[^{q}]|{q}{q})*{q}|[^{s}{q}]*)"
    result = lines.select(
        regular=text.str.contains(f"^(?:{strict}){{{file.width}}}$").all(),
        closed=text.str.contains(f"^(?:{_field_pattern(layout)})*$").all(),
    )
    regular, closed = collect(result).row(0)
    return _LineCheck(replaced, quoted, regular and known, closed)


def _scan_regular(pl: Any, file: TextFile, numbered: bool) -> Any:
    index = {"row_index_name": LINE, "row_index_offset": 1 + file.header} if numbered else {}
    frame = pl.scan_csv(
        file.path, has_header=False, separator=file.layout.separator, quote_char=file.layout.quote or None,
        schema={str(i): pl.String for i in range(file.width)}, encoding="utf8-lossy", skip_rows=file.header,
        glob=False, **index,
    )  # fmt: skip
    columns = {name: pl.col(str(position)) for name, position in file.positions.items()} or {TEXT: pl.col("0")}
    count = pl.lit(file.width, dtype=pl.UInt32).alias(COUNT)
    return frame.select(*([LINE] if numbered else []), **columns).with_columns(count)


def _split(pl: Any, lines: Any, file: TextFile, quoted: bool) -> Any:
    if file.width > 1:
        lines = lines.filter(pl.col(TEXT).str.contains(r"\S"))
    fields, field = _fields(pl, file.layout, quoted)
    columns = {name: field(position) for name, position in file.positions.items()}
    lines = lines.with_columns(fields)
    return lines.with_columns(pl.col(TEXT).list.len().alias(COUNT), **columns).select(pl.exclude(TEXT))


def _field_pattern(layout: TextLayout) -> str:
    """A separator and the field after it, which is quoted, or does not begin with a quote."""
    s, q = re.escape(layout.separator), re.escape(layout.quote)
    return f"{s}(?:{q}(?:[^{q}]|{q}{q})*{q}(?:[^{s}{q}][^{s}]*)?|[^{s}{q}][^{s}]*)?"


def _fields(pl: Any, layout: TextLayout, quoted: bool) -> tuple[Any, Any]:
    """(expression of the list of fields, function from a position to the expression of that field as text)."""
    text = pl.col(TEXT).fill_null("")

    def plain(position: int) -> Any:
        return pl.col(TEXT).list.get(position, null_on_oob=True)

    if not quoted:
        return text.str.split(layout.separator).alias(TEXT), plain
    q = re.escape(layout.quote)

    def field(position: int) -> Any:
        raw = plain(position).str.slice(1)
        inner = raw.str.extract(f"^{q}((?:[^{q}]|{q}{q})*){q}\\s*$")
        doubled = inner.str.replace_all(layout.quote * 2, layout.quote, literal=True)
        return pl.when(raw.str.starts_with(layout.quote)).then(doubled).otherwise(raw)

    return (layout.separator + text).str.extract_all(_field_pattern(layout)).alias(TEXT), field
