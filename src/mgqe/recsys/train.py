"""One run from a data set to files: three phases of training, frozen tables, figures of what ships.

Phase 1 trains full tables (or whatever the embedding is, if it is not one that compresses a full table) until
validation stops improving; phase 2 goes on while the learning rate falls to zero. Every method has these two. Phase 3,
for the embeddings that are trained through their codes, starts the codebooks on the rows and trains on, the learning
rate falling to zero again. Each phase goes back to its best epoch on validation. The tables are then frozen, saved,
loaded again, and it is the loaded ones that are judged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mgqe.recsys.checkpoint import LAST, locked, read_json, write_atomic, write_json
from mgqe.recsys.config import TrainConfig, warm_up_key
from mgqe.recsys.datasets import load_data
from mgqe.recsys.embeddings import FrozenEmbedding, build
from mgqe.recsys.interactions import Columns, Interactions
from mgqe.recsys.loop import (
    OnEpoch,
    PhaseResult,
    carry_optimizer,
    make_optimizer,
    optimizer_names,
    run_phase,
)
from mgqe.recsys.models import GMF
from mgqe.recsys.provenance import commit, machine, versions
from mgqe.recsys.ranking import RankingTask
from mgqe.recsys.seeds import derive_seed

CONFIG, DATA, METRICS, MODEL = "config.json", "data.json", "metrics.json", "model.safetensors"
TABLES = {"user": "user.mgqe.safetensors", "item": "item.mgqe.safetensors"}


@dataclass(frozen=True)
class RunData:
    """The data of a run; `fingerprint` is a digest of the interactions themselves."""

    interactions: Interactions
    fingerprint: str
    task: RankingTask

    @classmethod
    def load(cls, config: TrainConfig) -> RunData:
        columns = Columns(config.user_column, config.item_column, config.time_column)
        interactions = load_data(config.data, config.data_dir, config.format, columns)
        digest = hashlib.sha256()
        for rows in (interactions.users, interactions.items):
            digest.update(rows.numpy().tobytes())
        task = RankingTask.prepare(
            interactions, config.seed, config.negatives, config.eval_negatives, config.eval_users
        )
        return cls(interactions, digest.hexdigest(), task)


def train_run(
    config: TrainConfig,
    out: Path | str,
    overwrite: bool = False,
    warm_ups: Path | str | None = None,
    on_epoch: OnEpoch = lambda report: None,
) -> dict[str, Any]:
    """Run `config` in the folder `out` and return what OUT/metrics.json then holds.

    A finished `out` is returned as it is; an unfinished one goes on where it stopped. ValueError when `out` holds
    another configuration, unless `overwrite`, which starts afresh. warm_ups: a folder where runs share phases 1 and 2.
    """
    out = Path(out)
    if overwrite:
        _clear(out)
    if (out / CONFIG).is_file():
        _check_same(read_json(out / CONFIG), config, out)
        if (out / METRICS).is_file():
            metrics: dict[str, Any] = read_json(out / METRICS)
            return metrics
    elif out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no run: choose another --out")
    write_json(out / CONFIG, asdict(config))
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with locked(out):
            return _run(config, out, Path(warm_ups) if warm_ups else out, on_epoch)
    finally:
        torch.set_num_threads(threads)


def _run(config: TrainConfig, out: Path, warm_ups: Path, on_epoch: OnEpoch) -> dict[str, Any]:
    started = time.perf_counter()
    data = RunData.load(config)
    _check_same_data(out / DATA, data)
    model, first = warm_up(config, data, warm_ups, on_epoch)
    phases = {"full": first, "annealed": anneal(config, data, model, first, warm_ups, on_epoch)}
    if config.spec.method.kind == "quantised":
        model, phases["quantised"] = _quantise(config, data, model, phases["annealed"], out, on_epoch)
    elif config.spec.method.kind == "post":
        model = _on_rows_of(config, data, model)
    for name in ("user_ids", "item_ids"):
        write_atomic(out / f"{name}.parquet", getattr(data.interactions, name).save)
    sizes = _ship(model, out)
    quality = data.task.judge(load_model(out))
    split = data.task.split
    metrics = {
        "task": config.task,
        "model": config.model,
        "data": config.data,
        "embedding": config.label or str(config.spec),
        "seed": config.seed,
        "quality": quality,
        "embedding_bytes": sum(sizes.values()),
        "full_embedding_bytes": 4 * config.dim * (split.num_users + split.num_items),
        "embedding_bytes_by_table": sizes,
        "seconds_per_epoch": {name: phase.seconds_per_epoch for name, phase in phases.items()},
        "epochs": {name: len(phase.history) - 1 for name, phase in phases.items()},
        "best_epoch": {name: phase.best_epoch for name, phase in phases.items()},
        "seconds": time.perf_counter() - started,
        "data_summary": {
            "users": split.num_users,
            "items": split.num_items,
            "interactions": len(data.interactions),
            "repeats_left_out": data.interactions.num_repeats,
            "judged_users": data.task.users.numel(),
            "sha256": data.fingerprint,
        },
        "history": {name: phase.history for name, phase in phases.items()},
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "config": asdict(config),
    }
    write_json(out / METRICS, metrics)
    (out / DATA).unlink()
    for phase_folder in out.glob("phase-*"):
        shutil.rmtree(phase_folder, ignore_errors=True)
    return metrics


def build_tables(config: TrainConfig, data: RunData) -> GMF:
    """The model with the embeddings that `config` describes, started by its seed."""
    split, dim, spec = data.task.split, config.embedding_dim, config.spec
    tables = {}
    for table, size, counts in (
        ("user", split.num_users, split.user_counts),
        ("item", split.num_items, split.item_counts),
    ):
        torch.manual_seed(derive_seed(config.seed, "start", table))
        tables[table] = build(spec, table, size, dim, counts, config.init_std, config.seed)
    return GMF(tables["user"], tables["item"], dim, config.dropout)


def warm_up(config: TrainConfig, data: RunData, warm_ups: Path, on_epoch: OnEpoch) -> tuple[GMF, PhaseResult]:
    """Phase 1, or what an earlier run left of it in the folder `warm_ups`."""
    model = build_tables(config.warm_up(), data)
    directory = warm_ups / f"phase-full-{warm_up_key(config, data.fingerprint)}"
    with locked(directory):
        return model, run_phase(model, data.task, config.warm_up().phase("full"), directory, on_epoch)


def anneal(
    config: TrainConfig, data: RunData, model: GMF, first: PhaseResult, warm_ups: Path, on_epoch: OnEpoch
) -> PhaseResult:
    """Phase 2; like phase 1's, its result is shared in `warm_ups`."""
    phase = config.phase("annealed")
    optimizer = make_optimizer(model, phase)
    carry_optimizer(first.optimizer, optimizer_names(model), model, optimizer)
    directory = warm_ups / f"phase-annealed-{warm_up_key(config, data.fingerprint, annealed=True)}"
    with locked(directory):
        return run_phase(model, data.task, phase, directory, on_epoch, optimizer)


def _quantise(
    config: TrainConfig, data: RunData, full: GMF, before: PhaseResult, out: Path, on_epoch: OnEpoch
) -> tuple[GMF, PhaseResult]:
    """Phase 3, through the codes, from the full model's rows."""
    from mgqe import quantization_loss, start_quantizing

    model = _on_rows_of(config, data, full)
    phase = config.phase("quantised")
    optimizer = make_optimizer(model, phase)
    carry_optimizer(before.optimizer, optimizer_names(full), model, optimizer)
    directory = out / "phase-quantised"
    if not (directory / LAST).is_file():
        start_quantizing(model)
    return model, run_phase(model, data.task, phase, directory, on_epoch, optimizer, quantization_loss)


def _on_rows_of(config: TrainConfig, data: RunData, full: GMF) -> GMF:
    """The full model with the embeddings that `config` describes in place of its tables, on the same rows."""
    model = build_tables(config, data)
    missing = model.load_state_dict(full.state_dict(), strict=False)
    if missing.unexpected_keys:
        raise RuntimeError(f"{config.embedding} does not keep full rows: {missing.unexpected_keys} have no place")
    torch.manual_seed(derive_seed(config.seed, "codebooks"))
    return model


def _ship(model: GMF, out: Path) -> dict[str, int]:
    """Freeze and save both tables and the model's own parameters; bytes on disk of each table."""
    import mgqe

    model.eval()
    for table, name in TABLES.items():
        mgqe.save(getattr(model, table).freeze(), out / name)
    own: dict[str, Tensor] = {"weight": model.weight.detach(), "bias": model.bias.detach()}
    write_atomic(out / MODEL, lambda target: save_file(own, target))
    return {table: (out / name).stat().st_size for table, name in TABLES.items()}


def load_model(out: Path | str) -> GMF:
    """The model that a run saved, on its frozen tables, ready to score."""
    from safetensors.torch import load_file

    import mgqe

    out = Path(out)
    tables: dict[str, nn.Module] = {table: FrozenEmbedding(mgqe.load(out / name)) for table, name in TABLES.items()}
    own = load_file(out / MODEL)
    model = GMF(tables["user"], tables["item"], own["weight"].numel())
    model.load_state_dict(own)
    return model.eval()


def _check_same(found: dict[str, Any], config: TrainConfig, out: Path) -> None:
    wanted = json.loads(json.dumps(asdict(config)))
    idle = {"data_dir"}  # where the data lies decides nothing
    differing = sorted(name for name in {*found, *wanted} - idle if found.get(name) != wanted.get(name))
    if differing:
        listed = ", ".join(f"{name} {found.get(name)!r}, now {wanted.get(name)!r}" for name in differing)
        raise ValueError(f"{out} holds another run ({listed}): choose another --out, or start afresh with --overwrite")


def _check_same_data(path: Path, data: RunData) -> None:
    """Refuse to go on with an interrupted run on a file that has changed since."""
    if path.is_file() and read_json(path)["sha256"] != data.fingerprint:
        raise ValueError(f"the data have changed since the run in {path.parent} began: start afresh with --overwrite")
    write_json(path, {"sha256": data.fingerprint})


def _clear(out: Path) -> None:
    """Remove what a run leaves in `out`, and nothing else."""
    for name in (METRICS, CONFIG, DATA, MODEL, *TABLES.values(), "user_ids.parquet", "item_ids.parquet"):
        (out / name).unlink(missing_ok=True)
    for folder in out.glob("phase-*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
