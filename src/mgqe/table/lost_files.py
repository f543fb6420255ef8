"""Files of a folder that belong to others which are not there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mgqe.files.checksums import json_checksum
from mgqe.files.container import RESTORE, ArtifactError
from mgqe.table.segment_files import base_of
from mgqe.table.sharded import INDEX, is_shard, published_set

COLLECTION = "collection.json"


def without_base(files: Iterable[Path]) -> Iterator[str]:
    """One line for each table that is missing, although files were appended to it or shards of it are there."""
    missing: dict[Path, str] = {}
    for file in files:
        base = base_of(file)
        if base is not None:
            missing.setdefault(base, f"the table that {file.name} was appended to")
        elif is_shard(file):
            missing.setdefault(
                file.with_name(INDEX), f"without it {file.name} is no table: freezing was interrupted, or it was lost"
            )
    for path, what in missing.items():
        if not path.is_file():
            yield f"{path} is missing: {what}. {RESTORE}"


def damaged_collections(folder: Path) -> Iterator[str]:
    """What is wrong with the collections that ``mgqe.torchrec.freeze`` wrote: their manifests, and tables that are
    missing or of another freeze."""
    for file in folder.rglob(COLLECTION) if folder.is_dir() else ():
        content = file.read_bytes()
        if b"mgqe" not in content:  # of another program
            continue
        try:
            about = json.loads(content)
            if about["version"] != "1" and about["checksum"] != json_checksum(about):  # version 1 had none
                raise ValueError
            names = [entry["name"] for entry in about["tables"]]
            indices = [file.parent / str(name) / INDEX for name in names]
        except (ValueError, KeyError, TypeError, RecursionError):
            yield f"{file}: the manifest is damaged: its checksum is another one. {RESTORE}"
        else:
            yield from _strange_tables(file, about, indices)


def _strange_tables(file: Path, about: dict[str, Any], indices: Iterable[Path]) -> Iterator[str]:
    for index in indices:
        try:
            if published_set(index.parent) != about.get("set"):
                yield f"{index}: of another freeze than {file.name}. Copy the folder again, every file of it"
        except FileNotFoundError:
            yield f"{index} is missing: {file.name} names its table. Copy the folder again, every file of it"
        except ArtifactError:  # reported when the file itself is read
            pass
