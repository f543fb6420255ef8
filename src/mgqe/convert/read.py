"""Read a model's folder, all files of one save, also while another process saves over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mgqe.convert.manifest import MANIFEST, MAX_MANIFEST, DenseEntry, Manifest, TableEntry, decode_manifest
from mgqe.convert.saves import in_use, retry_where_busy
from mgqe.files.container import ArtifactError, stored_checksum
from mgqe.files.weights import load_weights
from mgqe.nn.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.table.io import load

MAX_ATTEMPTS = 1000  # to read a folder while it is saved over, on a system without file locks


@dataclass(frozen=True)
class SavedModel:
    """A folder's content.

    Attributes:
        manifest: the manifest, checked.
        tables: the frozen tables in the manifest's order.
        dense: the other weights, under all of their names.
    """

    manifest: Manifest
    tables: tuple[CompactEmbedding, ...]
    dense: dict[str, Tensor]


def read_model(folder: Path, verify: bool | None) -> SavedModel:
    """The model in a folder, all files of one save.

    The files of a save never change, and are not removed while they are read (:mod:`mgqe.convert.saves`). On a system
    without file locks they may be: an error is then followed by another attempt if the manifest has changed.

    Raises:
        FileNotFoundError: there is no manifest. ArtifactError: a file is damaged, foreign or missing. The message names
            the file.
    """
    text = manifest_bytes(folder)
    for attempt in range(MAX_ATTEMPTS):
        try:
            manifest = decode_manifest(text, folder / MANIFEST)
            with in_use(folder / manifest.dense.file):
                return read_files(manifest, folder, verify)
        except (OSError, ValueError, RuntimeError):
            previous, text = text, manifest_bytes(folder)
            if text == previous or attempt == MAX_ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def manifest_bytes(folder: Path) -> bytes:
    """The manifest's bytes. Raises FileNotFoundError if there is none, ArtifactError if it is too large."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no {MANIFEST} here, so this is no folder that mgqe.save_model wrote")
    with retry_where_busy(lambda: open(path, "rb")) as file:
        text = file.read(MAX_MANIFEST + 1)
    if len(text) > MAX_MANIFEST:
        raise ArtifactError(f"{path}: larger than {MAX_MANIFEST:,} bytes")
    return text


def file_faults(manifest: Manifest, folder: Path) -> Iterator[str]:
    """How the files of a folder differ from those that its manifest names, by sizes and last checksums."""
    for entry in manifest.files:
        file = folder / entry.file
        size = os.stat(file).st_size if file.is_file() else None
        if size != entry.nbytes:
            fault = "is missing" if size is None else f"has {size:,} bytes"
            yield (
                f"{folder / MANIFEST}: {entry.file} {fault}, expected {entry.nbytes:,} bytes: the folder was copied in "
                "part, or cut short"
            )
        elif entry.checksum is not None and stored_checksum(file) != entry.checksum:
            yield (
                f"{file}: not the file that was saved here, or damaged: its last checksum differs from "
                f"that in {MANIFEST}. Copy the folder again, all files of one save"
            )


def read_files(manifest: Manifest, folder: Path, verify: bool | None) -> SavedModel:
    """The files that a manifest names. Raises OSError or ArtifactError as :func:`read_model`."""
    for fault in file_faults(manifest, folder):
        raise ArtifactError(fault)
    dense = _dense(manifest.dense, folder / manifest.dense.file, verify)
    return SavedModel(manifest, tuple(_table(entry, folder, verify) for entry in manifest.tables), dense)


def _dense(entry: DenseEntry, file: Path, verify: bool | None) -> dict[str, Tensor]:
    tensors = load_weights(file, verify is not False)  # this file is read as a whole in any case
    for name, original in entry.aliases.items():
        if name in tensors or original not in tensors:
            raise ArtifactError(
                f"{file.with_name(MANIFEST)}: {name!r} cannot be another name of {original!r}: {file.name} has "
                f"{sorted(tensors)[:5]}"
            )
    return {**tensors, **{name: tensors[original] for name, original in entry.aliases.items()}}


def _table(entry: TableEntry, folder: Path, verify: bool | None) -> CompactEmbedding:
    table = load(folder / entry.file, verify=verify)
    path, dtype = entry.paths[0], getattr(torch, entry.dtype)
    if entry.padding_idx is not None and entry.padding_idx >= table.num_embeddings:
        raise ArtifactError(
            f"{folder / MANIFEST}: {path}: 'padding_idx' must be less than {table.num_embeddings}, the rows of the "
            f"table, got {entry.padding_idx}"
        )
    if entry.mode is None:
        return CompactEmbedding(table, entry.padding_idx, dtype, path)
    return CompactEmbeddingBag(table, entry.padding_idx, dtype, path, entry.mode, entry.include_last_offset)
