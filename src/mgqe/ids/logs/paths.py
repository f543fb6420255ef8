"""Finds the files of a log by paths, patterns and folders, and tells Parquet from text by the first bytes."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

PARQUET = (".parquet", ".pq")
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # the folder of rows without a value, as Hive and Spark name it
_OTHER_FORMATS = {
    b"PARE": "encrypted Parquet",
    b"PK\x03\x04": "a zip archive",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"SQLite": "a database",
    b"Obj\x01": "an Avro file",
}


@dataclass(frozen=True)
class LogFile:
    """One file of a log.

    parquet: whether its first bytes are those of Parquet; otherwise it is text.
    partitions: key -> value of the folders named ``key=value`` on its path; None is a missing value.
    """

    path: str
    parquet: bool
    partitions: dict[str, str | None] = field(default_factory=dict)


def log_files(source: Any) -> list[LogFile]:
    """The files of a path, a pattern, a folder, or a list of these, in the order of their names.

    In folders, files whose names begin with ``_`` or ``.`` (``_SUCCESS``, checksums, unfinished files) are left out.

    Raises:
        FileNotFoundError: no such file. ValueError: a folder without data; a file that is neither Parquet nor text;
            files of both kinds.
    """
    sources = source if isinstance(source, (list, tuple)) else [source]
    candidates = [_file(path, in_folder) for each in sources for path, in_folder in _paths(os.fspath(each))]
    # An empty partition leaves a text file of no bytes. If there is no other file, reading it raises an error.
    files = [file for file, is_empty in candidates if not is_empty] or [file for file, _ in candidates]
    by_kind = {file.parquet: file.path for file in reversed(files)}
    if len(by_kind) > 1:
        raise ValueError(
            f"expected files of one kind, got {by_kind[True]} (Parquet) and {by_kind[False]} (text): read each kind "
            "separately, and add the counts with merge_counts"
        )
    return files


def path_exists(source: str) -> bool:
    """Whether there is a file or folder of this path or pattern."""
    return os.path.exists(source) or bool(glob.glob(source, recursive=True))


def _paths(source: str) -> list[tuple[str, bool]]:
    """(file, whether it comes from a folder or pattern) of one path, pattern or folder."""
    if os.path.isdir(source):
        return [(path, True) for path in _walk(source)]
    if os.path.exists(source):
        return [(source, False)]
    if not glob.has_magic(source):
        raise FileNotFoundError(f"{source} does not exist: expected a file, a folder of files or a pattern")
    hidden = os.path.basename(source).startswith(("_", "."))
    matches = [
        path
        for path in sorted(glob.glob(source, recursive=True))
        if hidden or not os.path.basename(path.rstrip(os.sep)).startswith(("_", "."))
    ]
    if not matches:
        raise FileNotFoundError(f"{source}: no file matches this pattern")
    if "**" in source:  # the pattern itself enters folders
        return [(path, True) for path in matches if os.path.isfile(path)]
    return [inner for path in matches for inner in (_paths(path) if os.path.isdir(path) else [(path, True)])]


def _walk(folder: str) -> list[str]:
    paths = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if "=" in name or not name.startswith(("_", "."))]
        paths += [os.path.join(root, name) for name in names if not name.startswith(("_", "."))]
    if not paths:
        raise ValueError(f"{folder} is a folder without data: expected Parquet or text files in it")
    return sorted(paths)


def _file(path: str, in_folder: bool) -> tuple[LogFile, bool]:
    """(the file, whether it is an empty text file of a folder or pattern)."""
    with open(path, "rb") as file:
        head = file.read(8)
    parquet = head.startswith(b"PAR1")
    if Path(path).suffix.lower() in PARQUET and not parquet:
        what = "is empty" if not head else "does not begin with PAR1"
        raise ValueError(f"{path}: cannot be read: expected Parquet by its name, but it {what}")
    for magic, what in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise ValueError(f"{path}: cannot be read: expected Parquet or UTF-8 text, got {what}: convert it first")
    return LogFile(path, parquet, _partitions(path)), in_folder and not head


def _partitions(path: str) -> dict[str, str | None]:
    pairs = (part.split("=", 1) for part in Path(path).parts[:-1] if "=" in part)
    return {unquote(key): None if value == NULL_PARTITION else unquote(value) for key, value in pairs if key}
