"""Compare a saved model with an instance of its class, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mgqe.convert.find import is_embedding
from mgqe.convert.manifest import TableEntry, Tie
from mgqe.convert.read import SavedModel
from mgqe.convert.tied import ties_of
from mgqe.convert.wrappers import plain_key, plain_paths, translation
from mgqe.nn.bag import MGQEmbeddingBag
from mgqe.nn.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.nn.quantized import QuantizedEmbedding


@dataclass(frozen=True)
class Fit:
    """Where everything saved belongs in a model, by the model's own paths.

    Attributes:
        tables: path -> the table that belongs there; the table replaces a wrapper as well.
        ties: (module, parameter's name, the table that it is tied to).
        dense: key of ``state_dict`` -> the saved tensor.
        problems: what does not fit, one line each.
    """

    tables: dict[str, CompactEmbedding]
    ties: list[tuple[nn.Module, str, CompactEmbedding]]
    dense: dict[str, Tensor]
    problems: list[str]


def compare(model: nn.Module, saved: SavedModel) -> Fit:
    """Where everything saved belongs in the model, and what does not fit. Changes nothing."""
    plain, modules = plain_paths(model), dict(model.named_modules(remove_duplicate=False))
    # A wrapper and the modules in it have one plain path. A table is compared with the innermost, the last in order,
    # and replaces the outermost, the last in reversed order.
    innermost = {path: raw for raw, path in plain.items()}
    outermost = {path: raw for raw, path in reversed(plain.items())}
    entries = saved.manifest.tables
    translate = translation([path for entry in entries for path in entry.paths], plain)
    problems: list[str] = []
    tables: dict[str, CompactEmbedding] = {}
    for entry, table in zip(entries, saved.tables, strict=True):
        for path in map(translate, entry.paths):
            module = modules[innermost[path]] if path in innermost else None
            problems += [f"{path}: {problem}" for problem in _misfits(module, entry, table)]
            tables[path] = table
    by_path = {entry.paths[0]: table for entry, table in zip(entries, saved.tables, strict=True)}
    ties = []
    for tie in saved.manifest.ties:
        path = translate(tie.path)
        owner = modules[innermost[path]] if path in innermost else None
        problems += _tie_misfits(owner, path, tie, by_path[tie.table])
        if owner is not None:
            ties.append((owner, tie.name, by_path[tie.table]))
    tied_keys = {f"{translate(tie.path)}.{tie.name}".lstrip(".") for tie in saved.manifest.ties}
    dense = {translate(key): value for key, value in saved.dense.items()}
    table_prefixes = tuple(f"{path}." for path in tables)
    state = _dense_state(model, plain, table_prefixes, tied_keys)
    problems += _compare_dense({key: value for key, (_, value) in state.items()}, dense)
    problems += _lost_buffers(modules, plain, table_prefixes)
    dense_by_raw_key = {raw: dense[key] for key, (raw, _) in state.items() if key in dense}
    tables_by_raw_path = {outermost[path]: table for path, table in tables.items() if path in outermost}
    return Fit(tables_by_raw_path, ties, dense_by_raw_key, problems)


def _misfits(module: nn.Module | None, entry: TableEntry, table: CompactEmbedding) -> Iterator[str]:
    """How the module at a table's path differs from the table."""
    if module is None:
        yield "the model has no such module"
        return
    if not (is_embedding(module) or isinstance(module, (QuantizedEmbedding, CompactEmbedding))):
        yield f"the model has a {type(module).__name__} here, expected an embedding"
        return
    size = (int(module.num_embeddings), int(module.embedding_dim))  # type: ignore[arg-type]
    if size != (table.num_embeddings, table.embedding_dim):
        yield f"{size[0]} x {size[1]} in the model, {table.num_embeddings} x {table.embedding_dim} saved"
    is_bag = isinstance(module, (nn.EmbeddingBag, MGQEmbeddingBag, CompactEmbeddingBag))
    if is_bag != (entry.mode is not None):
        kinds = ("vectors", "bags")
        yield f"an embedding of {kinds[is_bag]} in the model, of {kinds[not is_bag]} saved"
    elif is_bag:
        for name in ("mode", "include_last_offset"):
            if getattr(module, name) != getattr(entry, name):
                yield f"{name} {getattr(module, name)!r} in the model, {getattr(entry, name)!r} saved"
    padding = getattr(module, "padding_idx", None)
    if padding != table.padding_idx and (padding is not None or table.padding_idx != table.table.padding_idx):
        yield f"padding_idx {padding} in the model, {table.padding_idx} saved"


def _tie_misfits(owner: nn.Module | None, path: str, tie: Tie, table: CompactEmbedding) -> Iterator[str]:
    if owner is None:
        yield f"{path}: no such module, whose {tie.name} was tied"
        return
    where = f"{path}.{tie.name}".lstrip(".")
    parameter = owner._parameters.get(tie.name)
    if parameter is None and tie.name not in ties_of(owner):
        yield f"{where}: was tied to {tie.table}, but the model has no such parameter"
    elif parameter is not None and tuple(parameter.shape) != (table.num_embeddings, table.embedding_dim):
        yield (
            f"{where}: shape {tuple(parameter.shape)} in the model, and tied to {tie.table} of shape "
            f"{(table.num_embeddings, table.embedding_dim)} when saved"
        )


def _dense_state(
    model: nn.Module, plain: Mapping[str, str], table_prefixes: tuple[str, ...], tied_keys: set[str]
) -> dict[str, tuple[str, object]]:
    """Plain key -> (key, value) of the state that is in no table and not tied to one."""
    state = {plain_key(raw, plain): (raw, value) for raw, value in model.state_dict().items()}
    return {key: entry for key, entry in state.items() if not key.startswith(table_prefixes) and key not in tied_keys}


def _compare_dense(state: Mapping[str, object], dense: Mapping[str, Tensor]) -> Iterator[str]:
    """Weights that are only saved or only in the model, or differ in shape or kind of numbers."""
    yield from (f"{key}: saved, but not in the model" for key in dense if key not in state)
    yield from (f"{key}: in the model, but not saved" for key in state if key not in dense)
    for key, value in state.items():
        if key not in dense or not isinstance(value, Tensor):
            continue
        saved = dense[key]
        if is_lazy(value):
            yield f"{key}: has no shape in the model yet: call the model once, and load then"
        elif hasattr(value, "full_tensor"):
            yield f"{key}: distributed in the model: load before the model is sharded"
        elif value.is_inference() and not torch.is_inference_mode_enabled():
            yield f"{key}: made in torch.inference_mode, which alone can change it: load in it, or make it outside"
        elif value.shape != saved.shape:
            yield f"{key}: shape {tuple(value.shape)} in the model, {tuple(saved.shape)} saved"
        elif value.dtype != saved.dtype and not (value.is_floating_point() and saved.is_floating_point()):
            yield f"{key}: {value.dtype} in the model, {saved.dtype} saved"


def _lost_buffers(
    modules: Mapping[str, nn.Module], plain: Mapping[str, str], table_prefixes: tuple[str, ...]
) -> Iterator[str]:
    """Buffers on the meta device that are not part of state_dict, so that their elements are not known."""
    for path, module in modules.items():
        for name, buffer in module._buffers.items():
            where = f"{plain[path]}.{name}".lstrip(".")
            if (
                buffer is not None
                and buffer.is_meta
                and name in module._non_persistent_buffers_set
                and not where.startswith(table_prefixes)
            ):
                yield (
                    f"{where}: on the meta device, and no part of state_dict (persistent=False), so that it was not "
                    'saved: make the model on the CPU, or this buffer, with torch.device("cpu")'
                )
