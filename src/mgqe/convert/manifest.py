"""The manifest of a model's folder: it lists the files, is written last, and is checked entry by entry when read.

docs/convert.md describes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mgqe.checks.names import brief, errors_about
from mgqe.files.checksums import json_checksum
from mgqe.files.container import ArtifactError, reject_repeated_keys
from mgqe.files.reader import MAX_ROWS, Config, Reader
from mgqe.nn.bag import MODES

MANIFEST = "manifest.json"
FORMAT, VERSION = "mgqe-model", 2
OLD_VERSIONS = (1,)  # without checksums
MAX_MANIFEST = 1 << 26  # bytes
MAX_BYTES = 1 << 62  # of a file
DTYPES = ("float32", "float16", "bfloat16", "float64")
_FILE = re.compile(r"[\w.-]+\.safetensors", re.ASCII)


@dataclass(frozen=True)
class TableEntry:
    """A frozen table of the model, as the manifest has it.

    Attributes:
        paths: all paths of the module.
        file: name of the file in the folder.
        nbytes: bytes of the file.
        padding_idx, dtype, mode, include_last_offset: of the module; ``mode`` is None for a module that is no bag.
        checksum: the last checksum of the file, that of all its others; None in version 1.
    """

    paths: tuple[str, ...]
    file: str
    nbytes: int
    padding_idx: int | None
    dtype: str
    mode: str | None
    include_last_offset: bool
    checksum: str | None = None


@dataclass(frozen=True)
class Tie:
    """A parameter that is a table's ``weight``: the path of its module, its name, and the table's first path."""

    path: str
    name: str
    table: str


@dataclass(frozen=True)
class DenseEntry:
    """The file of all other weights, and further names of some of them (name -> name in the file)."""

    file: str
    nbytes: int
    aliases: dict[str, str]
    checksum: str | None = None


@dataclass(frozen=True)
class Manifest:
    """A whole manifest, with the name of the model's class and the version of the format."""

    class_name: str
    tables: tuple[TableEntry, ...]
    ties: tuple[Tie, ...]
    dense: DenseEntry
    version: int = VERSION

    @property
    def files(self) -> list[TableEntry | DenseEntry]:
        """The entries that name files, the dense one last."""
        return [*self.tables, self.dense]


def encode_manifest(manifest: Manifest) -> bytes:
    """The file's bytes."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "class": manifest.class_name,
        "tables": [asdict(entry) for entry in manifest.tables],
        "ties": [asdict(tie) for tie in manifest.ties],
        "dense": asdict(manifest.dense),
    }
    return (json.dumps({**content, "checksum": json_checksum(content)}, indent=1) + "\n").encode()


def decode_manifest(text: bytes, path: Path) -> Manifest:
    """A manifest from the bytes of its file; every entry has the right type and range and contradicts no other.

    Raises ArtifactError, which names the file and the entry.
    """
    with reading(path):
        content = json.loads(text.decode("utf-8"), object_pairs_hook=reject_repeated_keys)
        manifest = _decoded(content)
        _check_paths(manifest)
        _check_files(manifest)
        _check_ties(manifest)
        if manifest.version not in OLD_VERSIONS:
            _check_checksum(content)
        return manifest


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors about a file's content become an ArtifactError that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        fault = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise ArtifactError(f"{path}: {fault}") from error


def _decoded(content: Any) -> Manifest:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        value = repr(content.get("format")) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"'format' must be {FORMAT!r}, got {value}")
    version = content.get("version")
    if type(version) is not int or version not in (*OLD_VERSIONS, VERSION):
        known = " or ".join(map(str, (*OLD_VERSIONS, VERSION)))
        raise ValueError(f"'version' must be {known}, got {version!r}: read it with a newer mgqe")
    has_checksums = version not in OLD_VERSIONS
    reader = _reader(content, "the manifest")
    reader.value("format"), reader.value("version")
    if has_checksums:
        reader.value("checksum")
    manifest = Manifest(
        _text(reader, "class"),
        tuple(_table_entry(_reader(each, "an entry of 'tables'"), has_checksums) for each in _list(reader, "tables")),
        tuple(_tie(_reader(each, "an entry of 'ties'")) for each in _list(reader, "ties")),
        _dense_entry(_reader(reader.value("dense"), "'dense'"), has_checksums),
        version,
    )
    reader.finish()
    return manifest


def _table_entry(reader: Reader, has_checksums: bool) -> TableEntry:
    file, nbytes, checksum = _file(reader, has_checksums)
    paths = _list(reader, "paths")
    if not paths or not all(isinstance(path, str) and path and all(path.split(".")) for path in paths):
        raise ValueError(f"{file}: 'paths' must be a list of module paths, got {brief(paths)}")
    mode, last = reader.value("mode"), reader.value("include_last_offset")
    if mode is not None and not (isinstance(mode, str) and mode in MODES):
        raise ValueError(f"{paths[0]}: 'mode' must be null or one of {MODES}, got {brief(mode)}")
    if not isinstance(last, bool) or (last and mode is None):
        raise ValueError(f"{paths[0]}: 'include_last_offset' must be true or false, and false with no mode")
    padding_idx = reader.optional_integer("padding_idx", 0, MAX_ROWS)
    entry = TableEntry(tuple(paths), file, nbytes, padding_idx, reader.choice("dtype", DTYPES), mode, last, checksum)
    reader.finish()
    return entry


def _tie(reader: Reader) -> Tie:
    path = reader.value("path")
    if not isinstance(path, str) or (path and not all(path.split("."))):
        raise ValueError(f"a tie's 'path' must be the path of a module, got {brief(path)}")
    tie = Tie(path, _text(reader, "name"), _text(reader, "table"))
    reader.finish()
    return tie


def _dense_entry(reader: Reader, has_checksums: bool) -> DenseEntry:
    file, nbytes, checksum = _file(reader, has_checksums)
    aliases = reader.value("aliases")
    if not isinstance(aliases, dict) or not all(isinstance(name, str) for name in aliases.values()):
        raise ValueError(f"'aliases' must map names to names, got {brief(aliases)}")
    entry = DenseEntry(file, nbytes, aliases, checksum)
    reader.finish()
    return entry


def _file(reader: Reader, has_checksums: bool) -> tuple[str, int, str | None]:
    """Name, bytes and checksum of a file; the name cannot lead out of the folder."""
    name = reader.value("file")
    if not isinstance(name, str) or not _FILE.fullmatch(name):
        raise ValueError(f"{brief(name)} is no file name that save_model gives")
    with errors_about(name):
        checksum = reader.hexadecimal("checksum") if has_checksums else None
    return name, reader.integer("nbytes", 0, MAX_BYTES), checksum


def _check_paths(manifest: Manifest) -> None:
    if not manifest.tables:
        raise ValueError("'tables' must not be empty: save_model writes no model without a table")
    paths = [path for entry in manifest.tables for path in entry.paths]
    _refuse_repeats(paths, "table path")
    known = set(paths)
    for path in paths:
        parent = next((p for p in _parents(path) if p in known), None)
        if parent is not None:
            raise ValueError(f"table path {path!r} is inside {parent!r}, which is a table")


def _check_files(manifest: Manifest) -> None:
    _refuse_repeats([entry.file for entry in manifest.files], "file")
    for alias, name in manifest.dense.aliases.items():
        if name in manifest.dense.aliases:
            raise ValueError(f"'aliases': {alias!r} is {name!r}, which is itself another name")


def _check_ties(manifest: Manifest) -> None:
    _refuse_repeats([f"{tie.path}.{tie.name}".lstrip(".") for tie in manifest.ties], "tied parameter")
    tables = {entry.paths[0] for entry in manifest.tables}
    paths = {path for entry in manifest.tables for path in entry.paths}
    for tie in manifest.ties:
        if tie.table not in tables:
            raise ValueError(f"'ties': {tie.path}.{tie.name} is tied to {tie.table!r}, which is no table's first path")
        if paths & {tie.path, *_parents(tie.path)}:
            raise ValueError(f"'ties': {tie.path!r} is a table or inside one, and cannot be tied to one")
        if "." in tie.name:
            raise ValueError(f"'ties': {tie.name!r} is no name of a parameter")


def _check_checksum(content: Config) -> None:
    if content["checksum"] != json_checksum(content):
        raise ValueError(
            "the manifest is damaged or was edited: its checksum does not match. Restore it from a copy, or save the "
            "model again"
        )


def _refuse_repeats(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} is there twice")
        seen.add(name)


def _parents(path: str) -> Iterator[str]:
    """The paths above one: "a.b" and "a" for "a.b.c"."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _reader(content: object, what: str) -> Reader:
    if not isinstance(content, dict):
        raise ValueError(f"{what} must be an object, got {brief(content)}")
    return Reader({}, content)


def _list(reader: Reader, name: str) -> list[Any]:
    values = reader.value(name)
    if not isinstance(values, list):
        raise ValueError(f"{name!r} must be a list, got {brief(values)}")
    return values


def _text(reader: Reader, name: str) -> str:
    value = reader.value(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name!r} must be a string, got {brief(value)}")
    return value
