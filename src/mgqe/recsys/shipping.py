"""A run's files: frozen tables and the model's own parameters, written, loaded again, measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from mgqe.recsys.checkpoint import read_json
from mgqe.recsys.config import TrainConfig
from mgqe.recsys.embeddings import FrozenEmbedding
from mgqe.recsys.models import build_model
from mgqe.recsys.tasks import own_parameters
from mgqe.weights import load_weights, save_weights

CONFIG, MODEL, TABLE = "config.json", "model.safetensors", ".mgqe.safetensors"


def ship(model: nn.Module, tables: Mapping[str, Any], out: Path) -> dict[str, int]:
    """Freeze and save the tables at the paths `tables` and the model's other state; bytes on disk of each table."""
    import mgqe

    model.eval()
    for path in tables:
        table: Any = model.get_submodule(path)
        mgqe.save(table.freeze(), out / f"{path}{TABLE}")
    save_weights(own_parameters(model, tables), out / MODEL)
    return {path: (out / f"{path}{TABLE}").stat().st_size for path in tables}


def load_model(out: Path | str) -> Any:
    """The model that a run saved in `out`, on its frozen tables, ready to score."""
    import mgqe

    out = Path(out)
    config = TrainConfig(**read_json(out / CONFIG))
    files = sorted(out.glob(f"*{TABLE}"))
    tables: dict[str, nn.Module] = {file.name.removesuffix(TABLE): FrozenEmbedding(mgqe.load(file)) for file in files}
    model = build_model(config, tables)
    model.load_state_dict(load_weights(out / MODEL))
    return model.eval()


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
