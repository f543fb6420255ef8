"""A frozen model in one folder: its tables, its other weights, and a manifest that says what is what.

``manifest.json`` names the files; everything else carries a token in its name and is never written to again. A save
over an older one writes its files beside the older ones and then replaces the manifest, so a reader sees the one model
or the other. docs/convert.md describes the folder.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgqe.artifact import ArtifactError, save
from mgqe.container import no_repeats, written
from mgqe.convert.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.convert.tied import ties_of, untied_class
from mgqe.quantized import QuantizedEmbedding

MANIFEST = "manifest.json"
FORMAT, VERSION = "mgqe-model", 1
MAX_MANIFEST = 1 << 26  # bytes

Config = dict[str, Any]


@dataclass(frozen=True)
class TableEntry:
    """A frozen table of the model, as the manifest has it.

    Attributes:
        paths: where its module is.
        file: its file in the folder.
        nbytes: of the file.
        padding_idx, dtype, mode, include_last_offset: of the module; ``mode`` is None for one that is no bag.
    """

    paths: tuple[str, ...]
    file: str
    nbytes: int
    padding_idx: int | None
    dtype: str
    mode: str | None
    include_last_offset: bool


def save_model(model: nn.Module, folder: str | os.PathLike[str]) -> int:
    """Write a frozen model to a folder and return the bytes of its files: tables, other weights and manifest.

    Nothing is pickled: the model's class is the reader's to bring (:func:`mgqe.load_model`). Saving over an older
    save replaces it whole or not at all.

    Args:
        model: after :func:`mgqe.freeze_`.
        folder: made if it is not there; otherwise empty, or one that this function wrote.

    Raises:
        ValueError: layers that are not frozen, or none that are; state that is no tensor. The message names them.
        FileExistsError: the folder holds something else. OSError: it cannot be written.
    """
    unfrozen = [path for path, module in model.named_modules() if isinstance(module, QuantizedEmbedding)]
    if unfrozen:
        raise ValueError(f"{', '.join(unfrozen)}: not frozen yet, call mgqe.freeze_(model) first")
    places: dict[CompactEmbedding, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, CompactEmbedding):
            places.setdefault(module, []).append(path)
    if not places or "" in next(iter(places.values())):
        raise ValueError(
            f"{type(model).__name__} has no frozen table in it: call mgqe.compress_ and mgqe.freeze_, or use mgqe.save "
            "for a table alone, and safetensors for a model without one"
        )
    target, token = Path(folder), secrets.token_hex(4)
    _prepare(target)
    made: list[Path] = []
    try:
        entries = []
        for module, paths in places.items():
            file = target / f"{_file_name(paths[0])}.{token}.safetensors"
            made.append(file)
            entries.append(_entry(module, paths, file.name, save(module.table, file)))
        dense, aliases = _dense_state(model, [path for paths in places.values() for path in paths])
        file = target / f"dense.{token}.safetensors"
        made.append(file)
        nbytes = _write_dense(dense, file)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "class": class_name(model),
            "tables": [asdict(entry) for entry in entries],
            "ties": _ties(model, {module: paths[0] for module, paths in places.items()}),
            "dense": {"file": file.name, "nbytes": nbytes, "aliases": aliases},
        }
        text = (json.dumps(manifest, indent=1) + "\n").encode()
        with written(target / MANIFEST, [text]) as temporary:
            os.replace(temporary, target / MANIFEST)
    except BaseException:
        for file in made:
            with suppress(OSError):
                file.unlink(missing_ok=True)
        raise
    for old in _own_files(target) - {file.name for file in made}:
        with suppress(OSError):  # left behind it means nothing to anybody
            (target / old).unlink()
    return nbytes + len(text) + sum(entry.nbytes for entry in entries)


def class_name(model: nn.Module) -> str:
    """The model's class as its author named it, without the module, which differs between script and package."""
    return untied_class(type(model)).__qualname__


def read_manifest(folder: Path) -> Config:
    """The manifest, its outline checked, and the sizes of the files that it names.

    Raises:
        FileNotFoundError: there is none. ArtifactError: it is not one, or a file is missing or cut short.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no {MANIFEST} here, so this is no folder that mgqe.save_model wrote")
    if path.stat().st_size > MAX_MANIFEST:
        raise ArtifactError(f"{path}: larger than {MAX_MANIFEST:,} bytes")
    with reading(path):
        manifest = json.loads(path.read_text("utf-8"), object_pairs_hook=no_repeats)
        if manifest["format"] != FORMAT:
            raise ValueError(f"'format' must be {FORMAT!r}, got {manifest['format']!r}")
        if manifest["version"] != VERSION:
            raise ValueError(f"'version' must be {VERSION}, got {manifest['version']!r}: read it with a newer mgqe")
        for entry in (*manifest["tables"], manifest["dense"]):
            name, nbytes = entry["file"], entry["nbytes"]
            if Path(name).name != name or not re.fullmatch(r"[\w.-]+\.safetensors", name):
                raise ValueError(f"{name!r} is no file name that save_model gives")
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found != nbytes:
                held = "is missing" if found is None else f"has {found:,} bytes"
                raise ValueError(
                    f"{name} {held}, expected {nbytes:,} bytes: the folder was copied in part, or cut short"
                )
    return manifest  # type: ignore[no-any-return]


def table_entries(manifest: Config, folder: Path) -> list[TableEntry]:
    """The tables of a manifest."""
    with reading(folder / MANIFEST):
        return [TableEntry(**{**entry, "paths": tuple(entry["paths"])}) for entry in manifest["tables"]]


def read_dense(manifest: Config, folder: Path) -> dict[str, Tensor]:
    """The weights beside the tables, under every name that they have in the state_dict."""
    file = folder / manifest["dense"]["file"]
    with reading(file):
        tensors = dict(load_file(file))
        for name, kept in manifest["dense"]["aliases"].items():
            tensors[name] = tensors[kept]
    return tensors


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file's content becomes an ArtifactError that names it."""
    try:
        yield
    except ArtifactError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        what = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise ArtifactError(f"{path}: {what}") from error


def _entry(module: CompactEmbedding, paths: list[str], file: str, nbytes: int) -> TableEntry:
    bag = isinstance(module, CompactEmbeddingBag)
    return TableEntry(
        tuple(paths),
        file,
        nbytes,
        module.padding_idx,
        str(module.dtype).removeprefix("torch."),
        module.mode if isinstance(module, CompactEmbeddingBag) else None,
        bag and bool(module.include_last_offset),
    )


def _dense_state(model: nn.Module, tables: list[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state_dict without tables, each tensor once, and the other names of those that have several."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for key, value in model.state_dict().items():
        if key.startswith(tuple(f"{path}." for path in tables)):
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"{key}: state of {type(value).__name__}, and only tensors can be saved without pickle")
        identity = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and identity in seen:
            aliases[key] = seen[identity]
        else:
            seen[identity] = key
            kept[key] = value.detach().cpu().contiguous().clone()
    return kept, aliases


def _write_dense(tensors: dict[str, Tensor], file: Path) -> int:
    save_file(tensors, file)
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())
        return os.fstat(opened.fileno()).st_size


def _ties(model: nn.Module, tables: dict[CompactEmbedding, str]) -> list[dict[str, str]]:
    return [
        {"path": path, "name": name, "table": tables[layer]}
        for path, module in model.named_modules()
        for name, layer in ties_of(module).items()
        if isinstance(layer, CompactEmbedding)
    ]


def _file_name(path: str) -> str:
    return re.sub(r"[^\w.-]", "_", path, flags=re.ASCII) or "table"


def _own_files(folder: Path) -> set[str]:
    """Files of this and older saves, and what saves that died left."""
    pattern = re.compile(r"[\w.-]+\.[0-9a-f]{8}\.safetensors")
    return {file.name for file in folder.iterdir() if pattern.fullmatch(file.name)}


def _prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    own = {MANIFEST, *_own_files(folder)}
    strange = sorted(file.name for file in folder.iterdir() if file.name not in own and not file.name.endswith(".tmp"))
    if strange and not (folder / MANIFEST).is_file():
        raise FileExistsError(f"{folder} holds other files ({', '.join(strange[:3])}): choose an empty folder")


def dtype_of(entry: TableEntry) -> torch.dtype:
    """The dtype that a manifest names."""
    dtype = getattr(torch, entry.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"{entry.paths[0]}: 'dtype' must be a floating-point type, got {entry.dtype!r}")
    return dtype
