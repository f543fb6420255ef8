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

from mgqe.checks.ids import as_int64
from mgqe.checks.names import errors_about
from mgqe.files.checksums import json_checksum
from mgqe.files.consistent import MixedFiles, read_consistent
from mgqe.files.container import RESTORE, ArtifactError, reject_repeated_keys
from mgqe.files.regular import open_regular
from mgqe.table.compact import CompactTable
from mgqe.table.io import load as load_table
from mgqe.table.sharded import INDEX, published_set
from mgqe.torchrec.freezing import FORMAT, MANIFEST, OLD_VERSION, VERSION


class _Compact(nn.Module):
    def __init__(self, tables: dict[str, CompactTable], features: dict[str, list[str]]) -> None:
        super().__init__()
        self.tables = tables
        self.features = features

    def _jagged(self, features: Any) -> dict[str, Any]:
        """Each feature's ids; KeyError where the batch lacks one."""
        jagged: dict[str, Any] = features.to_dict()
        if missing := [feature for names in self.features.values() for feature in names if feature not in jagged]:
            raise KeyError(f"the batch has no feature {missing[0]!r}: it has {sorted(jagged)}")
        return jagged


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
        """Bags -> (B, d) per feature; of the inputs the weights have a gradient. Raises IndexError for an id outside of
        its table."""
        jagged, keys, pooled = self._jagged(features), [], []
        for name, table in self.tables.items():
            for feature in self.features[name]:
                bags = jagged[feature]
                offsets = F.pad(bags.lengths().to(torch.int64).cumsum(0), (1, 0))
                weights = bags.weights().float() if self.is_weighted else None
                keys.append(feature)
                with errors_about(f"feature {feature!r} of table {name!r}"):
                    pooled.append(table.bag(as_int64(bags.values()), offsets, self.pooling[name], weights, True))
        return KeyedTensor(keys, [values.shape[1] for values in pooled], torch.cat(pooled, dim=1))


class CompactEmbeddingCollection(_Compact):
    """A vector for every id: KeyedJaggedTensor -> feature -> JaggedTensor, as the collection that was frozen."""

    @torch.no_grad()
    def forward(self, features: Any) -> dict[str, Any]:
        """Ids -> each feature's vectors. Raises IndexError for an id outside its table."""
        jagged, out = self._jagged(features), {}
        for name, table in self.tables.items():
            for feature in self.features[name]:
                with errors_about(f"feature {feature!r} of table {name!r}"):
                    vectors = table.lookup(as_int64(jagged[feature].values()))
                out[feature] = JaggedTensor(values=vectors, lengths=jagged[feature].lengths())
        return out


def load(
    folder: str | os.PathLike[str], *, mmap: bool = True, verify: bool | None = None
) -> CompactEmbeddingBagCollection | CompactEmbeddingCollection:
    """The collection that :func:`mgqe.torchrec.freeze` wrote; ``mmap`` and ``verify`` as for :func:`mgqe.load`.

    The folder may be frozen into again meanwhile: this is the one collection or the other.

    Raises:
        ArtifactError: (a ValueError) the folder holds tables of different freezes, or a file is missing or damaged;
            the message names it.
        OSError: there is no such folder, or no frozen collection in it.
    """
    return read_consistent(Path(folder), lambda: _load(Path(folder), mmap, verify))


def _load(target: Path, mmap: bool, verify: bool | None) -> CompactEmbeddingBagCollection | CompactEmbeddingCollection:
    about = _read_manifest(target / MANIFEST)
    paths = {entry["name"]: target / entry["name"] for entry in about["tables"]}
    tables: dict[str, CompactTable] = {}
    _check_sets(paths, about["set"])
    for name, path in paths.items():
        table = load_table(path, mmap=mmap, verify=verify)
        if not isinstance(table, CompactTable):
            raise ArtifactError(f"{path}: no compact table")
        tables[name] = table
    _check_sets(paths, about["set"])  # a table may have been replaced before it was read
    features = {entry["name"]: list(entry["features"]) for entry in about["tables"]}
    if about["kind"] == "bags":
        pooling = {entry["name"]: entry["pooling"] for entry in about["tables"]}
        return CompactEmbeddingBagCollection(tables, features, pooling, about["is_weighted"])
    return CompactEmbeddingCollection(tables, features)


def _check_sets(paths: dict[str, Path], expected: str) -> None:
    for path in paths.values():
        if _published(path) != expected:
            raise MixedFiles(
                f"{path}: the table is of another freeze than {MANIFEST}: freezing was interrupted at its last moment, "
                "or folders were mixed. Freeze again"
            )


def _published(folder: Path) -> str | None:
    """The set that a table's index names; an ArtifactError names the index."""
    try:
        return published_set(folder)
    except ArtifactError as error:
        raise ArtifactError(f"{folder / INDEX}: {error}") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    if path.parent.is_dir() and not path.exists():
        raise FileNotFoundError(
            2, f"no {MANIFEST}, which is written last: nothing was frozen here, or freezing was interrupted", str(path)
        )
    try:
        with open_regular(path) as file:
            about = json.loads(file.read().decode("utf-8"), object_pairs_hook=reject_repeated_keys)
        _check_manifest(about)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a frozen collection ({error})") from error
    return about  # type: ignore[no-any-return]


def _check_manifest(about: Any) -> None:
    """Raise ValueError, naming the entry, unless this is what :func:`mgqe.torchrec.freeze` writes."""
    about = _object(about, "it", ("format", "version", "kind", "set", "is_weighted", "tables"))
    versions = (OLD_VERSION, VERSION)
    if about["format"] != FORMAT or about["version"] not in versions:
        raise ValueError(f"expected format {FORMAT!r} of version {' or '.join(map(repr, versions))}")
    if about["version"] != OLD_VERSION and about.get("checksum") != json_checksum(about):
        raise ValueError(f"its checksum is another one: it is damaged or was edited. {RESTORE}")
    if about["kind"] not in ("bags", "vectors"):
        raise ValueError(f"'kind' must be 'bags' or 'vectors', got {about['kind']!r}")
    if not isinstance(about["set"], str) or not isinstance(about["is_weighted"], bool):
        raise ValueError("'set' must be a string, 'is_weighted' true or false")
    if not isinstance(about["tables"], list):
        raise ValueError(f"'tables' must be a list, got {about['tables']!r}")
    bags = about["kind"] == "bags"
    for entry in about["tables"]:
        entry = _object(entry, "a table", ("name", "features", *(("pooling",) if bags else ())))
        name, features = entry["name"], entry["features"]
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"a table's name must be a file's name, got {name!r}")
        if not isinstance(features, list) or not all(isinstance(feature, str) for feature in features):
            raise ValueError(f"the features of table {name!r} must be a list of strings, got {features!r}")
        if bags and entry["pooling"] not in ("sum", "mean"):
            raise ValueError(f"pooling must be 'sum' or 'mean', got {entry['pooling']!r}")
    names = [entry["name"] for entry in about["tables"]]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"'tables' must be tables of different names, got {names}")


def _object(value: Any, what: str, entries: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object with these entries."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object, got {type(value).__name__}")
    if missing := [name for name in entries if name not in value]:
        raise ValueError(f"{what} has no entry {missing[0]!r}")
    return value
