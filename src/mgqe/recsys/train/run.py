"""One run from a data set to files: three phases of training, frozen tables, figures of what ships.

Phase 1 trains full tables (or whatever the embedding is, if it is not one that compresses a full table) until
validation stops improving; phase 2 goes on while the learning rate falls to zero. Every method has these two. LightGCN
propagates rows in these, and is matrix factorisation on the propagated rows from then on. Phase 3, for the embeddings
that are trained through their codes, starts the codebooks on the rows and trains on, the learning rate falling to zero
again. Each phase goes back to its best epoch on validation. The tables are then frozen, saved, loaded again, and it is
the loaded ones that are judged.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgqe.baselines import AdditiveEmbedding
from mgqe.codec.planning.mixed import least_nbytes
from mgqe.files.atomic import fill_file, read_json, write_json
from mgqe.files.destination import check_folder
from mgqe.files.locks import FOLDER_LOCK, folder_lock
from mgqe.recsys.data.seeds import derive_seed
from mgqe.recsys.models.embeddings import Spec, build, cut_to_tiers
from mgqe.recsys.models.lightgcn import LightGCN, normalised_adjacency
from mgqe.recsys.models.registry import build_model
from mgqe.recsys.tasks.account import data_note, split_note
from mgqe.recsys.tasks.base import TableInfo
from mgqe.recsys.tasks.ranking import RankingTask
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.tasks.sequential import SequentialTask
from mgqe.recsys.train.artifacts import CONFIG, MODEL, TABLE, bytes_by_part, codebook_stats, load_run, ship
from mgqe.recsys.train.budget import (
    best_of,
    budget_for,
    check_budget,
    judged_by,
    planned_layers,
    set_metrics,
    spend_budget,
)
from mgqe.recsys.train.checkpoint import LAST, load_state
from mgqe.recsys.train.collections import remove_collections, write_collections
from mgqe.recsys.train.config import TrainConfig, warm_up_key
from mgqe.recsys.train.device import check_device, check_room, parse_device
from mgqe.recsys.train.loop import (
    PLANNING,
    EpochReport,
    OnEpoch,
    PhaseResult,
    carry_optimizer,
    make_optimizer,
    optimizer_names,
    run_phase,
)
from mgqe.recsys.train.memory import peak_memory, start_peak
from mgqe.recsys.train.provenance import commit, machine, versions
from mgqe.recsys.train.settle import settle

DATA, METRICS, PLAN = "data.json", "metrics.json", "plan.json"
NARROW_BELOW = 0.08  # of the full tables: budgets for which rows of half the dimensions are tried, too


def train_run(
    config: TrainConfig,
    out: Path | str,
    overwrite: bool = False,
    warm_ups: Path | str | None = None,
    on_epoch: OnEpoch = lambda report: None,
    data: Callable[[], RunData] | None = None,
    on_note: Callable[[str], None] = warnings.warn,
    on_data: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Run `config` in the folder `out` and return what OUT/metrics.json then holds.

    A finished run is not trained again; an unfinished one goes on where it stopped. ValueError when `out` holds another
    configuration, unless `overwrite`, which trains from the beginning.

    warm_ups: a folder where runs share phases 1 and 2.
    data: returns the data of `config`, for runs that share them; by default they are loaded.
    on_note: is called, before training, with what is cut to fit a small table. on_data: with what the data hold, what
        of them was left out, and what a baseline's budget is spent on.

    Mistakes that can be recognised are refused before training, and before anything is written or, with `overwrite`,
    removed, so that the same folder takes the corrected configuration.
    """
    out = Path(out)
    if check_place(config, out, overwrite) and (out / METRICS).is_file():
        metrics: dict[str, Any] = read_json(out / METRICS)
        return metrics
    peak_of, threads = start_peak(), torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        ready = RunData.load(config) if data is None else data()
        for note in data_notes(config, ready):
            on_data(note)
        for note in check_run(config, ready):
            on_note(note)
        for note in choices(config, ready):
            on_data(note)
        if overwrite:
            _clear(out)
        with _refused_leaves_nothing(out):
            write_json(out / CONFIG, asdict(config))
            with folder_lock(out):
                return _run(config, out, Path(warm_ups) if warm_ups else out, on_epoch, ready, peak_of)
    finally:
        torch.set_num_threads(threads)


def data_notes(config: TrainConfig, data: RunData) -> list[str]:
    """What the data of a run hold, what of them was left out, and how they were divided, in words."""
    return [f"{config.data}: {note(data.task.summary, data.task.split_summary)}" for note in (data_note, split_note)]


def check_run(config: TrainConfig, data: RunData) -> list[str]:
    """Build every table that the run will have, full and compact; returns what is cut to fit small tables, in words.

    ValueError names a table that the description does not fit, or a setting of the model that cannot be;
    ImpossibleBudgetError, which is one, a budget that nothing fits.
    """
    device = check_device(config.device)
    config = settle(config, data.task)
    full, model = build_tables(config.warm_up(), data, warm_up=True), build_tables(config, data)
    check_room(device, (full, model), data.task)
    if config.spec.shared_budget is not None and planned_layers(model, data.task):
        check_budget(full, model, data.task, config.spec.shared_budget)
    return list(cuts(config, data).values())


def choices(config: TrainConfig, data: RunData) -> list[str]:
    """What the budget of a baseline is spent on, in words; nothing for other embeddings."""
    settled = settle(config, data.task)
    return [] if settled is config else [f"the budget is spent on {settled.spec}"]


def cuts(config: TrainConfig, data: RunData) -> dict[str, str]:
    """Path of each table that is cut to fit -> what is cut, in words; of a settled configuration."""
    notes = {path: fitted(config, info)[1] for path, info in data.task.tables.items()}
    return {path: note for path, note in notes.items() if note}


def check_place(config: TrainConfig, out: Path, overwrite: bool = False) -> bool:
    """Whether `out` holds this run, which then goes on; ValueError when it holds something else."""
    check_folder(out)
    if (out / CONFIG).is_file():
        if not overwrite:
            _check_same(read_json(out / CONFIG), config, out)
        return not overwrite
    if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no run: choose another --out")
    return False


@contextlib.contextmanager
def _refused_leaves_nothing(out: Path) -> Iterator[None]:
    """Remove what a new run has written in `out`, and folders made for it, if it fails before its first epoch."""
    new_folders = [folder for folder in (out, *out.parents) if not folder.exists()]
    is_new = not (out / CONFIG).is_file()
    try:
        yield
    except Exception:
        if is_new and not _has_trained(out):
            _clear(out)
            (out / FOLDER_LOCK).unlink(missing_ok=True)
            for folder in new_folders:
                with contextlib.suppress(OSError):  # it is not empty by now
                    folder.rmdir()
        raise


def _has_trained(out: Path) -> bool:
    """Whether a phase in `out` has trained an epoch."""
    with contextlib.suppress(ValueError):  # damaged: there was something
        states = (load_state(path) for path in out.glob(f"phase-*/{LAST}"))
        return any(state is not None and state["epoch"] > 0 for state in states)
    return True


def _run(
    config: TrainConfig, out: Path, warm_ups: Path, on_epoch: OnEpoch, data: RunData, peak_of: str
) -> dict[str, Any]:
    started = time.perf_counter()
    task = data.task
    written, config = config, settle(config, task)
    _check_same_data(out / DATA, data)
    if config.spec.method.kind == "quantised":
        model, phases = _quantised(config, data, warm_ups, out, on_epoch)
    else:
        model, phases = full_model(config, data, warm_ups, on_epoch)
        if any(spec_of(config, info).method.kind != "trained" for info in task.tables.values()):
            model = _on_rows_of(config, data, model)
    for field, ids in task.ids.items():
        fill_file(out / f"{field}_ids.parquet", ids.save)
    sizes = ship(model, task.tables, out)
    write_collections(model, task.tables, task.ids, out)
    metrics = _metrics(config, data, out, phases, sizes, peak_of)
    metrics.update(embedding=written.name, config=asdict(written))
    metrics["chosen"] = None if config is written else str(config.spec)
    metrics["seconds"] = time.perf_counter() - started
    write_json(out / METRICS, metrics)
    (out / DATA).unlink()
    for phase_folder in out.glob("phase-*"):
        shutil.rmtree(phase_folder, ignore_errors=True)
    return metrics


def _metrics(
    config: TrainConfig, data: RunData, out: Path, phases: dict[str, PhaseResult], sizes: dict[str, int], peak_of: str
) -> dict[str, Any]:
    """What OUT/metrics.json holds. sizes: bytes of each table's file. peak_of: what the peak of memory is of."""
    task = data.task
    return {
        "task": config.task,
        "model": config.model,
        "data": config.data,
        "embedding": config.name,
        "cut": cuts(config, data),
        "plan": read_json(out / PLAN) if (out / PLAN).is_file() else None,
        "seed": config.seed,
        "metric": task.metric,
        "quality": task.evaluate(load_run(out)),
        "embedding_bytes": sum(sizes.values()),
        "full_embedding_bytes": sum(4 * info.num_embeddings * info.dim_of(config.dim) for info in task.tables.values()),
        "embedding_bytes_by_table": sizes,
        "embedding_bytes_by_part": bytes_by_part(out, task.tables),
        "codebooks": codebook_stats(out, task.tables),
        "peak_memory_bytes": peak_memory(),
        "peak_memory_of": peak_of,
        "seconds_per_epoch": {name: phase.seconds_per_epoch for name, phase in phases.items()},
        "epochs": {name: len(phase.history) - 1 for name, phase in phases.items()},
        "best_epoch": {name: phase.best_epoch for name, phase in phases.items()},
        "split": task.split_summary,
        "data_summary": {**task.summary, "sha256": data.fingerprint},
        "history": {name: phase.history for name, phase in phases.items()},
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "config": asdict(config),
    }


def spec_of(config: TrainConfig, info: TableInfo) -> Spec:
    """The description of one table: the run's, or the table's fixed one unless the run has plain full tables.

    A budget for all tables is spent on tables with a fixed one, too, where codes may save half of their bytes.
    """
    plain = config.spec.name == "full" and config.embedding_dim == config.dim
    if info.fixed is None or plain:
        return config.spec
    size = (info.num_embeddings, info.dim_of(config.embedding_dim))
    if config.spec.shared_budget is not None and 4 * size[0] * size[1] > 2 * least_nbytes(*size, None):
        return config.spec
    return Spec.parse(info.fixed)


def fitted(config: TrainConfig, info: TableInfo) -> tuple[Spec, str]:
    """The description of one table with no more centroids than it can use, and what was cut, in words."""
    spec = spec_of(config, info)
    return cut_to_tiers(spec, info.field, info.num_embeddings, info.dim_of(config.embedding_dim), info.counts)


def build_tables(config: TrainConfig, data: RunData, warm_up: bool = False) -> Any:
    """The model with the embeddings that `config` describes, started by its seed.

    warm_up: with what they are trained as first (Spec.warm_up).
    """
    config = settle(config, data.task)
    config.spec.check_fields({info.field for info in data.task.tables.values()})
    tables = {}
    for path, info in data.task.tables.items():
        spec, _ = fitted(config, info)
        torch.manual_seed(derive_seed(config.seed, "start", path))
        tables[path] = build(
            spec.warm_up() if warm_up else spec,
            info.field,
            info.num_embeddings,
            info.dim_of(config.embedding_dim),
            info.counts,
            config.init_std if info.std is None else info.std,
            config.seed,
            info.pairs,
        )
    torch.manual_seed(derive_seed(config.seed, "start", "model"))
    return build_model(config, tables)


def warm_up(config: TrainConfig, data: RunData, warm_ups: Path, on_epoch: OnEpoch) -> tuple[Any, PhaseResult]:
    """Phase 1, or what an earlier run left of it in the folder `warm_ups`."""
    model = build_tables(config.warm_up(), data, warm_up=True)
    if config.model == "lightgcn":
        model = LightGCN(model, _adjacency(data), config.graph_layers)
    directory = warm_ups / f"phase-full-{warm_up_key(config, data.fingerprint)}"
    with folder_lock(directory):
        return model, run_phase(
            model,
            data.task,
            config.warm_up().phase("full", data.task.selects_by),
            directory,
            on_epoch,
            device=parse_device(config.device),
        )


def anneal(
    config: TrainConfig, data: RunData, model: nn.Module, first: PhaseResult, warm_ups: Path, on_epoch: OnEpoch
) -> PhaseResult:
    """Phase 2; like phase 1's, its result is shared in `warm_ups`."""
    phase = config.phase("annealed", data.task.selects_by)
    optimizer = make_optimizer(model, phase)
    carry_optimizer(first.optimizer, optimizer_names(model), model, optimizer)
    directory = warm_ups / f"phase-annealed-{warm_up_key(config, data.fingerprint, annealed=True)}"
    with folder_lock(directory):
        return run_phase(model, data.task, phase, directory, on_epoch, optimizer, device=parse_device(config.device))


def full_model(
    config: TrainConfig, data: RunData, warm_ups: Path, on_epoch: OnEpoch
) -> tuple[Any, dict[str, PhaseResult]]:
    """Phases 1 and 2, and for LightGCN the model that is served."""
    model, first = warm_up(config, data, warm_ups, on_epoch)
    annealed = anneal(config, data, model, first, warm_ups, on_epoch)
    if isinstance(model, LightGCN):
        model = model.served()
        annealed = replace(annealed, optimizer={"state": {}})  # of the rows before they were propagated
    return model, {"full": first, "annealed": annealed}


def _adjacency(data: RunData) -> Tensor:
    """The graph of the training interactions."""
    split = data.task.split
    return normalised_adjacency(split.train_users, split.train_items, split.num_users, split.num_items)


@dataclass(frozen=True, eq=False)
class Start:
    """What the third phase starts from: the model with full tables, and that with codebooks on the same rows."""

    config: TrainConfig
    full: Any
    model: Any
    phases: dict[str, PhaseResult]

    @classmethod
    def of(cls, config: TrainConfig, data: RunData, warm_ups: Path, on_epoch: OnEpoch) -> Start:
        """After phases 1 and 2; the codebooks have not started."""
        full, phases = full_model(config, data, warm_ups, on_epoch)
        return cls(config, full, _on_rows_of(config, data, full), phases)


def _quantised(
    config: TrainConfig, data: RunData, warm_ups: Path, out: Path, on_epoch: OnEpoch
) -> tuple[Any, dict[str, PhaseResult]]:
    """All three phases; the third is through the codes, from the full model's rows."""
    from mgqe import quantization_loss, start_quantizing

    directory = out / "phase-quantised"
    if (directory / LAST).is_file():  # its checkpoints hold the codebooks
        width = read_json(out / PLAN)["embedding_dim"] if (out / PLAN).is_file() else config.embedding_dim
        start = Start.of(config.of_width(width), data, warm_ups, on_epoch)
    else:
        start = Start.of(config, data, warm_ups, on_epoch)
        budget, layers = config.spec.shared_budget, planned_layers(start.model, data.task)
        if budget is not None and layers:
            nbytes = budget_for(start.full, layers, data.task, budget)
            start = _planned(start, nbytes, data, warm_ups, out, on_epoch)
        elif layers:
            set_metrics(start.full, start.model, data.task, config.batch_size)
        start_quantizing(start.model)
        for path in data.task.tables:
            if isinstance(layer := start.model.get_submodule(path), AdditiveEmbedding):
                layer.start_quantizing()
    config = start.config.with_third_phase(bool(planned_layers(start.model, data.task)))
    phase, task = config.phase("quantised", data.task.selects_by), data.task
    if isinstance(task, RankingTask | SequentialTask):
        task = task.with_loss(config.quantised_loss, config.quantised_negatives)
    optimizer = make_optimizer(start.model, phase)
    carry_optimizer(start.phases["annealed"].optimizer, optimizer_names(start.full), start.model, optimizer)
    third = run_phase(
        start.model, task, phase, directory, on_epoch, optimizer, quantization_loss, parse_device(config.device)
    )
    return start.model, {**start.phases, "quantised": third}


def _planned(start: Start, budget: int, data: RunData, warm_ups: Path, out: Path, on_epoch: OnEpoch) -> Start:
    """The start, or one with rows of half the dimensions if validation prefers it, with so many bytes spent."""
    starts, narrow = [start], start.config.narrow()
    full_nbytes = sum(4 * layer.raw_weight.numel() for layer in planned_layers(start.model, data.task).values())
    if narrow is not None and budget < NARROW_BELOW * full_nbytes:
        starts.append(Start.of(narrow, data, warm_ups, on_epoch))
    judges_by = judged_by(data.task, start.config.third_loss(planned=True))
    spent = []
    for number, each in enumerate(starts, start=1):

        def show(judged: int, plans: int, number: int = number) -> None:
            on_epoch(EpochReport(PLANNING, number, len(starts), judged, plans))

        spent.append(
            spend_budget(each.full, each.model, data.task, budget, each.config.batch_size, judges_by, on_plan=show)
        )
    best = best_of([each.validation for each in spent], judges_by)
    chosen = starts[best]
    layers = planned_layers(chosen.model, data.task)
    plan = {
        "embedding_dim": chosen.config.embedding_dim,
        "candidate": spent[best].candidate,
        "prefer": {path: layer.planner.prefer for path, layer in layers.items() if layer.planner is not None},
        "prefer_tail": {path: layer.planner.prefer_tail for path, layer in layers.items() if layer.planner is not None},
        "lookup_shares": {path: round(share, 3) for path, share in spent[best].lookup_shares.items()},
        "head_and_tail": {path: [round(each, 4) for each in lost] for path, lost in spent[best].head_and_tail.items()},
    }
    write_json(out / PLAN, plan)
    return chosen


def _on_rows_of(config: TrainConfig, data: RunData, full: nn.Module) -> Any:
    """The full model with the embeddings that `config` describes in place of its tables, on the same rows."""
    model = build_tables(config, data)
    missing = model.load_state_dict(full.state_dict(), strict=False)
    if missing.unexpected_keys:
        raise RuntimeError(f"{config.embedding} does not keep full rows: {missing.unexpected_keys} do not exist there")
    torch.manual_seed(derive_seed(config.seed, "codebooks"))
    return model


def _check_same(saved: dict[str, Any], config: TrainConfig, out: Path) -> None:
    wanted = json.loads(json.dumps(asdict(config)))
    saved = {**asdict(TrainConfig()), **saved}  # an older version's run lacks settings that came later
    without_effect = {"data_dir"}
    differing = sorted(name for name in {*saved, *wanted} - without_effect if saved.get(name) != wanted.get(name))
    if differing:
        listed = ", ".join(f"{name} {saved.get(name)!r}, now {wanted.get(name)!r}" for name in differing)
        raise ValueError(
            f"{out} holds another run ({listed}): choose another --out, or train from the beginning with --overwrite"
        )


def _check_same_data(path: Path, data: RunData) -> None:
    """Refuse to go on with an interrupted run on a file that has changed since."""
    if path.is_file() and read_json(path)["sha256"] != data.fingerprint:
        raise ValueError(
            f"the data have changed since the run in {path.parent} began: train from the beginning with --overwrite"
        )
    write_json(path, {"sha256": data.fingerprint})


def _clear(out: Path) -> None:
    """Remove a run's files from `out`, and nothing else.

    The configuration goes last, since it marks the folder as a run's.
    """
    if not (out / CONFIG).is_file():
        return
    for path in (
        *(out / name for name in (METRICS, DATA, MODEL, PLAN)),
        *out.glob(f"*{TABLE}"),
        *out.glob("*_ids.parquet"),
    ):
        path.unlink(missing_ok=True)
    remove_collections(out)
    for folder in out.glob("phase-*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    (out / CONFIG).unlink()
