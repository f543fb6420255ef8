"""A run's files: frozen tables and the model's own parameters, written, loaded again, measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from xxhash import xxh3_64_hexdigest

from mgqe.container import ArtifactError, stored_checksum
from mgqe.recsys.checkpoint import read_json
from mgqe.recsys.config import TrainConfig
from mgqe.recsys.embeddings import FrozenEmbedding
from mgqe.recsys.models import build_model
from mgqe.recsys.tasks import own_parameters
from mgqe.weights import read_weights, save_weights
from mgqe.whole_files import open_regular

CONFIG, MODEL, TABLE, IDS = "config.json", "model.safetensors", ".mgqe.safetensors", "_ids.parquet"


def ship(model: nn.Module, tables: Mapping[str, Any], out: Path) -> dict[str, int]:
    """Freeze and save the tables at the paths `tables` and the model's other state; bytes on disk of each table."""
    import mgqe

    model.eval()
    for path in tables:
        table: Any = model.get_submodule(path)
        mgqe.save(table.freeze(), out / f"{path}{TABLE}")
    save_weights(own_parameters(model, tables), out / MODEL, _files_of_run(out, tables))
    return {path: (out / f"{path}{TABLE}").stat().st_size for path in tables}


def load_model(out: Path | str) -> Any:
    """The model that a run saved in `out`, on its frozen tables, ready to score.

    Raises ArtifactError (a ValueError), which names the file, where one is damaged, missing or not the run's own, and
    OSError where one cannot be read.
    """
    import mgqe

    out = Path(out)
    files_of_run, own = read_weights(out / MODEL)
    config = _read_config(out)
    files = {file.name.removesuffix(TABLE): file for file in sorted(out.glob(f"*{TABLE}"))}
    _check_files(out, files_of_run, files)
    tables: dict[str, nn.Module] = {path: FrozenEmbedding(mgqe.load(file)) for path, file in files.items()}
    try:
        model = build_model(config, tables)
        model.load_state_dict(own)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(f"{out}: {CONFIG}, {MODEL} and the tables do not fit together: {error}") from error
    return model.eval()


def _read_config(out: Path) -> TrainConfig:
    path = out / CONFIG
    content = read_json(path)
    try:
        return TrainConfig(**content)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: not the configuration of a run: {error}") from error


def _files_of_run(out: Path, tables: Iterable[str]) -> dict[str, Any]:
    """What the model's file says of those beside it: checksums, by name."""
    others = [out / CONFIG, *sorted(out.glob(f"*{IDS}"))]
    return {
        **{path.name: _digest(path) for path in others},
        **{f"{path}{TABLE}": stored_checksum(out / f"{path}{TABLE}") for path in tables},
    }


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return xxh3_64_hexdigest(file.read())


def _check_files(out: Path, expected: dict[str, Any], tables: Iterable[str]) -> None:
    """Raise ArtifactError for the first file that is not the one that the run wrote.

    expected: what :func:`_files_of_run` gave; nothing in a run of an older version.
    """
    if not expected:
        return
    found = _files_of_run(out, tables)
    for name, checksum in expected.items():
        if found.get(name) != checksum:
            what = "is not the file that the run wrote" if name in found else "is missing"
            raise ArtifactError(f"{out / name} {what}: copy all files of the run again")


def bytes_by_part(out: Path, tables: Iterable[str]) -> dict[str, dict[str, int]]:
    """Of each table's file: codes, centroids, tier map, ...; `header` is the rest of it, header and checksums."""
    import mgqe

    found = {}
    for path in tables:
        file = out / f"{path}{TABLE}"
        held = mgqe.load(file).nbytes_by_part()
        found[path] = {**held, "header": file.stat().st_size - sum(held.values())}
    return found


def codebook_stats(out: Path, tables: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Of each table that has codebooks, a record a tier: how many centroids are in use, and how evenly."""
    import mgqe

    loaded = {path: mgqe.load(out / f"{path}{TABLE}") for path in tables}
    return {
        path: [{**asdict(stats), "usage": stats.usage} for stats in table.codebook_stats()]
        for path, table in loaded.items()
        if isinstance(table, mgqe.CompactTable)
    }
