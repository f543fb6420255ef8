"""A frozen model in one folder: its tables, its other weights, and a manifest that says what is what.

``manifest.json`` names the files; everything else carries a token in its name and is never written to again. A save
over an older one writes its files beside the older ones and then replaces the manifest, so a reader sees the one model
or the other. docs/convert.md describes the folder.
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
from mgqe.convert.read import manifest_bytes
from mgqe.convert.saves import dense_name, patiently, remove_others, remove_save, saved_files
from mgqe.convert.tied import ties_of
from mgqe.convert.wrappers import class_of, layers_of, plain_paths
from mgqe.files.container import ArtifactError, file_lock, stored_checksum, write_whole
from mgqe.files.weights import save_weights
from mgqe.nn.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.table.io import save

MAX_STEM = 100  # characters of a path in a file's name: file systems take names of 255 bytes

Places = dict[CompactEmbedding, list[str]]


def save_model(model: nn.Module, folder: str | os.PathLike[str]) -> int:
    """Write a frozen model to a folder and return the bytes of its files: tables, other weights and manifest.

    Nothing is pickled: the model's class is the reader's to bring (:func:`mgqe.load_model`). Saving over an older
    save replaces it whole or not at all, and whoever loads meanwhile gets the one model or the other. Several saves
    into one folder wait for each other, on systems with file locks. What wraps the model (torch.compile,
    DataParallel and their kind) is not saved.

    Args:
        model: after :func:`mgqe.freeze_`.
        folder: made if it is not there; otherwise empty, or one that this function wrote.

    Raises:
        ValueError: layers that are not frozen, or none that are; state that is no tensor, or has no elements. The
            message names them.
        FileExistsError: the folder holds something else.
        OSError: it cannot be written; the message names the file, the bytes needed and the remedy. What the folder held
            is as it was.
    """
    plain = plain_paths(model)
    places = _places(model, plain)
    tables = [path for paths in places.values() for path in paths]
    dense, aliases = dense_state(model, tables, plain)
    ties = tuple(_ties(model, places, plain))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with file_lock(target, exclusive=True):
        _refuse_others(target)
        token, replaced = secrets.token_hex(4), _current_token(target)
        try:
            beside = _write_dense(target, token, dense, aliases)  # first: locks are taken on it
            manifest = Manifest(class_name(model), _write_tables(target, token, places), ties, beside)
            text = encode_manifest(manifest)
            patiently(lambda: write_whole(target / MANIFEST, len(text), [text]))
        except BaseException:
            if _current_token(target) != token:  # else the model is there, and what failed came after it
                remove_save(target, token)
            raise
        remove_others(target, token, replaced)
    return len(text) + sum(entry.nbytes for entry in manifest.files)


def _write_dense(folder: Path, token: str, dense: Mapping[str, Tensor], aliases: dict[str, str]) -> DenseEntry:
    file = folder / dense_name(token)
    nbytes = save_weights(dense, file)
    _keep_mode(file)
    return DenseEntry(file.name, nbytes, aliases, stored_checksum(file))


def _write_tables(folder: Path, token: str, places: Places) -> tuple[TableEntry, ...]:
    entries = []
    for (module, paths), name in zip(places.items(), file_names(each[0] for each in places.values()), strict=True):
        file = folder / f"{name}.{token}.safetensors"
        entries.append(_entry(module, paths, file, save(module.table, file)))
        _keep_mode(file)
    return tuple(entries)


def _keep_mode(file: Path) -> None:
    """Give a new file the mode bits of the manifest that is there."""
    with suppress(OSError):  # there is none yet, or the file is on a system without them
        os.chmod(file, stat.S_IMODE(os.stat(file.with_name(MANIFEST)).st_mode))


def class_name(model: nn.Module) -> str:
    """The name of the model's class, or of what wrappers hold."""
    *_, innermost = layers_of(model)
    return class_of(innermost)


def file_names(paths: Iterable[str]) -> list[str]:
    """A file name for each table, without its ending: no two alike, also where upper and lower case are one."""
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


def _places(model: nn.Module, plain: dict[str, str]) -> Places:
    """The frozen tables of a model, each with its plain paths."""
    modules = list(model.named_modules(remove_duplicate=False))
    unfrozen = dict.fromkeys(plain[path] for path, module in modules if isinstance(module, QuantizedEmbedding))
    if unfrozen:
        raise ValueError(f"{', '.join(unfrozen)}: not frozen yet, call mgqe.freeze_(model) first")
    places: Places = {}
    for path, module in modules:
        if isinstance(module, CompactEmbedding):
            if str(module.dtype).removeprefix("torch.") not in DTYPES:
                raise ValueError(f"{plain[path]}: its vectors are {module.dtype}, expected one of {', '.join(DTYPES)}")
            places.setdefault(module, []).append(plain[path])
    if not places or "" in next(iter(places.values())):
        raise ValueError(
            f"{class_name(model)} has no frozen table in it: call mgqe.compress_ and mgqe.freeze_, or use mgqe.save "
            "for a table alone, and safetensors for a model without one"
        )
    return {module: list(dict.fromkeys(paths)) for module, paths in places.items()}


def _entry(module: CompactEmbedding, paths: list[str], file: Path, nbytes: int) -> TableEntry:
    bag, padding = isinstance(module, CompactEmbeddingBag), module.padding_idx
    return TableEntry(
        tuple(paths),
        file.name,
        nbytes,
        None if padding is None else operator.index(padding),
        str(module.dtype).removeprefix("torch."),
        module.mode if isinstance(module, CompactEmbeddingBag) else None,
        bag and bool(module.include_last_offset),
        stored_checksum(file),
    )


def _ties(model: nn.Module, places: Places, plain: dict[str, str]) -> Iterable[Tie]:
    for path, module in model.named_modules():
        for name, layer in ties_of(module).items():
            if isinstance(layer, CompactEmbedding):
                if layer not in places:
                    raise ValueError(f"{plain[path]}.{name} is tied to a table that is no part of the model any more")
                yield Tie(plain[path], name, places[layer][0])


def _current_token(folder: Path) -> str | None:
    """Of the save that the folder's manifest names."""
    with suppress(OSError, ArtifactError):
        dense = decode_manifest(manifest_bytes(folder), folder / MANIFEST).dense.file
        return next((token for token in saved_files(folder) if dense == dense_name(token)), None)
    return None


def _refuse_others(folder: Path) -> None:
    own = {MANIFEST, *(name for names in saved_files(folder).values() for name in names)}
    strange = sorted(name for name in os.listdir(folder) if name not in own and not name.endswith(".tmp"))
    if strange and MANIFEST not in os.listdir(folder):
        raise FileExistsError(f"{folder} holds other files ({', '.join(strange[:3])}): choose an empty folder")
