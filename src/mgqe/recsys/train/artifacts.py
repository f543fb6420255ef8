"""A run's files: frozen tables and the model's own parameters, written, loaded again, measured."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from xxhash import xxh3_64_hexdigest

from mgqe.files.atomic import read_json
from mgqe.files.consistent import MixedFiles, read_consistent
from mgqe.files.container import ArtifactError, stored_checksum
from mgqe.files.locks import file_identity
from mgqe.files.regular import open_regular
from mgqe.files.weights import companion_files, companion_problems, read_weights, save_weights
from mgqe.recsys.models.embeddings import FrozenEmbedding
from mgqe.recsys.models.registry import build_model
from mgqe.recsys.tasks.base import state_without_tables
from mgqe.recsys.train.config import TrainConfig

CONFIG, MODEL, TABLE, IDS = "config.json", "model.safetensors", ".mgqe.safetensors", "_ids.parquet"


def ship(model: nn.Module, tables: Mapping[str, Any], out: Path) -> dict[str, int]:
    """Freeze and save the tables at the paths `tables` and the model's other state; bytes on disk of each table.

    The state is written last and records checksums of the tables, the configuration and the ids, so that a reader knows
    which files belong together.
    """
    import mgqe

    model.eval()
    checksums = {}
    modules: list[Any] = [model.get_submodule(path) for path in tables]
    width = max(module.embedding_dim for module in modules)
    for path in tables:
        table: Any = model.get_submodule(path)
        mgqe.save(table.freeze(), out / f"{path}{TABLE}")
        checksums[f"{path}{TABLE}"] = stored_checksum(out / f"{path}{TABLE}")
    save_weights(
        state_without_tables(model, tables),
        out / MODEL,
        {"files": checksums, "digests": _digests(out), "embedding_dim": width},
    )
    return {path: (out / f"{path}{TABLE}").stat().st_size for path in tables}


def load_run(out: Path | str) -> Any:
    """The model that a run saved in `out`, on its frozen tables, ready to score.

    A run that is saved again meanwhile is read again, so that the model is never a mixture of two runs.

    Raises:
        FileNotFoundError: no finished run is there. ArtifactError: (a ValueError) a file is damaged, missing or of
            another run; the message names it.
    """
    out = Path(out)
    return read_consistent(out, lambda: _load(out), lambda: _state(out))


def _load(out: Path) -> Any:
    if not (out / MODEL).is_file():
        raise FileNotFoundError(errno.ENOENT, "no finished run is here, or one that is being trained again", str(out))
    weights, about = read_weights(out / MODEL)
    _check_files(out, about.get("digests", {}))
    config = _config(out)
    tables = {path: FrozenEmbedding(table) for path, table in _tables(out, about).items()}
    width = about.get("embedding_dim", config.embedding_dim)  # a budget may have chosen a smaller one
    file = out / (MODEL if "embedding_dim" in about else CONFIG)
    if width not in [table.embedding_dim for table in tables.values()]:  # a wrong one may take all memory
        raise MixedFiles(f"{file} says embeddings of {width} dimensions, and no table there has as many")
    config = config.of_width(width)
    try:
        model = build_model(config, tables)
        model.load_state_dict(weights)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise MixedFiles(f"{out}: {CONFIG}, {MODEL} and the tables do not fit together: {error}") from error
    return model.eval()


def _config(out: Path) -> TrainConfig:
    path = out / CONFIG
    content = read_json(path)
    try:
        return TrainConfig(**content)
    except (AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: not the configuration of a run: {error}") from error


def _digests(out: Path) -> dict[str, str]:
    """Checksums of the files that have none of their own."""
    digests = {}
    for path in (out / CONFIG, *sorted(out.glob(f"*{IDS}"))):
        with open_regular(path) as file:
            digests[path.name] = xxh3_64_hexdigest(file.read())
    return digests


def _check_files(out: Path, expected: Mapping[str, str]) -> None:
    digests = _digests(out)
    for name, digest in expected.items():
        if name not in digests:
            raise MixedFiles(
                f"{out / name} is missing: {MODEL} names it. Copy the run's folder again, every file of it"
            )
        if digests[name] != digest:
            raise MixedFiles(f"{out / name}: not the file that {MODEL} was saved with. Copy the run's folder again")


def _tables(out: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The tables that belong to a run's other state; in a run without checksums, all tables of the folder."""
    import mgqe

    files = sorted(companion_files(out / MODEL, about) or out.glob(f"*{TABLE}"))
    for fault in companion_problems(out / MODEL, about):
        raise MixedFiles(fault)
    tables = {file.name.removesuffix(TABLE): mgqe.load(file) for file in files}
    for fault in companion_problems(out / MODEL, about):  # a table may have been replaced before it was read
        raise MixedFiles(fault)
    return tables


def _state(out: Path) -> dict[str, tuple[int, ...]]:
    """Identities of a run's files, which change when it is saved again; empty without a finished run."""
    state: dict[str, tuple[int, ...]] = {}
    for file in (out / CONFIG, out / MODEL, *out.glob(f"*{TABLE}")):
        with suppress(OSError):
            state[file.name] = file_identity(file)
    if MODEL not in state:
        return {}
    return state


def bytes_by_part(out: Path, tables: Iterable[str]) -> dict[str, dict[str, int]]:
    """Bytes of codes, centroids, tier map, ... in each table's file; `header` is the rest, header and checksums."""
    import mgqe

    sizes = {}
    for path in tables:
        file = out / f"{path}{TABLE}"
        by_part = mgqe.load(file).nbytes_by_part()
        sizes[path] = {**by_part, "header": file.stat().st_size - sum(by_part.values())}
    return sizes


def codebook_stats(out: Path, tables: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """One record per tier of each table with codebooks: how many centroids are in use, and how evenly."""
    import mgqe

    loaded = {path: mgqe.load(out / f"{path}{TABLE}") for path in tables}
    return {
        path: [{**asdict(stats), "usage": stats.usage} for stats in table.codebook_stats()]
        for path, table in loaded.items()
        if isinstance(table, mgqe.CompactTable)
    }
