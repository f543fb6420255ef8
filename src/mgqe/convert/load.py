"""load_model: a saved folder into the user's own model class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from mgqe.artifact import load
from mgqe.convert.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.convert.folder import (
    MANIFEST,
    TableEntry,
    class_name,
    dtype_of,
    read_dense,
    read_manifest,
    reading,
    table_entries,
)
from mgqe.convert.tables import is_embedding
from mgqe.convert.tied import tie
from mgqe.quantized import QuantizedEmbedding

Model = TypeVar("Model", bound=nn.Module)


def load_model(model: Model, folder: str | os.PathLike[str]) -> Model:
    """Put a saved model's tables and weights into an instance of its class, in place, and return it in eval mode.

    Args:
        model: made as the saved one was, embeddings as its class makes them (or compressed, or frozen): whatever is at
            the tables' paths is replaced.
        folder: what :func:`mgqe.save_model` wrote. Tables are mapped into memory, and read when first looked up.

    Raises:
        TypeError: a class and no instance, or an instance of another class.
        ValueError: the model has no embedding at a table's path, or one of another size; weights that it lacks, has
        too many of, or in other shapes. All are listed by their paths, and the model is as it was.
        ArtifactError: (a ValueError) a file is damaged, cut short or missing; the message names it.
        FileNotFoundError: there is no such folder.
    """
    given: object = model
    if not isinstance(given, nn.Module):
        name = given.__name__ if isinstance(given, type) else type(given).__name__
        raise TypeError(f"expected a model, got {name}: pass an instance, load_model({name}(...), folder)")
    target = Path(folder)
    manifest = read_manifest(target)
    with reading(target / MANIFEST):
        saved, ties = str(manifest["class"]), [(t["path"], t["name"], t["table"]) for t in manifest["ties"]]
    if saved != class_name(model):
        raise TypeError(
            f"{target} holds a model of class {saved}, not {class_name(model)}: pass an instance of {saved}"
        )
    entries = table_entries(manifest, target)
    dense = read_dense(manifest, target)
    tables = [_table(entry, target) for entry in entries]

    parts = dict(model.named_modules(remove_duplicate=False))
    owned = [path for entry in entries for path in entry.paths]
    problems = [p for entry, table in zip(entries, tables, strict=True) for p in _misfits(parts, entry, table)]
    problems += [
        f"{path or 'the model'}: no such module, whose {name} was tied" for path, name, _ in ties if path not in parts
    ]
    dropped = {f"{path}.{name}".lstrip(".") for path, name, _ in ties}
    problems += _compare(model, dense, owned, dropped)
    if problems:
        raise ValueError(f"{target} does not fit this {class_name(model)}:\n  " + "\n  ".join(problems))

    by_path = {}
    for entry, table in zip(entries, tables, strict=True):
        by_path[entry.paths[0]] = table
        for path in entry.paths:
            parent, _, name = path.rpartition(".")
            parts[parent]._modules[name] = table
    for path, name, table in ties:
        parts[path]._parameters.pop(name, None)
        tie(parts[path], name, by_path[table])
    model.load_state_dict(dense, strict=False)  # compared above; the tables' keys are not among them
    return model.eval()


def _table(entry: TableEntry, folder: Path) -> CompactEmbedding:
    with reading(folder / MANIFEST):
        dtype = dtype_of(entry)
        frozen = load(folder / entry.file)
        if entry.mode is None:
            return CompactEmbedding(frozen, entry.padding_idx, dtype, entry.paths[0])
        return CompactEmbeddingBag(
            frozen, entry.padding_idx, dtype, entry.paths[0], entry.mode, entry.include_last_offset
        )


def _misfits(parts: dict[str, nn.Module], entry: TableEntry, table: CompactEmbedding) -> list[str]:
    """What is wrong with the modules at a table's paths."""
    found = []
    for path in entry.paths:
        module = parts.get(path)
        if module is None:
            found.append(f"{path}: the model has no such module")
        elif not (is_embedding(module) or isinstance(module, (QuantizedEmbedding, CompactEmbedding))):
            found.append(f"{path}: the model has a {type(module).__name__} here, expected an embedding")
        else:
            size = (int(module.num_embeddings), int(module.embedding_dim))  # type: ignore[arg-type]
            if size != (table.num_embeddings, table.embedding_dim):
                found.append(
                    f"{path}: {size[0]} x {size[1]} in the model, {table.num_embeddings} x {table.embedding_dim} saved"
                )
    return found


def _compare(model: nn.Module, dense: dict[str, Tensor], tables: list[str], dropped: set[str]) -> list[str]:
    """Weights that the model lacks, has too many of, or in other shapes."""
    inside = tuple(f"{path}." for path in tables)
    own = {key: v for key, v in model.state_dict().items() if not key.startswith(inside) and key not in dropped}
    found = [f"{key}: saved, but not in the model" for key in dense if key not in own]
    found += [f"{key}: in the model, but not saved" for key in own if key not in dense]
    found += [
        f"{key}: shape {tuple(value.shape)} in the model, {tuple(dense[key].shape)} saved"
        for key, value in own.items()
        if key in dense and dense[key].shape != value.shape
    ]
    return found
