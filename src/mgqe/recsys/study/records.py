"""A study's results file: JSON lines, one a run, added as runs end; whatever was written stays readable.

A line is added in one write and synced. A line that a kill or a full disk cut short is left out when reading, with a
word about it, and its run is not taken for done.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mgqe.files.atomic import require_replaceable, write_text
from mgqe.recsys.train.config import TrainConfig

Record = dict[str, Any]
IDLE = ("data_dir", "threads", "label")  # settings that decide no result
# What a record takes over from a run's metrics as it is.
TAKEN = (
    "metric", "quality", "embedding_bytes", "full_embedding_bytes", "embedding_bytes_by_table",
    "embedding_bytes_by_part", "codebooks", "peak_memory_bytes", "seconds", "seconds_per_epoch", "epochs",
    "best_epoch", "data_summary", "commit", "versions", "machine",
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """Records in the order in which their runs ended. damaged: numbers of lines that cannot be read, from 1."""

    records: list[Record]
    damaged: tuple[int, ...] = ()

    def done(self) -> dict[str, Record]:
        """Key of each run (`run_key`) -> its last record."""
        return {record["key"]: record for record in self.records}


def settings_of(config: TrainConfig) -> Record:
    """The settings that decide a run, less those at their defaults."""
    values = json.loads(json.dumps(asdict(config)))
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    return {name: value for name, value in values.items() if name not in IDLE and value != defaults[name]}


def run_key(pair: str, config: TrainConfig) -> str:
    """A run's name in the results file: the pair and all settings that are not at their defaults."""
    settings = {**settings_of(config), "embedding": str(config.spec), "seed": config.seed}
    return f"{pair} {json.dumps(settings, sort_keys=True)}"


def record_of(pair: str, config: TrainConfig, metrics: Record) -> Record:
    """A finished run's record.

    Learning curves are kept of the run's last phase, and of all phases where the embedding is trained as it is:
    the phases before are those of the pair's full table with the same seed.
    """
    kept = list(metrics["history"])
    if config.spec.method.kind != "trained":
        kept = [name for name in kept if name == "quantised"]
    return {
        **_head(pair, config, "done"),
        **{name: metrics[name] for name in TAKEN},
        "split": metrics.get("split"),  # an older version's run does not state it
        "history": {name: _columns(metrics["history"][name]) for name in kept},
    }


def failure_of(pair: str, config: TrainConfig, reason: str) -> Record:
    """The record of a run that failed."""
    return {**_head(pair, config, "failed"), "reason": reason}


def _head(pair: str, config: TrainConfig, status: str) -> Record:
    return {
        "key": run_key(pair, config),
        "pair": pair,
        "embedding": config.label or str(config.spec),
        "seed": config.seed,
        "status": status,
        "settings": settings_of(config),
    }


def read_results(path: Path) -> Results:
    """All records of a file, none where there is no file. Lines that are not whole are named in `damaged`."""
    if not path.is_file():
        return Results([])
    records, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            damaged.append(number)
            continue
        if isinstance(record, dict) and isinstance(record.get("key"), str) and "status" in record:
            records.append(record)
        else:
            damaged.append(number)
    return Results(records, tuple(damaged))


def append_result(path: Path, record: Record) -> None:
    """Add a line and sync it; after a line that was cut short, on a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = _line(record).encode()
    require_replaceable(path)
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def write_results(path: Path, records: Iterable[Record]) -> None:
    """All records as a new file, in place of the old one at once."""
    text = "".join(map(_line, records))

    write_text(path, text)


def _line(record: Record) -> str:
    return json.dumps(_short(record), ensure_ascii=False, separators=(",", ":")) + "\n"


def _columns(history: list[dict[str, float]]) -> dict[str, list[float]]:
    """Epochs' records -> a list a figure; NaN where an epoch lacks it."""
    names = dict.fromkeys(name for record in history for name in record)
    return {name: [record.get(name, math.nan) for record in history] for name in names}


def _short(value: Any) -> Any:
    """Floats to 6 significant digits, NaN and infinity as null, which JSON has no word for."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(item) for item in value]
    return value
