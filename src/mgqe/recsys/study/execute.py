"""Runs, several at a time, each in a process and a folder of its own; the end of each, good or bad, is an event."""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

from mgqe.recsys.models.methods import own_modules
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.budget import ImpossibleBudgetError
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.loop import EpochReport, OnEpoch
from mgqe.recsys.train.run import check_place, check_run, choices, data_notes, train_run

WARM_UPS = "warm-ups"


@dataclass(frozen=True)
class Run:
    """One configuration and the folder, below the study's, that it runs in."""

    config: TrainConfig
    folder: str

    @property
    def name(self) -> str:
        return f"{self.config.name}, seed {self.config.seed}"


@dataclass(frozen=True)
class Event:
    """An epoch's report of a run, or its end: its metrics, or why it failed."""

    run: Run
    report: EpochReport | None = None
    metrics: dict[str, Any] | None = None
    error: str | None = None


OnEvent = Callable[[Event], None]


def check_folders(runs: Sequence[Run], out: Path, overwrite: bool) -> None:
    """ValueError when a run's folder holds another run, or something else, before any run is trained."""
    for run in runs:
        check_place(run.config, out / run.folder, overwrite)


def check_configs(configs: Sequence[TrainConfig], records_impossible: bool = False) -> list[str]:
    """Load each data set and build each embedding once, so that what cannot work is said before hours are spent.

    Returns what the data hold, and what is chosen or cut to fit, in words, each note once.
    ValueError names a file, or an embedding that does not fit.

    records_impossible: budgets that nothing fits are notes, too, since their runs are to fail and to be recorded.
    """
    notes: dict[str, None] = {}
    by_data: dict[TrainConfig, list[TrainConfig]] = {}
    for config in configs:
        by_data.setdefault(config.of_checks(), []).append(config)
    for with_same_data in by_data.values():
        data = RunData.load(with_same_data[0])
        notes.update((note, None) for note in data_notes(with_same_data[0], data))
        for config in with_same_data:
            try:
                found = [*check_run(config, data), *choices(config, data)]
            except ValueError as error:
                if records_impossible and isinstance(error, ImpossibleBudgetError):
                    notes[f"{config.model} on {config.data}, to be recorded as failed: {error}"] = None
                    continue
                raise ValueError(f"{config.name} with {config.model} on {config.data}: {error}") from error
            where = f" with {config.model} on {config.data}" if len(by_data) > 1 else ""
            notes.update((f"{config.name}{where}: {note}", None) for note in found)
    return list(notes)


def execute(runs: Sequence[Run], out: Path, jobs: int, overwrite: bool, on_event: OnEvent) -> Iterator[Event]:
    """Yield each run's end as it comes, `jobs` runs at a time in folders below `out`; `on_event` gets the epochs.

    A run that fails ends with its reason and does not stop the others. ValueError when a process is killed.
    """
    if min(jobs, len(runs)) <= 1:
        for run in runs:
            yield _attempt(run, out, overwrite, _tell(run, on_event))
        return
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(_end_with_parent)
    with manager:
        reports = manager.Queue()
        listener = threading.Thread(target=_listen, args=(reports, runs, on_event), daemon=True)
        listener.start()
        modules = own_modules(run.config.embedding for run in runs)
        with ProcessPoolExecutor(jobs, context, _start_worker, (modules,)) as pool:
            try:
                work = [pool.submit(_work, run, out, overwrite, reports, at) for at, run in enumerate(runs)]
                for future in as_completed(work):
                    yield future.result()
            except BrokenProcessPool as error:
                raise ValueError(
                    "a run's process was killed, perhaps because memory ran out: lower --jobs; finished runs are kept"
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in multiprocessing.active_children():
                    child.terminate()
                raise
        reports.put(None)
        listener.join()


def _attempt(run: Run, out: Path, overwrite: bool, on_epoch: OnEpoch) -> Event:
    try:
        data = functools.partial(_data, run.config.of_data())
        folder, warm_ups = out / run.folder, out / WARM_UPS
        metrics = train_run(run.config, folder, overwrite, warm_ups, on_epoch, data, on_note=lambda note: None)
        return Event(run, metrics=metrics)
    except (ValueError, OSError) as error:
        return Event(run, error=str(error))
    except Exception as error:  # whatever it is, it must not end hours of other runs
        return Event(run, error=f"{type(error).__name__}: {error}")


@functools.lru_cache(maxsize=1)
def _data(config: TrainConfig) -> RunData:
    """The last run's data are kept in memory, since runs of one data set and seed often follow each other."""
    return RunData.load(config)


def _tell(run: Run, on_event: OnEvent) -> OnEpoch:
    return lambda report: on_event(Event(run, report))


def _start_worker(modules: tuple[str, ...]) -> None:
    """Let this worker end at once when it is interrupted: its checkpoint is whole, and a traceback says nothing.

    modules: of the embeddings' classes that are not the library's.
    """
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _end_with_parent()


def _end_with_parent() -> None:
    """Let this process end when the one that started it has ended, since its results would then be lost."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _work(run: Run, out: Path, overwrite: bool, reports: Any, at: int) -> Event:
    return _attempt(run, out, overwrite, lambda report: reports.put((at, report)))


def _listen(reports: Any, runs: Sequence[Run], on_event: OnEvent) -> None:
    with contextlib.suppress(EOFError, OSError):  # an interruption takes the queue away
        while (message := reports.get()) is not None:
            at, report = message
            on_event(Event(runs[at], report))
