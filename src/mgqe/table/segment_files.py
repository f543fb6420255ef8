"""Names of the files that are appended to a table; docs/format.md specifies them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path


def all_segment_files(base: Path) -> list[Path]:
    """All files appended to a file of this name, also those appended to tables that had the name before."""
    return _beside(base, r"\d{6,}")


def all_records(base: Path) -> list[Path]:
    """The records of a file of this name, also those of tables that had the name before."""
    return _beside(base, "record")


def _beside(base: Path, ending: str) -> list[Path]:
    pattern = re.compile(re.escape(base.name) + r"\.append-[0-9a-f]{8}-" + ending)
    with suppress(FileNotFoundError), os.scandir(base.parent) as entries:
        return sorted(base.with_name(entry.name) for entry in entries if pattern.fullmatch(entry.name))
    return []


def segment_files(base: Path, base_fingerprint: str) -> list[tuple[int, Path]]:
    """The files appended to this base: numbers and paths, in ascending order."""
    start = f"{base.name}.append-{base_fingerprint[:8]}-"
    numbered = [(int(path.name[len(start) :]), path) for path in all_segment_files(base) if path.name.startswith(start)]
    # One number has one name; with another spelling two files could have the same number.
    return sorted((n, path) for n, path in numbered if path == segment_path(base, base_fingerprint, n))


def segment_path(base: Path, base_fingerprint: str, number: int) -> Path:
    """The path of the appended file of that number."""
    return base.with_name(f"{base.name}.append-{base_fingerprint[:8]}-{number:06d}")


def record_path(base: Path, base_fingerprint: str) -> Path:
    """The file that says how many were appended."""
    return base.with_name(f"{base.name}.append-{base_fingerprint[:8]}-record")


def base_of(file: Path) -> Path | None:
    """The table that an appended file, or the record of such, belongs to; None for any other file."""
    match = re.fullmatch(r"(.+)\.append-[0-9a-f]{8}-(\d{6,}|record)", file.name)
    return file.with_name(match[1]) if match else None
