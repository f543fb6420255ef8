"""save_model: a frozen model in one folder, with its tables, its other weights and a manifest.

``manifest.json`` names the files. All other files carry the token of their save in their names and never change. A save
over an older one writes its files beside the older ones and then replaces the manifest, so that a reader sees either
the older model or the newer one. docs/convert.md describes the folder.
"""

from __future__ import annotations

import operator
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor, nn

from mgqe.convert.dense import dense_state
from mgqe.convert.manifest import (
    DTYPES,
    MANIFEST,
    DenseEntry,
    Manifest,
    TableEntry,
    Tie,
    decode_manifest,
    encode_manifest,
)
from mgqe.convert.read import SavedModel, manifest_bytes
from mgqe.convert.saves import dense_name, remove_other_saves, remove_save, retry_where_busy, saved_files
from mgqe.convert.tied import ties_of
from mgqe.convert.wrappers import class_name_of, plain_paths, wrapper_chain
from mgqe.files.atomic import write_whole
from mgqe.files.container import ArtifactError, stored_checksum
from mgqe.files.destination import refuse_other_files
from mgqe.files.locks import file_lock
from mgqe.files.weights import save_weights
from mgqe.nn.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.table.io import save

MAX_STEM = 100  # characters of a path in a file's name: file systems take names of 255 bytes

TablePaths = dict[CompactEmbedding, list[str]]  # the plain paths of each frozen table


def save_model(model: nn.Module, folder: str | os.PathLike[str]) -> int:
    """Write a frozen model to a folder and return the bytes of its files: tables, other weights and manifest.

    Nothing is pickled, so that :func:`mgqe.load_model` needs an instance of the model's class. Saving over an older
    save replaces it as a whole or not at all, and a process that loads meanwhile gets either the older model or the
    newer one. On systems with file locks, several saves into one folder wait for each other. Wrappers of the model
    (torch.compile, DataParallel and their kind) are not saved.

    Args:
        model: a model after :func:`mgqe.freeze_`.
        folder: created if it does not exist; otherwise it must be empty, or one that this function wrote.

    Raises:
        ValueError: layers that are not frozen, or no frozen layer; state that is no tensor, or has no elements. The
            message names them.
        FileExistsError: the folder holds other files.
        OSError: a file cannot be written. The message names the file, the bytes needed and the remedy. The folder's
            older save is as it was.

    Example:
        >>> import torch, mgqe
        >>> model = torch.nn.Sequential(mgqe.DPQEmbedding(1000, 16), torch.nn.Linear(16, 1))
        >>> tables = mgqe.freeze_(model)
        >>> nbytes = mgqe.save_model(model, "model")
        >>> import os
        >>> nbytes == sum(entry.stat().st_size for entry in os.scandir("model"))
        True
    """
    plain = plain_paths(model)
    tables = _frozen_tables(model, plain)
    table_paths = [path for paths in tables.values() for path in paths]
    dense, aliases = dense_state(model, table_paths, plain)
    ties = tuple(_ties(model, tables, plain))
    return _write_model(Path(folder), model_class_name(model), tables, ties, dense, aliases)


def rewrite_model(saved: SavedModel, folder: Path) -> int:
    """Write a model that was read from a folder, of any version, in the present one; returns the bytes of its files.

    Raises FileExistsError, OSError: as :func:`save_model`.
    """
    manifest = saved.manifest
    tables = {table: list(entry.paths) for table, entry in zip(saved.tables, manifest.tables, strict=True)}
    dense = {name: tensor for name, tensor in saved.dense.items() if name not in manifest.dense.aliases}
    return _write_model(folder, manifest.class_name, tables, manifest.ties, dense, manifest.dense.aliases)


def _write_model(
    target: Path,
    class_name: str,
    tables: TablePaths,
    ties: tuple[Tie, ...],
    dense: Mapping[str, Tensor],
    aliases: dict[str, str],
) -> int:
    target.mkdir(parents=True, exist_ok=True)
    with file_lock(target, exclusive=True):
        if not (target / MANIFEST).exists():
            of_saves = {name for files in saved_files(target).values() for name in files}
            refuse_other_files(target, lambda name: name in of_saves or name.endswith(".tmp"))
        token, replaced = secrets.token_hex(4), _current_token(target)
        try:
            dense_entry = _write_dense(target, token, dense, aliases)  # first, since locks are taken on this file
            manifest = Manifest(class_name, _write_tables(target, token, tables), ties, dense_entry)
            text = encode_manifest(manifest)
            retry_where_busy(lambda: write_whole(target / MANIFEST, len(text), [text]))
        except BaseException:
            if _current_token(target) != token:  # else the model is complete, and a later step failed
                remove_save(target, token)
            raise
        remove_other_saves(target, token, replaced)
    return len(text) + sum(entry.nbytes for entry in manifest.files)


def _write_dense(folder: Path, token: str, dense: Mapping[str, Tensor], aliases: dict[str, str]) -> DenseEntry:
    file = folder / dense_name(token)
    nbytes = save_weights(dense, file)
    _keep_mode(file)
    return DenseEntry(file.name, nbytes, aliases, stored_checksum(file))


def _write_tables(folder: Path, token: str, tables: TablePaths) -> tuple[TableEntry, ...]:
    entries = []
    for (module, paths), name in zip(tables.items(), file_names(paths[0] for paths in tables.values()), strict=True):
        file = folder / f"{name}.{token}.safetensors"
        entries.append(_entry(module, paths, file, save(module.table, file)))
        _keep_mode(file)
    return tuple(entries)


def _keep_mode(file: Path) -> None:
    """Give a new file the mode bits of the present manifest."""
    with suppress(OSError):  # there is no manifest yet, or the file system has no mode bits
        os.chmod(file, stat.S_IMODE(os.stat(file.with_name(MANIFEST)).st_mode))


def model_class_name(model: nn.Module) -> str:
    """The name of the model's class, without its wrappers."""
    *_, innermost = wrapper_chain(model)
    return class_name_of(innermost)


def file_names(paths: Iterable[str]) -> list[str]:
    """A file name for each table, without its ending; they differ also where upper and lower case are the same."""
    names: list[str] = []
    taken = {"dense"}
    for path in paths:
        stem = re.sub(r"[^\w.-]", "_", path, flags=re.ASCII)[:MAX_STEM]
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def _frozen_tables(model: nn.Module, plain: dict[str, str]) -> TablePaths:
    """The frozen tables of a model, each with its plain paths."""
    modules = list(model.named_modules(remove_duplicate=False))
    unfrozen = dict.fromkeys(plain[path] for path, module in modules if isinstance(module, QuantizedEmbedding))
    if unfrozen:
        raise ValueError(f"{', '.join(unfrozen)}: not frozen yet, call mgqe.freeze_(model) first")
    tables: TablePaths = {}
    for path, module in modules:
        if isinstance(module, CompactEmbedding):
            if str(module.dtype).removeprefix("torch.") not in DTYPES:
                raise ValueError(f"{plain[path]}: its vectors are {module.dtype}, expected one of {', '.join(DTYPES)}")
            tables.setdefault(module, []).append(plain[path])
    if not tables or "" in next(iter(tables.values())):
        raise ValueError(
            f"{model_class_name(model)} has no frozen table in it: call mgqe.compress_ and mgqe.freeze_, or use "
            "mgqe.save for a table alone, and safetensors for a model without one"
        )
    return {module: list(dict.fromkeys(paths)) for module, paths in tables.items()}


def _entry(module: CompactEmbedding, paths: list[str], file: Path, nbytes: int) -> TableEntry:
    is_bag, padding = isinstance(module, CompactEmbeddingBag), module.padding_idx
    return TableEntry(
        tuple(paths),
        file.name,
        nbytes,
        None if padding is None else operator.index(padding),
        str(module.dtype).removeprefix("torch."),
        module.mode if isinstance(module, CompactEmbeddingBag) else None,
        is_bag and bool(module.include_last_offset),
        stored_checksum(file),
    )


def _ties(model: nn.Module, tables: TablePaths, plain: dict[str, str]) -> Iterable[Tie]:
    for path, module in model.named_modules():
        for name, layer in ties_of(module).items():
            if isinstance(layer, CompactEmbedding):
                if layer not in tables:
                    raise ValueError(f"{plain[path]}.{name} is tied to a table that is no longer part of the model")
                yield Tie(plain[path], name, tables[layer][0])


def _current_token(folder: Path) -> str | None:
    """The token of the save that the folder's manifest names; None without a manifest that can be read."""
    with suppress(OSError, ArtifactError):
        dense = decode_manifest(manifest_bytes(folder), folder / MANIFEST).dense.file
        return next((token for token in saved_files(folder) if dense == dense_name(token)), None)
    return None
