"""A study's results file: one line of JSON per run, added when the run ends.

A line is added in one write and synced. A line that a kill or a full disk cut short is reported and left out when the
file is read, and its run counts as not done.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mgqe.files.atomic import write_text
from mgqe.files.regular import require_replaceable
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.memory import OF_PROCESS

Record = dict[str, Any]
WITHOUT_EFFECT = ("data_dir", "threads", "device", "label")  # settings that decide no result
# What a record has from a run's metrics unchanged.
FROM_METRICS = (
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
    """The settings that decide a run and are not at their defaults."""
    values = json.loads(json.dumps(asdict(config)))
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    return {name: value for name, value in values.items() if name not in WITHOUT_EFFECT and value != defaults[name]}


def run_key(pair: str, config: TrainConfig) -> str:
    """A run's name in the results file: the pair and all settings that are not at their defaults."""
    settings = {**settings_of(config), "embedding": str(config.spec), "seed": config.seed}
    return f"{pair} {json.dumps(settings, sort_keys=True)}"


def record_of(pair: str, config: TrainConfig, metrics: Record) -> Record:
    """A finished run's record.

    It has the learning curves of all phases where the embedding is trained as it is, and otherwise only that of the
    phase through the codes: the curves before are those of the pair's full table with the same seed.
    """
    phases = list(metrics["history"])
    if config.spec.method.kind != "trained":
        phases = [name for name in phases if name == "quantised"]
    return {
        **_head(pair, config, "done"),
        **{name: metrics[name] for name in FROM_METRICS},
        # An older version's run states none of these.
        "split": metrics.get("split"),
        "plan": metrics.get("plan"),
        "chosen": metrics.get("chosen"),
        "peak_memory_of": metrics.get("peak_memory_of", OF_PROCESS),
        "history": {name: _columns(metrics["history"][name]) for name in phases},
    }


def failure_of(pair: str, config: TrainConfig, reason: str) -> Record:
    """The record of a run that failed."""
    return {**_head(pair, config, "failed"), "reason": reason}


def _head(pair: str, config: TrainConfig, status: str) -> Record:
    return {
        "key": run_key(pair, config),
        "pair": pair,
        "embedding": config.name,
        "seed": config.seed,
        "status": status,
        "settings": settings_of(config),
    }


def read_results(path: Path) -> Results:
    """All records of a file, none where there is no file. The numbers of lines that cannot be read are in `damaged`."""
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
    """Add a line and sync it. It begins on a new line even where the last one was cut short."""
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
    """Replace the file by one with these records."""
    write_text(path, "".join(map(_line, records)))


def _line(record: Record) -> str:
    return json.dumps(_short(record), ensure_ascii=False, separators=(",", ":")) + "\n"


def _columns(history: list[dict[str, float]]) -> dict[str, list[float]]:
    """One record per epoch -> one list per figure; NaN where an epoch lacks it."""
    names = dict.fromkeys(name for record in history for name in record)
    return {name: [record.get(name, math.nan) for record in history] for name in names}


def _short(value: Any) -> Any:
    """Floats with 6 significant digits; NaN and infinity, which JSON does not have, as null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(item) for item in value]
    return value
