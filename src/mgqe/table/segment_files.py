"""Names of the files that are appended to a table; docs/format.md specifies them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path


def all_segment_files(base: Path) -> list[Path]:
    """Whatever was appended to a file of this name, the tables that had it before included."""
    pattern = re.compile(re.escape(base.name) + r"\.append-[0-9a-f]{8}-\d{6,}")
    with suppress(FileNotFoundError), os.scandir(base.parent) as entries:
        return sorted(base.with_name(entry.name) for entry in entries if pattern.fullmatch(entry.name))
    return []


def segment_files(base: Path, base_fingerprint: str) -> list[tuple[int, Path]]:
    """The files appended to this very base: numbers and paths, ascending."""
    start = f"{base.name}.append-{base_fingerprint[:8]}-"
    found = [(int(path.name[len(start) :]), path) for path in all_segment_files(base) if path.name.startswith(start)]
    # A number is written one way; another one would make two files of it.
    return sorted((n, path) for n, path in found if path == segment_path(base, base_fingerprint, n))


def segment_path(base: Path, base_fingerprint: str, number: int) -> Path:
    """Where the appended file of that number is."""
    return base.with_name(f"{base.name}.append-{base_fingerprint[:8]}-{number:06d}")


def record_path(base: Path, base_fingerprint: str) -> Path:
    """Where it is recorded how many there are."""
    return base.with_name(f"{base.name}.append-{base_fingerprint[:8]}-record")


def all_records(base: Path) -> list[Path]:
    """The records of a file of this name, of the tables that had it before included."""
    pattern = re.compile(re.escape(base.name) + r"\.append-[0-9a-f]{8}-record")
    with suppress(FileNotFoundError), os.scandir(base.parent) as entries:
        return sorted(base.with_name(entry.name) for entry in entries if pattern.fullmatch(entry.name))
    return []


def base_of(file: Path) -> Path | None:
    """The table that an appended file, or the record of such, belongs to; None for any other file."""
    match = re.fullmatch(r"(.+)\.append-[0-9a-f]{8}-(\d{6,}|record)", file.name)
    return file.with_name(match[1]) if match else None
