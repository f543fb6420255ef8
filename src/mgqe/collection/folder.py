"""The folder of a collection: a manifest that names the file of the table and the file of the ids.

The two files carry the token of their save in their names and never change. A save over an older one writes its files
beside the older ones, replaces ``mgqe-collection.json``, and then removes the older ones, so that a reader sees either
the older collection or the newer one.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.files.atomic import read_json, write_json
from mgqe.files.checksums import json_checksum
from mgqe.files.container import RESTORE, ArtifactError, stored_checksum
from mgqe.files.destination import refuse_other_files
from mgqe.files.locks import file_lock
from mgqe.ids import IdMap
from mgqe.table.base import FrozenTable
from mgqe.table.io import load, save

MANIFEST = "mgqe-collection.json"
FORMAT, VERSION = "mgqe collection", 1
PARTS = ("table", "ids")
QUERY_WEIGHT = "query_weight"  # in the manifest: d float32, little-endian, in hexadecimal digits, which lose no bit
Parts = dict[str, dict[str, str]]  # part -> the name and the last checksum of its file
_OWN_NAME = re.compile(r"(?:table|ids)\.[0-9a-f]{8}\.safetensors(?:\..*)?")
ATTEMPTS = 100  # at reading a folder that is being replaced


def write_folder(folder: Path, table: FrozenTable | Path, ids: IdMap | None, query_weight: Tensor | None = None) -> int:
    """Write a collection, and return the bytes of its files.

    Args:
        table: or the file of one, which then gets a second name in the folder, without a copy where the system can.

    Raises FileExistsError if the folder holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder, exclusive=True):
        if not (folder / MANIFEST).exists():
            refuse_other_files(folder, _is_own)
        before = _own_files(folder)
        token = secrets.token_hex(4)
        files = {part: folder / f"{part}.{token}.safetensors" for part in PARTS}
        try:
            nbytes = _link(table, files["table"]) if isinstance(table, Path) else save(table, files["table"])
            if ids is None:
                del files["ids"]
            else:
                nbytes += ids.save(files["ids"])
            manifest: dict[str, Any] = {
                "format": FORMAT,
                "version": VERSION,
                **{part: {"file": file.name, "checksum": stored_checksum(file)} for part, file in files.items()},
            }
            if query_weight is not None:
                manifest[QUERY_WEIGHT] = query_weight.numpy().astype("<f4").tobytes().hex()
            manifest["checksum"] = json_checksum(manifest)
            write_json(folder / MANIFEST, manifest)
        except BaseException:
            for file in files.values():
                file.unlink(missing_ok=True)
            raise
        for file in before:
            with suppress(OSError):  # of another system, open there: it belongs to no collection, and readers ignore it
                file.unlink()
    return nbytes + (folder / MANIFEST).stat().st_size


def remove_folder(folder: Path) -> None:
    """Remove a collection, and its folder if nothing else is in it."""
    for file in (folder / MANIFEST, *_own_files(folder)):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _link(source: Path, target: Path) -> int:
    """Another name of a file that is never changed in place; a copy where the system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target.stat().st_size


def read_folder(folder: Path, mmap: bool, verify: bool | None) -> tuple[FrozenTable, IdMap | None, Tensor | None]:
    """The table, the ids and the weight of queries of a folder.

    Raises ArtifactError for a folder of something else, or whose files are missing, damaged or of another save.
    """
    for attempt in range(ATTEMPTS):
        text = _manifest_text(folder)
        try:
            return _read(folder, mmap, verify)
        except (FileNotFoundError, ArtifactError) as error:
            if attempt + 1 == ATTEMPTS or _manifest_text(folder) == text:  # else it was replaced meanwhile
                if isinstance(error, FileNotFoundError):
                    raise ArtifactError(f"{error.filename} is missing, which {MANIFEST} names. {RESTORE}") from error
                raise
    raise AssertionError  # the last attempt returns or raises


def is_collection(folder: Path) -> bool:
    """Whether a folder holds a collection."""
    return (folder / MANIFEST).is_file()


def table_of(folder: Path) -> Path:
    """The file of a collection's table."""
    return folder / _parts(folder)[0]["table"]["file"]


def faults(path: Path) -> Iterator[str]:
    """What is wrong with the manifests of collections at a path and below, one line each."""
    for manifest in sorted(path.rglob(MANIFEST)) if path.is_dir() else ():
        try:
            yield from _file_faults(manifest.parent, _parts(manifest.parent)[0])
        except ArtifactError as error:
            yield str(error)


def _file_faults(folder: Path, parts: Parts) -> Iterator[str]:
    for entry in parts.values():
        file = folder / entry["file"]
        if not file.is_file():
            yield f"{file} is missing, which {MANIFEST} names. {RESTORE}"
        elif stored_checksum(file) != entry["checksum"]:
            yield f"{file}: not the file that {MANIFEST} was saved with. {RESTORE}"


def _read(folder: Path, mmap: bool, verify: bool | None) -> tuple[FrozenTable, IdMap | None, Tensor | None]:
    parts, query_weight = _parts(folder)
    for fault in _file_faults(folder, parts):
        raise ArtifactError(fault)
    table = load(folder / parts["table"]["file"], mmap=mmap, verify=verify)
    ids = IdMap.load(folder / parts["ids"]["file"], mmap=mmap, verify=verify) if "ids" in parts else None
    if ids is not None and len(ids) != table.num_embeddings:
        raise ArtifactError(f"{folder}: {len(ids):,} ids for a table of {table.num_embeddings:,} rows. {RESTORE}")
    if query_weight is not None and len(query_weight) != table.embedding_dim:
        raise ArtifactError(f"{folder}: {len(query_weight)} weights for {table.embedding_dim} coordinates. {RESTORE}")
    return table, ids, query_weight


def _manifest_text(folder: Path) -> bytes:
    if not folder.is_dir():
        raise FileNotFoundError(2, "there is no such folder", os.fspath(folder))
    if not is_collection(folder):
        raise ArtifactError(
            f"{folder} holds no collection: it has no {MANIFEST}, which mgqe.Collection.save and `mgqe compress` write"
        )
    return (folder / MANIFEST).read_bytes()


def _parts(folder: Path) -> tuple[Parts, Tensor | None]:
    """What the manifest says of each file, and of queries. ArtifactError: it is damaged, or of something else."""
    path = folder / MANIFEST
    try:
        content = read_json(path)
    except ValueError as error:
        raise ArtifactError(str(error)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ArtifactError(f"{path}: not the manifest of a collection")
    if content.get("version") != VERSION:
        raise ArtifactError(
            f"{path}: version {content.get('version')!r}, this release reads {VERSION}: install a newer mgqe"
        )
    if content.get("checksum") != json_checksum(content):
        raise ArtifactError(f"{path}: damaged: its checksum is another one. {RESTORE}")
    parts = {part: content[part] for part in PARTS if part in content}
    for part, entry in parts.items():
        if not isinstance(entry, dict) or not _OWN_NAME.fullmatch(str(entry.get("file"))) or "checksum" not in entry:
            raise ArtifactError(f"{path}: entry {part!r} names no file of a collection: {json.dumps(entry)[:80]}")
    if "table" not in parts:
        raise ArtifactError(f"{path}: names no table. {RESTORE}")
    return parts, _query_weight(path, content[QUERY_WEIGHT]) if QUERY_WEIGHT in content else None


def _query_weight(path: Path, digits: object) -> Tensor:
    """The weights of queries that a manifest has."""
    try:
        weight = torch.from_numpy(np.frombuffer(bytes.fromhex(digits), "<f4").astype(np.float32))  # type: ignore[arg-type]
        finite = bool(weight.isfinite().all())
    except (TypeError, ValueError):
        finite = False
    if not finite:
        raise ArtifactError(f"{path}: entry {QUERY_WEIGHT!r} holds no finite float32 in hexadecimal digits. {RESTORE}")
    return weight


def _own_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _OWN_NAME.fullmatch(path.name)]


def _is_own(name: str) -> bool:
    return _OWN_NAME.fullmatch(name) is not None or name.endswith((".tmp", ".lock"))
