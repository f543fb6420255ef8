"""The columns of a text file, read lazily, so that no row is lost and every fault has a line number.

A first pass looks at each line, at the bytes alone where that is enough. If all of them are as they should be, polars'
own reader is right and fastest. If some are not (a quote out of place, a field too few), polars takes each line as one
field and expressions split it: what is wrong in one line cannot swallow the next. Only a file with quoted fields of
several lines goes another way (mgqe.ids.logs.records).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgqe.ids.logs.line_check import all_lines_alike
from mgqe.ids.logs.text import COUNT, LINE, TEXT, TextFile, is_utf8, scan_lines
from mgqe.ids.logs.text_layout import TextLayout


def scan_text(pl: Any, file: TextFile, folder: Callable[[], Path]) -> tuple[Any, Any]:
    """Two lazy frames of COUNT (a line's fields) and the wanted columns as text, null where a line has no such field.

    The second has LINE besides, which takes memory by the line: it is for looking lines up.

    Lines without anything in them are left out, but not of a file of one column, where they are a missing value.
    ``folder`` gives a folder for temporary files; it is asked only where quoted fields go over several lines.
    """
    if file.empty:
        schema = {COUNT: pl.UInt32, **dict.fromkeys(file.places, pl.String)}
        return pl.LazyFrame(schema=schema), pl.LazyFrame(schema={LINE: pl.UInt32, **schema})
    shape = _look(pl, file)
    if shape.regular:
        frames = [_scan_regular(pl, file, numbered) for numbered in (False, True)]
    elif shape.closed:
        lines = (scan_lines(pl, file.path, file.header, numbered) for numbered in (False, True))
        frames = [_split(pl, frame, file, shape.quoted) for frame in lines]
    else:
        from mgqe.ids.logs.records import scan_records

        frames = [scan_records(pl, file, folder())] * 2
    if shape.replaced and not is_utf8(file.path):  # then the value is missing, and whoever meets that looks why
        good = {name: ~pl.col(name).str.contains("\ufffd", literal=True) for name in file.places}
        columns = [pl.when(good[name]).then(pl.col(name)).alias(name) for name in good]
        frames = [frame.with_columns(columns) for frame in frames]
    return frames[0], frames[1]


@dataclass(frozen=True)
class _Shape:
    """What a first pass over a file's lines says of it.

    replaced: there is U+FFFD in it. quoted: there are quotes. regular: every line has all fields and quotes are where
    they should be, so that polars' own reader is right. closed: no line ends inside quotes.
    """

    replaced: bool
    quoted: bool
    regular: bool
    closed: bool = True


def _look(pl: Any, file: TextFile) -> _Shape:
    lines, layout, text = scan_lines(pl, file.path), file.layout, pl.col(TEXT)
    known = len(layout.separator) == 1 and (layout.separator + layout.quote).isascii()
    if known and (utf8 := all_lines_alike(file.path, layout.separator, layout.quote, file.width)) is not None:
        return _Shape(replaced=not utf8, quoted=False, regular=True)
    looked = lines.select(
        replaced=text.str.contains("\ufffd", literal=True).any(),
        quoted=text.str.contains(layout.quote, literal=True).any() if layout.quote else pl.lit(False),
        even=(text.fill_null("").str.count_matches(layout.separator, literal=True) == file.width - 1).all(),
    )
    replaced, quoted, even = _collect(looked).row(0)
    if not quoted:
        return _Shape(replaced, quoted, even and known)
    # A separator before each line makes all its fields alike.
    text = layout.separator + text.fill_null("")
    s, q = re.escape(layout.separator), re.escape(layout.quote)
    strict = f"{s}(?:{q}(?:[^{q}]|{q}{q})*{q}|[^{s}{q}]*)"
    looked = lines.select(
        regular=text.str.contains(f"^(?:{strict}){{{file.width}}}$").all(),
        closed=text.str.contains(f"^(?:{_field_pattern(layout)})*$").all(),
    )
    regular, closed = _collect(looked).row(0)
    return _Shape(replaced, quoted, regular and known, closed)


def _scan_regular(pl: Any, file: TextFile, numbered: bool) -> Any:
    index = {"row_index_name": LINE, "row_index_offset": 1 + file.header} if numbered else {}
    frame = pl.scan_csv(
        file.path, has_header=False, separator=file.layout.separator, quote_char=file.layout.quote or None,
        schema={str(place): pl.String for place in range(file.width)}, encoding="utf8-lossy", skip_rows=file.header,
        glob=False, **index,
    )  # fmt: skip
    columns = {name: pl.col(str(place)) for name, place in file.places.items()} or {TEXT: pl.col("0")}
    count = pl.lit(file.width, dtype=pl.UInt32).alias(COUNT)
    return frame.select(*([LINE] if numbered else []), **columns).with_columns(count)


def _split(pl: Any, lines: Any, file: TextFile, quoted: bool) -> Any:
    if file.width > 1:
        lines = lines.filter(pl.col(TEXT).str.contains(r"\S"))
    fields, field = _fields(pl, file.layout, quoted)
    columns = {name: field(place) for name, place in file.places.items()}
    lines = lines.with_columns(fields)
    return lines.with_columns(pl.col(TEXT).list.len().alias(COUNT), **columns).select(pl.exclude(TEXT))


def _field_pattern(layout: TextLayout) -> str:
    """A separator and the field after it, which is quoted, or does not begin with a quote."""
    s, q = re.escape(layout.separator), re.escape(layout.quote)
    return f"{s}(?:{q}(?:[^{q}]|{q}{q})*{q}(?:[^{s}{q}][^{s}]*)?|[^{s}{q}][^{s}]*)?"


def _fields(pl: Any, layout: TextLayout, quoted: bool) -> tuple[Any, Any]:
    """(expression of the list of fields, function of a place that gives one as text)."""
    text = pl.col(TEXT).fill_null("")

    def plain(place: int) -> Any:
        return pl.col(TEXT).list.get(place, null_on_oob=True)

    if not quoted:
        return text.str.split(layout.separator).alias(TEXT), plain
    q = re.escape(layout.quote)

    def field(place: int) -> Any:
        raw = plain(place).str.slice(1)
        inner = raw.str.extract(f"^{q}((?:[^{q}]|{q}{q})*){q}\\s*$")
        doubled = inner.str.replace_all(layout.quote * 2, layout.quote, literal=True)
        return pl.when(raw.str.starts_with(layout.quote)).then(doubled).otherwise(raw)

    return (layout.separator + text).str.extract_all(_field_pattern(layout)).alias(TEXT), field


def _collect(frame: Any) -> Any:
    from mgqe.ids.logs.frames import collect

    return collect(frame)
