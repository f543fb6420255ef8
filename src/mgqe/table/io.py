"""One file per frozen table: safetensors with a versioned header, written atomically, loaded by memory mapping.

docs/format.md specifies the file byte by byte. There is no pickle in it, so loading a file from an unknown source runs
none of its code; a file that cannot be right is refused with :class:`ArtifactError`.
"""

from __future__ import annotations

import errno
import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from mgqe import ops
from mgqe.checks.inference import outside_inference
from mgqe.files.atomic import write_whole
from mgqe.files.container import (
    NO_CHECKSUMS,
    OLD_VERSIONS,
    ArtifactError,
    Shapes,
    config_text,
    decode_metadata,
    element_order,
    encode,
    encode_elements,
    parse_stored,
    read,
    tensor_bytes,
)
from mgqe.files.file_objects import PathOrFile, file_name, read_from, write_to
from mgqe.files.locks import file_identity, file_lock
from mgqe.files.reader import Config
from mgqe.table.appended import read_extents, refuse_to_lose, table_fingerprint
from mgqe.table.base import FrozenTable
from mgqe.table.compact import CompactTable
from mgqe.table.growth import Origin
from mgqe.table.segment_files import all_records, all_segment_files
from mgqe.table.sharded import INDEX, INDEX_KIND, read_sharded

MAX_ATTEMPTS = 100  # at reading a file that is being replaced

_OTHER_KINDS = {  # of files that hold no table, and who reads them
    "id-map": "an id map: read it with mgqe.IdMap.load",
    "compact-append": "ids that were appended to another file: load that one, which lies beside it",
    "compact-shard": "some of a table's codes: load the folder that it is in",
}
_KINDS: dict[str, type[FrozenTable]] = {CompactTable.kind: CompactTable}


def register_kind(table: type[FrozenTable]) -> type[FrozenTable]:
    """Class decorator: let :func:`load` make tables of this class, under its ``kind``."""
    known = _KINDS.setdefault(table.kind, table)
    if known is not table:
        raise ValueError(f"kind {table.kind!r} is taken by {known.__name__}")
    return table


def save(table: FrozenTable, path: PathOrFile) -> int:
    """Write a frozen table to ``path`` and return the file's bytes.

    The file appears whole or not at all: it is written under a temporary name in the same folder, flushed to
    the disk and renamed over ``path``. If anything fails, what was at ``path`` before stays as it was.

    What :func:`mgqe.append` added to the file that was there goes with it; ids appended to the table itself are
    written as part of it. So saving a loaded table over its own file makes one file of it and its appended files;
    but not if ids were appended to the file since, which the table does not have.

    Args:
        table: what ``freeze()`` of a layer returns.
        path: of the file; or a file that is open for writing bytes, such as an ``io.BytesIO``, which gets the bytes of
            such a file where it is, and to which the promises above do not apply.

    Raises:
        TypeError: not a frozen table (call ``freeze()`` on the layer first), or a file that is open for text.
        ValueError: ids that were appended to the file since the table was read from it would be lost.
        OSError: the file cannot be written; the message names the path, the bytes needed and the remedy.
    """
    if not isinstance(table, FrozenTable):
        raise TypeError(f"expected a frozen table, got {type(table).__name__}: {_how_to_save(table)}")
    tensors, config = table.tensor_chunks()
    if not isinstance(path, (str, os.PathLike)):
        nbytes, content = encode(tensors, table.kind, config)
        write_to(path, content)
        return nbytes
    compact = table if isinstance(table, CompactTable) else None
    nbytes, metadata = _write(path, partial(encode, tensors, table.kind, config), compact)
    if compact is not None:
        fingerprint = table_fingerprint({"config": config_text(config), **metadata}, compact)
        compact.origin = Origin(os.path.realpath(path), fingerprint, config["num_embeddings"])
    return nbytes


def _how_to_save(other: object) -> str:
    """What to do with something that is no frozen table."""
    if callable(getattr(other, "freeze", None)) and hasattr(other, "num_embeddings"):
        return "save what its freeze() returns"
    if isinstance(getattr(other, "table", None), FrozenTable):
        return "save its .table"
    if callable(getattr(other, "named_modules", None)):
        return "a model is written by mgqe.save_model, after mgqe.freeze_"
    return "use its save()" if callable(getattr(other, "save", None)) else "a layer's freeze() makes one"


def save_chunks(
    shapes: Shapes, kind: str, config: Config, chunks: Callable[[str], Iterable[Tensor]], path: str | os.PathLike[str]
) -> int:
    """:func:`save` of a table whose tensors are made in chunks, each when it is to be written.

    Args:
        shapes: name -> (type, shape) of every tensor.
        kind, config: of the table.
        chunks: a tensor's name -> its chunks along the first axis, which must fill the shape.
        path: as for :func:`save`; ids appended to a file that is there are gone with it.
    """

    def checked(name: str) -> Iterator[Tensor]:
        rows = 0
        for chunk in chunks(name):
            rows += chunk.shape[0]
            yield chunk
        expected = shapes[name][1][0]
        if rows != expected:
            raise ValueError(f"tensor {name!r} was to have {expected} rows, and its chunks have {rows}")

    elements = (tensor_bytes(chunk) for name in element_order(shapes) for chunk in checked(name))
    return _write(path, partial(encode_elements, shapes, kind, config, chain.from_iterable(elements)), None)[0]


def _write(
    path: str | os.PathLike[str],
    encoded: Callable[..., tuple[int, Iterator[bytes | memoryview]]],
    table: CompactTable | None,
) -> tuple[int, dict[str, str]]:
    """Write a file, whole or not at all; returns its bytes and what was added to its metadata.

    Args:
        encoded: gives the file's bytes, as :func:`encode` does, for what is added to its metadata.
        table: whose appended ids must not be lost, if it is a compact one.
    """
    target = Path(os.path.realpath(path))  # rename would replace a link, not what it points to
    with file_lock(target, exclusive=True):
        if table is not None:
            refuse_to_lose(table, target, path)
        stale = [*all_segment_files(target), *all_records(target)]
        # Where there are appended files the new file gets another fingerprint than the old one had: at no moment can
        # they be taken for ids appended to the new file.
        metadata = {"generation": secrets.token_hex(8)} if stale else {}
        nbytes, content = encoded(**metadata)
        write_whole(path, nbytes, content)
    for segment in stale:
        with suppress(OSError):  # a file that stays behind belongs to no table, and readers ignore it
            segment.unlink()
    return nbytes, metadata


@outside_inference
def load(path: PathOrFile, *, mmap: bool = True, verify: bool | None = None) -> FrozenTable:
    """Read a table that :func:`save` wrote, and the ids that :func:`mgqe.append` added to it.

    Args:
        path: the file; or a folder of shards, as ``mgqe.torchrec.freeze`` writes one per table; or a file that is open
            for reading bytes, which is read into memory from where it is to its end.
        mmap: map the file: rows are read from the disk when first looked up, and shared between processes.
            The file must then not be cut short while the table lives (saving over it and appending to it are
            safe, and do not change a loaded table). False reads everything into memory. Of a folder, tiers that
            would be in more than 256 parts together are read into memory either way.
        verify: compare the files with their checksums. None: the header, and the tensors, smallest first, that have no
            more than 64 MiB together; without ``mmap`` all. True: all, which reads the whole file. False: none.
            :func:`mgqe.verify` does it later. Files of version 1 have no checksums.

    Raises:
        ArtifactError: (a ValueError) a file is not of this format or version, is damaged or cut short or, of a folder,
            missing, or what it says contradicts itself; the message names the file and the entry.
        OSError: the file cannot be opened, or the folder has no index.
    """
    if not isinstance(path, (str, os.PathLike)):
        return _load_open(path, verify)
    if os.path.isdir(path):
        path = _index_of(path)
    target = Path(os.path.realpath(path))
    for attempt in range(MAX_ATTEMPTS):
        before = file_identity(path)
        try:
            table = _load(os.fspath(path), target, mmap, verify)
        except (ArtifactError, FileNotFoundError) as error:
            # Saving over a file removes those appended to it: what was wrong may have been the moment.
            vanished = isinstance(error, FileNotFoundError) and attempt + 1 < MAX_ATTEMPTS
            if not vanished and file_identity(path) == before:
                raise
            continue
        if file_identity(path) == before:
            return table
    raise ArtifactError(f"{os.fspath(path)}: replaced by another file again and again while it was read")


def _index_of(folder: str | os.PathLike[str]) -> Path:
    index = Path(folder) / INDEX
    if index.is_file():
        return index
    if (Path(folder) / "manifest.json").is_file():
        raise IsADirectoryError(
            errno.EISDIR, "a folder of a whole model: read it with mgqe.load_model(model, folder)", os.fspath(folder)
        )
    if (Path(folder) / "mgqe-collection.json").is_file():
        raise IsADirectoryError(
            errno.EISDIR,
            "a collection: read it with mgqe.Collection.load(folder), which has its .table",
            os.fspath(folder),
        )
    raise IsADirectoryError(
        errno.EISDIR,
        f"a folder without {INDEX}, which is written last: no table, or one whose freezing was interrupted. "
        "Freeze again; of several tables, give the folder of one",
        os.fspath(folder),
    )


def _load(name: str, target: Path, mmap: bool, verify: bool | None) -> FrozenTable:
    asked, verify = verify, True if verify is None and not mmap else verify  # without mmap everything is read anyway
    try:
        metadata, tensors = read(name, verify)
        kind, config = decode_metadata(metadata)
        if not mmap:
            tensors = {key: ops.empty_in_large_pages(t.shape, t.dtype).copy_(t) for key, t in tensors.items()}
        if kind == INDEX_KIND:
            table: FrozenTable = read_sharded(target, tensors, config, mmap, verify)
            table.validate()
        else:
            table = _valid_table(kind, tensors, config)
    except ValueError as error:
        raise ArtifactError(f"{name}: {error}") from error
    if asked:
        _warn_without_checksums(name, metadata)
    if isinstance(table, CompactTable) and kind != INDEX_KIND:
        fingerprint = table_fingerprint(metadata, table)
        for tier, rows in read_extents(target, fingerprint, table, mmap, verify):
            table.append_packed(rows, tier)
        table.origin = Origin(os.fspath(target), fingerprint, table.num_embeddings)
    return table


def _load_open(file: BinaryIO, verify: bool | None) -> FrozenTable:
    name = file_name(file)
    content = read_from(file)
    try:
        stored = parse_stored(content)
        stored.check(True if verify is None else verify)
        kind, config = decode_metadata(stored.metadata)
        if kind == INDEX_KIND:
            raise ArtifactError("the index of a folder of shards, which are not in it: give the folder's path")
        table = _valid_table(kind, stored.tensors, config)
    except ValueError as error:
        raise ArtifactError(f"{name}: {error}") from error
    if verify:
        _warn_without_checksums(name, stored.metadata)
    return table


def _valid_table(kind: str, tensors: dict[str, Tensor], config: Config) -> FrozenTable:
    table = _table_class(kind).from_tensors(tensors, config)
    table.validate()
    return table


def _warn_without_checksums(name: str, metadata: Mapping[str, str]) -> None:
    if metadata["version"] in OLD_VERSIONS:
        warnings.warn(f"{name}: {NO_CHECKSUMS}", RuntimeWarning, stacklevel=4)


def _table_class(kind: str) -> type[FrozenTable]:
    if kind in _OTHER_KINDS:
        raise ArtifactError(f"holds {_OTHER_KINDS[kind]} (kind {kind!r})")
    if kind not in _KINDS:
        raise ArtifactError(f"metadata 'kind' is {kind!r}, but this version knows {sorted(_KINDS)}")
    return _KINDS[kind]
