"""The file of an id map: the container of docs/format.md, kind ``id-map``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mgqe.files.atomic import write_whole
from mgqe.files.container import ArtifactError, decode_metadata, encode, read
from mgqe.ids.count_runs import CountRuns
from mgqe.ids.index import MAX_IDS, MAX_SEEDS, Index, bucket_bits
from mgqe.ids.logs.id_columns import INTEGERS, KINDS
from mgqe.ids.stored_ids import HashedIds, IntegerIds, StoredIds, TextIds
from mgqe.ids.strings import WORD

KIND = "id-map"
INDEX_TENSORS = ("index.directory", "index.fingerprints", "index.rows")
DTYPES = (torch.int64, torch.int32, torch.uint8)
COUNT_TENSORS = ("counts.values", "counts.ends")


@dataclass(frozen=True)
class IdMapConfig:
    """The file's configuration without N."""

    kind: str
    interactions: int
    distinct: int
    seed: int


ArraySpecs = dict[str, tuple[tuple[int, ...] | None, tuple[str, ...]]]  # name -> shape (None: any), types


def arrays_of(ids: StoredIds, index: Index, runs: CountRuns) -> dict[str, np.ndarray]:
    """Every array of a map, by its name in the file."""
    return {
        **ids.arrays(),
        **dict(zip(INDEX_TENSORS, (index.directory, index.fingerprints, index.rows))),
        **dict(zip(COUNT_TENSORS, (runs.values, runs.ends))),
    }


def write_map(path: str | os.PathLike[str], ids: StoredIds, index: Index, runs: CountRuns, config: IdMapConfig) -> int:
    """Write a whole file and return its bytes."""
    entries: dict[str, Any] = {
        "num_ids": len(ids),
        "ids": config.kind,
        "interactions": config.interactions,
        "distinct": config.distinct,
        "seed": config.seed,
    }
    tensors = {name: [torch.from_numpy(array)] for name, array in arrays_of(ids, index, runs).items()}
    nbytes, content = encode(tensors, KIND, entries)
    write_whole(path, nbytes, content)
    return nbytes


def read_id_map(
    path: str | os.PathLike[str], mmap: bool, verify: bool | None = None
) -> tuple[StoredIds, Index, CountRuns, IdMapConfig]:
    """The ids, the index, the counts and the configuration of a map, verified as for :func:`mgqe.load`.

    Shapes and totals are checked as well. Arrays that are mapped into memory are read no further than that needs.
    """
    name = os.fspath(path)
    try:
        metadata, tensors = read(name, True if verify is None and not mmap else verify)
        kind, config = decode_metadata(metadata)
        if kind != KIND:
            raise ArtifactError(f"holds {kind!r}, no id map: read it with mgqe.load")
        for key, tensor in tensors.items():
            if tensor.dtype not in DTYPES:
                raise ArtifactError(f"tensor {key!r} has type {tensor.dtype}, which no id map holds")
        arrays = {key: (tensor if mmap else tensor.clone()).numpy() for key, tensor in tensors.items()}
        return _parse(arrays, config)
    except ValueError as error:
        raise ArtifactError(f"{name}: {error}") from error


def _parse(arrays: dict[str, np.ndarray], config: Any) -> tuple[StoredIds, Index, CountRuns, IdMapConfig]:
    entries = ("num_ids", "ids", "interactions", "distinct", "seed")
    if not isinstance(config, dict) or set(config) != set(entries):
        raise ArtifactError(f"config must have the entries {', '.join(entries)}")
    n, kind = config["num_ids"], config["ids"]
    for entry, limit in (("num_ids", MAX_IDS), ("interactions", 2**63), ("distinct", 2**63), ("seed", MAX_SEEDS - 1)):
        value = config[entry]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
            raise ArtifactError(f"config {entry!r} must be a whole number of 0 to {limit}, got {value!r}")
    if kind not in KINDS:
        raise ArtifactError(f"config 'ids' must be one of {', '.join(KINDS)}, got {kind!r}")
    if n < 1:
        raise ArtifactError("a map has at least one id")
    _check_arrays(arrays, kind, n)
    map_config = IdMapConfig(kind, config["interactions"], config["distinct"], config["seed"])
    runs = _runs(arrays, n)
    _check_totals(runs, n, map_config)
    return _ids(arrays, kind, config["seed"]), _index(arrays, n), runs, map_config


def _check_arrays(arrays: dict[str, np.ndarray], kind: str, n: int) -> None:
    """ArtifactError unless these are the arrays of a map of ``n`` ids, of the right types and shapes."""
    expected: ArraySpecs
    if kind in INTEGERS:
        expected = {"ids": ((n,), ("int32", "int64"))}
    elif "ids.hashes" in arrays:
        expected = {"ids.hashes": ((n,), ("int64",))}
    else:
        expected = {"ids.bytes": (None, ("uint8",)), "ids.offsets": ((n + 1,), ("int32", "int64"))}
    runs = arrays["counts.values"].shape if "counts.values" in arrays else (1,)
    expected |= {
        "index.directory": (((1 << bucket_bits(n)) + 1,), ("int32",)),
        "index.fingerprints": ((n,), ("uint8",)),
        "index.rows": ((n,), ("int32",)),
        "counts.values": (runs, ("int64",)),
        "counts.ends": (runs, ("int64",)),
    }
    if set(arrays) != set(expected):
        raise ArtifactError(f"expected the tensors {sorted(expected)}, got {sorted(arrays)}")
    for name, (shape, types) in expected.items():
        array = arrays[name]
        if array.ndim != 1 or array.dtype.name not in types or (shape is not None and array.shape != shape):
            raise ArtifactError(
                f"tensor {name!r} must be {' or '.join(types)} {shape}, got {array.dtype} {array.shape}"
            )


def _ids(arrays: dict[str, np.ndarray], kind: str, seed: int) -> StoredIds:
    if kind in INTEGERS:
        return IntegerIds(arrays["ids"], kind)
    if "ids.hashes" in arrays:
        return HashedIds(arrays["ids.hashes"], kind, seed)
    buffer, offsets = arrays["ids.bytes"], arrays["ids.offsets"]
    if len(buffer) < WORD or offsets[0] != 0 or offsets[-1] != len(buffer) - WORD or buffer[-WORD:].any():
        raise ArtifactError("'ids.offsets' must run from 0 to the end of 'ids.bytes', where eight zeros follow")
    return TextIds(buffer, offsets, kind)


def _index(arrays: dict[str, np.ndarray], n: int) -> Index:
    directory, fingerprints, rows = (arrays[name] for name in INDEX_TENSORS)
    if directory[0] != 0 or directory[-1] != n:
        raise ArtifactError(f"'index.directory' must run from 0 to {n}")
    return Index(directory, fingerprints, rows)


def _runs(arrays: dict[str, np.ndarray], n: int) -> CountRuns:
    values, ends = (arrays[name] for name in COUNT_TENSORS)
    if not len(ends) or ends[0] < 1 or ends[-1] != n or (ends[1:] <= ends[:-1]).any():
        raise ArtifactError(f"'counts.ends' must rise to {n}")
    if values[-1] < 1 or (values[1:] >= values[:-1]).any():
        raise ArtifactError("'counts.values' must fall and be at least 1")
    return CountRuns(values, ends)


def _check_totals(runs: CountRuns, n: int, config: IdMapConfig) -> None:
    """ArtifactError unless the ids that were cut off can have the interactions that the map's own ids leave.

    Each of them occurs at least once, and no more often than the rarest id of the map.
    """
    lengths = np.diff(runs.ends, prepend=0)
    total = sum(count * length for count, length in zip(runs.values.tolist(), lengths.tolist(), strict=True))
    ids, rest = config.distinct - n, config.interactions - total
    if ids < 0 or not ids <= rest <= ids * int(runs.values[-1]):
        raise ArtifactError(
            f"config 'interactions' and 'distinct' are {config.interactions} and {config.distinct}, which do not fit "
            f"'counts': {n} ids with {total} interactions"
        )
