"""verify: whether files are as they were written, by their checksums, and whether they fit together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from mgqe.collection.folder import faults
from mgqe.convert.manifest import MANIFEST
from mgqe.convert.model_folders import ModelFolder, open_models
from mgqe.files.checksums import CHECKSUMS
from mgqe.files.container import FORMAT, ArtifactError, StoredFile, decode_metadata, open_stored
from mgqe.files.weights import KIND as WEIGHTS
from mgqe.files.weights import companion_problems
from mgqe.ids.idmap import IdMap
from mgqe.ids.idmap_file import KIND as ID_MAP
from mgqe.table.appended import KIND as SEGMENT
from mgqe.table.io import load
from mgqe.table.lost_files import COLLECTION, damaged_collections, without_base
from mgqe.table.segment_files import all_records, all_segment_files
from mgqe.table.segment_record import KIND as RECORD
from mgqe.table.sharded import INDEX, INDEX_KIND, SHARD_KIND, files_of

Progress = Callable[[int, int], object]

_STORED = re.compile(r".+\.safetensors(\.append-[0-9a-f]{8}-(\d{6,}|record))?")
_BEGINNING = b'{"__metadata__":{"format":"mgqe",'  # of the header
_NOT_LOADED = (
    SEGMENT,
    RECORD,
    SHARD_KIND,
    WEIGHTS,
)  # files that are read with another one, or have nothing to contradict


@dataclass(frozen=True)
class Verification:
    """What was compared, and what is damaged.

    Attributes:
        files: all files that were read.
        nbytes: bytes of these files.
        without_checksums: files of version 1 and foreign ones; it was only checked that they fit together.
        damage: what is wrong, one line each; empty if nothing is.
    """

    files: tuple[Path, ...]
    nbytes: int
    without_checksums: tuple[Path, ...]
    damage: tuple[str, ...]


def verify(path: str | os.PathLike[str], progress: Progress | None = None) -> Verification:
    """Read all files of an artefact, compare every block with its checksum, and check that the files fit together.

    Args:
        path: a table, with the ids appended to it; a folder of shards; an id map; or any folder, such as a run's, a
            model's or a collection's, for all such files in it and in the folders below. A manifest stands for its
            folder.
        progress: called with the bytes read so far and those to read in all.

    Returns:
        what was compared; ``without_checksums`` lists the files that have no checksums to compare.

    Raises:
        ArtifactError: (a ValueError) something is damaged or missing; the message names every file, tensor and block.
        OSError: a file cannot be read, or there is no such file.
    """
    result = verification(path, progress)
    if result.damage:
        raise ArtifactError("\n".join(result.damage))
    return result


def verification(path: str | os.PathLike[str], progress: Progress | None = None) -> Verification:
    """Like :func:`verify`, but returns the damage instead of raising it."""
    target = Path(path)
    if target.name in (MANIFEST, COLLECTION) and target.is_file():
        target = target.parent
    with ExitStack() as stack:
        return _verify(target, open_models(target, stack), progress)


def _verify(path: Path, models: Sequence[ModelFolder], progress: Progress | None) -> Verification:
    other_saves = {file for model in models for file in model.files_of_other_saves()}
    files = _sizes([file for file in _files_or_models(path, models) if file not in other_saves], path)
    done, total = 0, sum(files.values())
    read = [model.path for model in models if model.manifest is not None]
    without = [model.path for model in models if model.manifest is not None and not model.has_checksum]
    damage = [line for model in models for line in model.damage()]

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    for file, size in files.items():
        before = done
        try:
            stored = open_stored(file, any_dtype=True)
            lines = [f"{file}: {line}" for line in stored.damage(advance=advance)]
            read.append(file)
            if not stored.has_checksums:
                without.append(file)
            foreign = stored.metadata.get("format") != FORMAT and CHECKSUMS not in stored.tensors
            if not lines and not foreign:
                lines += _contradictions(file, stored)
            damage += lines
        except ArtifactError as error:
            damage.append(f"{file}: {error}")
        except FileNotFoundError:
            if file == path:
                raise  # else another save removed it; a file that is needed is missed where it is named
        advance(before + size - done)
    damage += [*(without_base(files) if path.is_dir() else ()), *damaged_collections(path), *faults(path)]
    return Verification(tuple(read), total, tuple(without), tuple(dict.fromkeys(damage)))


def _files_or_models(path: Path, models: Sequence[ModelFolder]) -> list[Path]:
    """:func:`stored_files`; none where there is nothing but a model whose files are lost."""
    try:
        return stored_files(path)
    except FileNotFoundError:
        if not models:
            raise
        return []


def stored_files(path: Path) -> list[Path]:
    """The files with checksums that an artefact consists of.

    Raises OSError if there are none.
    """
    if not path.is_dir():
        real = Path(os.path.realpath(path))
        files = [path, *all_segment_files(real), *all_records(real)]
        return [*files, *_shards_beside(path)]
    files = sorted(
        file
        for file in path.rglob("*")
        if not file.name.startswith(".") and file.is_file() and (_STORED.fullmatch(file.name) or begins_as_ours(file))
    )
    if not files:
        raise FileNotFoundError(2, "no file in this folder is one that mgqe writes and can verify", str(path))
    return files


def begins_as_ours(file: Path) -> bool:
    """Whether a file, of any name, begins like those that mgqe writes."""
    with suppress(OSError), open(file, "rb") as content:
        return content.read(8 + len(_BEGINNING))[8:] == _BEGINNING
    return False


def _shards_beside(path: Path) -> list[Path]:
    """The shards of an index, if the path is one."""
    if path.name != INDEX:
        return []
    try:
        return [file for file in files_of(path.parent) if file != path]
    except ArtifactError:  # reported when the file itself is read
        return []


def _sizes(files: Sequence[Path], target: Path) -> dict[Path, int]:
    """Bytes of each file, without those that another save has removed meanwhile."""
    sizes = {}
    for file in files:
        try:
            sizes[file] = file.stat().st_size
        except FileNotFoundError:
            if file == target:
                raise
    return sizes


def _contradictions(file: Path, stored: StoredFile) -> Iterator[str]:
    """What is wrong with a file and those that belong to it, apart from checksums."""
    kind, config = decode_metadata(stored.metadata)
    try:
        if kind == WEIGHTS:
            yield from companion_problems(file, config)
        if kind == ID_MAP:
            id_map = IdMap.load(file, verify=False)
            if not stored.has_checksums:
                id_map.validate()
        elif kind == INDEX_KIND or kind not in _NOT_LOADED:
            load(file, verify=False)
    except ArtifactError as error:
        yield str(error)
