"""Which artefact of the project lies at a path, told by its manifest, its header or its name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mgqe.collection.folder import MANIFEST as COLLECTION
from mgqe.convert.manifest import MANIFEST as MODEL
from mgqe.convert.model_folders import is_model
from mgqe.convert.verification import begins_as_ours
from mgqe.files.container import FORMAT, OLD_VERSIONS, ArtifactError, decode_metadata, open_stored
from mgqe.files.weights import KIND as WEIGHTS
from mgqe.ids.idmap_file import KIND as ID_MAP
from mgqe.table.appended import KIND as SEGMENT
from mgqe.table.lost_files import COLLECTION as TORCHREC
from mgqe.table.segment_files import base_of
from mgqe.table.segment_record import KIND as RECORD
from mgqe.table.sharded import INDEX, INDEX_KIND, SHARD_KIND

TABLES = "*.mgqe.safetensors"  # in the folder of a run
CONFIG, METRICS, STUDY, RESULTS = "config.json", "metrics.json", "study.toml", "results.jsonl"
TAKEN = (
    "a table's file, a folder of shards, an id map, a collection, the folder of a run, of a model, of a study or of "
    "tables that mgqe.torchrec froze, or counts (.npy with one number per id)"
)
_NAMES = {
    "table": "a table",
    "shards": "a table in a folder of shards",
    "id map": "an id map",
    "collection": "a collection",
    "torchrec": "the folder of tables that mgqe.torchrec froze",
    "counts": "counts",
}


@dataclass(frozen=True)
class Artefact:
    """What a path holds.

    Attributes:
        kind: "table", "shards", "id map", "collection", "run", "model", "study", "torchrec" or "counts".
        path: of the file, or of the folder where a file in it was given that stands for it.
        version: of the file's format, "" where it has none.
    """

    kind: str
    path: Path
    version: str = ""

    def __str__(self) -> str:
        """Such as "a table", for a line about it."""
        named = _NAMES.get(self.kind, f"the folder of a {self.kind}")
        return f"{named} in format version {self.version}" if self.version in OLD_VERSIONS else named


def artefact_at(path: Path) -> Artefact:
    """The artefact at a path.

    Raises:
        ValueError: something else; the message lists what is taken, and names the whole that a part belongs to.
            FileNotFoundError: there is nothing. ArtifactError: (a ValueError) a file of the project that is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(2, "there is no such file or folder", os.fspath(path))
    folder = path.parent if path.is_file() and path.name in (COLLECTION, MODEL, INDEX, TORCHREC) else path
    if folder.is_dir() and (kind := _kind_of_folder(folder)):
        return Artefact(kind, folder)
    if path.is_dir():
        inside = sorted(artefacts_in(path))
        hint = f", but holds {', '.join(map(str, inside[:3]))}" if inside else ""
        raise ValueError(f"{path}: this folder is none of mgqe{hint}: expected {TAKEN}")
    return Artefact("counts", path) if path.suffix.lower() == ".npy" else _of_file(path)


def artefacts_in(folder: Path) -> set[Path]:
    """Collections, tables and models in a folder and the folders below."""
    return {each.parent for name in (COLLECTION, MODEL, INDEX) for each in folder.rglob(name)} | {*folder.rglob(TABLES)}


def _kind_of_folder(folder: Path) -> str | None:
    names = {each.name for each in folder.iterdir()}
    if COLLECTION in names:
        return "collection"
    if TORCHREC in names:
        return "torchrec"
    if INDEX in names:
        return "shards"
    if is_model(folder):
        return "model"
    if any(folder.glob(TABLES)) or {CONFIG, METRICS} <= names:
        return "run"
    return "study" if names & {STUDY, RESULTS} else None


def _of_file(path: Path) -> Artefact:
    try:
        metadata = open_stored(path, any_dtype=True).metadata
    except ArtifactError as error:
        if path.suffix == ".safetensors" or begins_as_ours(path):
            raise ArtifactError(f"{path}: {error}") from error
        raise ValueError(f"{path}: no file of mgqe: expected {TAKEN}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: tensors of another program, of which `mgqe compress` makes a collection: expected {TAKEN}"
        )
    try:
        kind, _ = decode_metadata(metadata)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    if kind in _PARTS:
        whole = base_of(path) or path.parent
        raise ValueError(f"{path}: {_PARTS[kind]}: name the whole, {whole}")
    names = {ID_MAP: "id map", INDEX_KIND: "shards"}
    return Artefact(names.get(kind, "table"), path, metadata["version"])


_PARTS = {
    SEGMENT: "ids that were appended to a table",
    RECORD: "the record of ids that were appended to a table",
    SHARD_KIND: "some of a table's codes",
    WEIGHTS: "a model's weights without its tables",
}
