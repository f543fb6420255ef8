"""A converted transformers model as its own save_pretrained writes it: one tensor per table, and an entry for each in
config.json.

A frozen table is the tensor ``PATH.weight`` of bytes, those of the file that ``mgqe.save`` writes. transformers without
mgqe refuses a tensor of that shape, so that no model comes back with random embeddings. Of tables that still train,
``PATH.weight`` is an empty tensor, for the same reason, and the rows are ``PATH.rows``. All other state has its usual
name, and none is there twice.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mgqe.convert.manifest import Tie
from mgqe.convert.tied import ties_of
from mgqe.files.reader import MAX_ROWS, Reader
from mgqe.nn.bag import MODES
from mgqe.nn.compact import CompactEmbedding, CompactEmbeddingBag, buffer_name
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.table.base import FrozenTable
from mgqe.table.io import load, save

METHOD, VERSION = "mgqe", 1
ROWS = "rows"

State = dict[str, Any]
Layer = CompactEmbedding | QuantizedEmbedding


@dataclass(frozen=True)
class PretrainedTable:
    """A frozen table, as config.json has it.

    Attributes:
        paths: all paths of the module. The first has the tensor.
        nbytes: bytes of the tensor.
        padding_idx, mode, include_last_offset: of the module; ``mode`` is None for a module that is no bag.
    """

    paths: tuple[str, ...]
    nbytes: int
    padding_idx: int | None
    mode: str | None
    include_last_offset: bool

    def module(self, table: FrozenTable, dtype: torch.dtype) -> CompactEmbedding:
        """The module of a table."""
        if self.mode is None:
            return CompactEmbedding(table, self.padding_idx, dtype, self.paths[0])
        return CompactEmbeddingBag(table, self.padding_idx, dtype, self.paths[0], self.mode, self.include_last_offset)


def table_layers(model: nn.Module) -> dict[Layer, list[str]]:
    """The quantised and frozen layers of a model, each with all of its paths."""
    layers: dict[Layer, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if path and isinstance(module, Layer):
            layers.setdefault(module, []).append(path)
    return layers


def packed(model: nn.Module, state: Mapping[str, Any]) -> tuple[State, dict[str, Any]]:
    """A model's state_dict in the form described above, and the ``quantization_config`` of config.json."""
    result, tables, trains = dict(state), [], False
    for layer, paths in table_layers(model).items():
        own = _pop(result, paths)
        if isinstance(layer, QuantizedEmbedding):
            trains = True
            own[ROWS], own["weight"] = own["weight"], torch.empty(0, dtype=torch.uint8)
        else:
            own = {"weight": _bytes_of(layer.table)}
            tables.append(_entry(layer, paths, own["weight"]))
        result.update({f"{paths[0]}.{name}": value for name, value in own.items()})
    ties = list(_ties(model))
    for tie in ties:
        result.pop(f"{tie.path}.{tie.name}".lstrip("."), None)
    return result, {
        "quant_method": METHOD,
        "version": VERSION,
        "trains": trains,
        "tables": [asdict(table) for table in tables],
        "ties": [asdict(tie) for tie in ties],
    }


def unpacked(model: nn.Module, state: Mapping[str, Any]) -> State:
    """The inverse of :func:`packed`, for ``load_state_dict`` of a model with the same layers.

    Other states are returned as they are.
    """
    result = dict(state)
    for layer, paths in table_layers(model).items():
        first = f"{paths[0]}."
        if isinstance(layer, QuantizedEmbedding) and first + ROWS in result:
            own = _pop(result, paths)
            own["weight"] = own.pop(ROWS)
        elif isinstance(layer, CompactEmbedding) and _is_packed(result.get(first + "weight")):
            tensors = table_of(_pop(result, paths)["weight"]).to_tensors()[0]
            own = {buffer_name(name): tensor for name, tensor in tensors.items()}
        else:
            continue
        result.update({f"{path}.{name}": value for path in paths for name, value in own.items()})
        if "weight" in own:
            ties = [tie for tie in _ties(model) if tie.table == paths[0]]
            result.update({f"{tie.path}.{tie.name}".lstrip("."): own["weight"] for tie in ties})
    return result


def table_of(packed_table: Tensor) -> FrozenTable:
    """The table whose file's bytes these are. Raises ArtifactError for others, and damaged ones."""
    return load(io.BytesIO(packed_table.cpu().numpy().tobytes()))


def read_entries(settings: Mapping[str, Any]) -> tuple[list[PretrainedTable], list[Tie]]:
    """The tables and ties that a ``quantization_config`` of config.json names. ValueError: entries that cannot be."""
    version = settings.get("version")
    if version != VERSION:
        raise ValueError(f"config.json: version {version!r} of mgqe's tables, this release reads {VERSION}")
    tables = [_read_table(Reader({}, entry)) for entry in settings["tables"]]
    ties = [Tie(entry["path"], entry["name"], entry["table"]) for entry in settings["ties"]]
    if unknown := {tie.table for tie in ties} - {table.paths[0] for table in tables}:
        raise ValueError(f"'ties' names {unknown.pop()!r}, which is no table's first path")
    return tables, ties


def _read_table(reader: Reader) -> PretrainedTable:
    paths = reader.value("paths")
    if not isinstance(paths, list) or not paths:
        raise ValueError(f"a table's 'paths' must be a list of module paths, got {paths!r}")
    table = PretrainedTable(
        tuple(map(str, paths)),
        reader.integer("nbytes", 0, MAX_ROWS),
        reader.optional_integer("padding_idx", 0, MAX_ROWS),
        reader.optional_choice("mode", MODES),
        bool(reader.value("include_last_offset")),
    )
    reader.finish()
    return table


def _entry(layer: CompactEmbedding, paths: list[str], content: Tensor) -> PretrainedTable:
    mode, last = None, False
    if isinstance(layer, CompactEmbeddingBag):
        mode, last = layer.mode, layer.include_last_offset
    return PretrainedTable(tuple(paths), content.numel(), layer.padding_idx, mode, last)


def _bytes_of(table: FrozenTable) -> Tensor:
    file = io.BytesIO()
    save(table, file)
    return torch.frombuffer(file.getbuffer(), dtype=torch.uint8)


def _is_packed(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim == 1


def _pop(state: State, paths: list[str]) -> State:
    """Take the state of a layer out, under all of its paths; what the first path has."""
    popped: State = {}
    for path in reversed(paths):
        for key in [key for key in state if key.startswith(f"{path}.")]:
            popped[key[len(path) + 1 :]] = state.pop(key)
    return popped


def _ties(model: nn.Module) -> Iterator[Tie]:
    paths = table_layers(model)
    for path, module in model.named_modules():
        for name, layer in ties_of(module).items():
            if isinstance(layer, Layer):
                if layer not in paths:
                    raise ValueError(f"{path}.{name} is tied to a table that is no part of the {type(model).__name__}")
                yield Tie(path, name, paths[layer][0])
