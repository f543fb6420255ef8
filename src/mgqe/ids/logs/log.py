"""Opens a log, which is Parquet files, text files or a polars frame, for some of its columns."""

from __future__ import annotations

import operator
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mgqe.ids.logs.frames import is_frame, scan_parquet
from mgqe.ids.logs.paths import LogFile, log_files
from mgqe.ids.logs.scan import scan_text
from mgqe.ids.logs.text import LINE, TextFile, parse_text_file, unreadable_error
from mgqe.ids.logs.text_layout import TextLayout

ROW = "\0row"


def is_path(source: Any) -> bool:
    """Whether this is a path, or a list of paths alone."""
    if isinstance(source, (list, tuple)) and source:
        return all(isinstance(path, (str, os.PathLike)) for path in source)
    return isinstance(source, (str, os.PathLike))


@dataclass(frozen=True)
class LogPart:
    """A log part: one file of a log, or a frame, opened for some of its columns.

    path: None for a frame.
    frame: lazy frame of the columns by their names, for text with COUNT.
    numbered: ``frame`` with the column ROW: for text the line from 1, else the row from 0.
    types: the polars type of each column; None if it is open, as in text files and names of folders.
    text: the text file; None for Parquet and frames.
    """

    path: str | None
    frame: Any
    numbered: Any
    types: dict[str, Any]
    text: TextFile | None = None

    @property
    def where(self) -> str:
        """Its name in errors."""
        return self.path or "the frame"


class Log:
    """The log parts of a source; the end of a ``with`` block removes temporary files."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.parts: list[LogPart] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def folder(self) -> Path:
        """A folder for temporary files."""
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="mgqe-log-")
        return Path(self._folder.name)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def open_log(pl: Any, source: Any, names: Sequence[str], layout: TextLayout) -> Log:
    """Open a frame, or the files of a path, a folder, a pattern or a list, for the columns ``names``.

    Raises:
        ValueError: both Parquet and text, files that cannot be read, or a column that only some files have.
            KeyError: no such column. FileNotFoundError: no such file.
    """
    log = Log(source)
    try:
        if is_frame(source):
            log.parts = [_open_frame(source, names)]
        else:
            files = log_files(source)
            for file in files:
                log.parts.append(_open_file(pl, file, names, layout, log, first=file is files[0]))
    except BaseException:
        log.__exit__(None, None, None)
        raise
    return log


def _open_frame(source: Any, names: Sequence[str]) -> LogPart:
    frame = source.lazy()
    schema = frame.collect_schema()
    for name in names:
        if name not in schema:
            raise KeyError(f"no column {name!r}: the file has {', '.join(schema)}")
    frame = frame.select(list(dict.fromkeys(names)))
    return LogPart(None, frame, frame.with_row_index(ROW), {name: schema[name] for name in names})


def _open_file(pl: Any, file: LogFile, names: Sequence[str], layout: TextLayout, log: Log, first: bool) -> LogPart:
    try:
        return _open_parquet(pl, file, names) if file.parquet else _open_text(pl, file, names, layout, log)
    except KeyError as error:
        if first:
            raise
        raise ValueError(f"{file.path}: its columns are not those of the other files: {error.args[0]}") from None


def _open_parquet(pl: Any, file: LogFile, names: Sequence[str]) -> LogPart:
    schema = parquet_schema(pl, file.path)
    for name in names:
        if name not in schema and name not in file.partitions:
            raise KeyError(f"no column {name!r}: the file has {', '.join(schema)} ({file.path})")
    outside = [_partition(pl, file, name) for name in names if name not in schema]
    frame = scan_parquet(pl, file.path).with_columns(outside).select(list(dict.fromkeys(names)))
    return LogPart(file.path, frame, frame.with_row_index(ROW), {name: schema.get(name) for name in names})


def _open_text(pl: Any, file: LogFile, names: Sequence[str], layout: TextLayout, log: Log) -> LogPart:
    outside = [name for name in names if name in file.partitions]
    text = parse_text_file(pl, file.path, [name for name in names if name not in outside], layout)
    try:
        frames = scan_text(pl, text, log.folder)
    except (pl.exceptions.PolarsError, OSError):  # scan_text reads the file to its end
        raise unreadable_error(file.path) from None
    frame, numbered = (frame.with_columns(_partition(pl, file, name) for name in outside) for frame in frames)
    return LogPart(file.path, frame, numbered.rename({LINE: ROW}), dict.fromkeys(names), text)


def _partition(pl: Any, file: LogFile, name: str) -> Any:
    return pl.lit(file.partitions[name], dtype=pl.String).alias(name)


def parquet_schema(pl: Any, path: str) -> dict[str, Any]:
    """Names and types of a Parquet file's columns. ValueError: it is damaged."""
    try:
        return dict(scan_parquet(pl, path).collect_schema())
    except pl.exceptions.PolarsError:
        raise ValueError(f"{path}: cannot be read as parquet: damaged, or cut short") from None


def column_names(column: str | int | Sequence[str | int]) -> list[str]:
    """One name or several as a list; the numbers of columns without a header become text."""
    columns = list(column) if isinstance(column, Sequence) and not isinstance(column, str) else [column]
    try:
        return [name if isinstance(name, str) else str(operator.index(name)) for name in columns]
    except TypeError:
        raise TypeError(f"expected a column's name or number, or a list of these, got {column!r}") from None
