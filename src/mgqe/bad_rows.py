"""Why a log could not be counted: the file, the row and what is wrong with it, looked for after the fact."""

from __future__ import annotations

import csv
import glob
import os
from pathlib import Path
from typing import Any

from mgqe.log_files import PARQUET, collect, id_column, is_frame

LONGEST_SHOWN = 60  # characters


def explain(pl: Any, error: Exception, source: Any, names: list[str], kind: str, separator: str) -> Exception:
    """What to raise instead of polars' error, or of missing ids."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    missing = not isinstance(error, pl.exceptions.PolarsError)
    what = f"{int(reason):,} missing ids (null)" if missing else f"cannot be read as {kind}: {reason}"
    remedy = (
        "drop or fill them first" if missing else "correct or drop what is wrong, or say what the ids are with kind="
    )
    if is_frame(source):
        where = _where(pl, source, names, kind)
        return ValueError(f"the frame: {where}{what}: {remedy}")
    for path in _paths(source):
        found = None
        if Path(path).suffix.lower() not in PARQUET:
            found = _bad_csv_row(path, names, kind, separator)
        elif not _whole(pl, path, names):
            return ValueError(
                f"{path}: damaged, or cut short, or its columns are not those of the other files: {reason}"
            )
        else:
            where = _where(pl, path, names, kind)
            found = where and f"{where}{what}: {remedy}"
        if found:
            return ValueError(f"{path}: {found}")
    return ValueError(f"{source}: column {', '.join(map(repr, names))}: {what}: {remedy}")


def _paths(source: Any) -> list[str]:
    """Every file, patterns and folders resolved."""
    found = []
    for part in source if isinstance(source, (list, tuple)) else [source]:
        path = os.fspath(part)
        if os.path.isdir(path):
            found += sorted(str(inner) for inner in Path(path).rglob("*") if inner.is_file())
        else:
            found += sorted(glob.glob(path, recursive=True)) or [path]
    return found


def _whole(pl: Any, path: str, names: list[str]) -> bool:
    """Whether every page of the columns can be read."""
    try:
        collect(pl.scan_parquet(path).select(pl.col(name).hash(0).max() for name in names))
    except pl.exceptions.PolarsError:
        return False
    return True


def _where(pl: Any, source: Any, names: list[str], kind: str) -> str:
    """The first row, counted from 0, with a missing id or one that is not of the kind; empty if there is none."""
    frame = source.lazy() if is_frame(source) else pl.scan_parquet(source)
    for name in names:
        try:
            ids, _ = id_column(pl, frame, frame.collect_schema(), name)
            wanted = {"int64": pl.Int64, "uint64": pl.UInt64, "string": pl.String, "binary": pl.Binary}[kind]
            bad = pl.col("id").is_null() | pl.col("id").cast(wanted, strict=False).is_null()
            # An exploded list has more rows than the file: then this is the place among all its ids.
            row = collect(ids.with_row_index("row").filter(bad).head(1))
        except (pl.exceptions.PolarsError, KeyError):
            continue
        if row.height:
            shown = "" if row["id"][0] is None else f" holds {_shown(str(row['id'][0]))},"
            return f"column {name!r}, row {row['row'][0]:,} from 0:{shown} "
    return ""


def _bad_csv_row(path: str, names: list[str], kind: str, separator: str) -> str | None:
    """What is wrong with the first bad row, by Python's own reader, which can say where it is."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        try:
            header = next(reader, [])
            places = {name: header.index(name) for name in names if name in header}
            if len(places) < len(set(names)):
                return f"has no column {', '.join(sorted(set(names) - set(places)))}, but {', '.join(header)}"
            for row in reader:
                if not row:
                    continue
                if len(row) > len(header):
                    return (
                        f"line {reader.line_num:,} has {len(row)} fields, expected the header's {len(header)}: correct "
                        "or drop that line, or say what separates the fields"
                    )
                for name, place in places.items():
                    wrong = _wrong(row[place] if place < len(row) else "", kind)
                    if wrong:
                        return f"line {reader.line_num:,}, column {name!r}: {wrong}"
        except csv.Error as error:
            return f"line {reader.line_num:,}: {error}: correct or drop that line"
    return None


def _wrong(field: str, kind: str) -> str | None:
    if not field:
        return f"missing id, expected {kind}: fill it, or drop that line"
    if not field.isascii() and any("\udc80" <= character <= "\udcff" for character in field):
        return f"{_shown(field)} is not UTF-8: write the file as UTF-8"
    if kind in ("int64", "uint64"):
        low, high = (0, 2**64) if kind == "uint64" else (-(2**63), 2**63)
        try:
            fits = low <= int(field) < high
        except ValueError:
            fits = False
        if not fits:
            return (
                f"expected an integer ({kind}), got {_shown(field)}: correct or drop that line, or count the ids as "
                "text with kind='string'"
            )
    return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "...")
