"""Frozen collections: what the quantised ones were, from a folder, with the same inputs and outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchrec import JaggedTensor, KeyedTensor

from mgqe.artifact import load as load_table
from mgqe.container import ArtifactError
from mgqe.ids import as_int64
from mgqe.shards import published_set
from mgqe.table import CompactTable
from mgqe.torchrec.freezing import FORMAT, MANIFEST, VERSION


class _Compact(nn.Module):
    def __init__(self, tables: dict[str, CompactTable], features: dict[str, list[str]]) -> None:
        super().__init__()
        self.tables = tables
        self.features = features


class CompactEmbeddingBagCollection(_Compact):
    """Bags pooled straight from the codes: KeyedJaggedTensor -> KeyedTensor, as the collection that was frozen.

    Attributes:
        tables: name -> CompactTable.
        features: name -> its features.
        pooling: name -> "sum" or "mean".
    """

    def __init__(
        self,
        tables: dict[str, CompactTable],
        features: dict[str, list[str]],
        pooling: dict[str, str],
        is_weighted: bool = False,
    ) -> None:
        super().__init__(tables, features)
        self.pooling, self.is_weighted = pooling, is_weighted

    def forward(self, features: Any) -> Any:
        """Bags -> (B, d) a feature; of the inputs the weights have a gradient. Raises IndexError for an id outside its
        table."""
        jagged, keys, pooled = features.to_dict(), [], []
        for name, table in self.tables.items():
            for feature in self.features[name]:
                part = jagged[feature]
                offsets = F.pad(part.lengths().to(torch.int64).cumsum(0), (1, 0))
                weights = part.weights().float() if self.is_weighted else None
                keys.append(feature)
                pooled.append(table.bag(as_int64(part.values()), offsets, self.pooling[name], weights, True))
        return KeyedTensor(keys, [bags.shape[1] for bags in pooled], torch.cat(pooled, dim=1))


class CompactEmbeddingCollection(_Compact):
    """A vector for every id: KeyedJaggedTensor -> feature -> JaggedTensor, as the collection that was frozen."""

    @torch.no_grad()
    def forward(self, features: Any) -> dict[str, Any]:
        """Ids -> each feature's vectors. Raises IndexError for an id outside its table."""
        jagged = features.to_dict()
        return {
            feature: JaggedTensor(
                values=table.lookup(as_int64(jagged[feature].values())), lengths=jagged[feature].lengths()
            )
            for name, table in self.tables.items()
            for feature in self.features[name]
        }


def load(
    folder: str | os.PathLike[str], *, mmap: bool = True
) -> CompactEmbeddingBagCollection | CompactEmbeddingCollection:
    """The collection that :func:`mgqe.torchrec.freeze` wrote.

    Raises:
        ArtifactError: (a ValueError) the folder holds tables of different freezes, or a file is missing or damaged;
            the message names it.
        OSError: there is no such folder, or no frozen collection in it.
    """
    target = Path(folder)
    about = _read_manifest(target / MANIFEST)
    tables: dict[str, CompactTable] = {}
    for entry in about["tables"]:
        path = target / entry["name"]
        if published_set(path) != about["set"]:
            raise ArtifactError(
                f"{path}: the table is of another freeze than {MANIFEST}: freezing was interrupted at its last moment, "
                "or folders were mixed. Freeze again"
            )
        table = load_table(path, mmap=mmap)
        if not isinstance(table, CompactTable):
            raise ArtifactError(f"{path}: no compact table")
        tables[entry["name"]] = table
    features = {entry["name"]: list(entry["features"]) for entry in about["tables"]}
    if about["kind"] == "bags":
        pooling = {entry["name"]: entry["pooling"] for entry in about["tables"]}
        return CompactEmbeddingBagCollection(tables, features, pooling, about["is_weighted"])
    return CompactEmbeddingCollection(tables, features)


def _read_manifest(path: Path) -> dict[str, Any]:
    if path.parent.is_dir() and not path.exists():
        raise FileNotFoundError(
            2, f"no {MANIFEST}, which is written last: nothing was frozen here, or freezing was interrupted", str(path)
        )
    try:
        about = json.loads(path.read_text())
        if about["format"] != FORMAT or about["version"] != VERSION or about["kind"] not in ("bags", "vectors"):
            raise ValueError(f"expected format {FORMAT!r} of version {VERSION!r}")
        for entry in about["tables"]:
            if not all(isinstance(text, str) for text in (entry["name"], *entry["features"])):
                raise ValueError("a table's name and features must be strings")
            if Path(entry["name"]).name != entry["name"]:
                raise ValueError(f"a table's name must be a file's name, got {entry['name']!r}")
            if about["kind"] == "bags" and entry["pooling"] not in ("sum", "mean"):
                raise ValueError(f"pooling must be 'sum' or 'mean', got {entry['pooling']!r}")
        if not isinstance(about["set"], str) or not isinstance(about["is_weighted"], bool):
            raise ValueError("'set' must be a string, 'is_weighted' true or false")
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a frozen collection ({type(error).__name__}: {error})") from error
    found: dict[str, Any] = about
    return found
