"""Many runs -> results: every embedding with every seed, in parallel, picked up where it stopped."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

from mgqe.recsys.train.checkpoint import write_json
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.loop import EpochReport, OnEpoch
from mgqe.recsys.train.run import METRICS, RunData, check_place, check_run, train_run

RESULTS = "results.json"
WARM_UPS = "warm-ups"


@dataclass(frozen=True)
class Run:
    """One configuration and the folder, below the study's, that it runs in."""

    config: TrainConfig
    folder: str

    @property
    def name(self) -> str:
        return f"{self.config.label or self.config.embedding}, seed {self.config.seed}"


def folder_name(config: TrainConfig) -> str:
    """Such as `mgqe_D=32_K=64_16-seed1`."""
    return f"{re.sub(r'[^A-Za-z0-9.=@-]+', '_', config.label or config.embedding)}-seed{config.seed}"


@dataclass(frozen=True)
class Comparison:
    """Every one of `embeddings` with every one of `seeds`, all else as in `base`.

    An embedding may bring its own training settings: `lowrank:r=8@learning_rate=0.01`.
    """

    base: TrainConfig
    embeddings: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path

    def __post_init__(self) -> None:
        alike = tuple(self.base.with_embedding(embedding) for embedding in self.embeddings)  # however written
        for name, given, values in (("embedding", self.embeddings, alike), ("seed", self.seeds, self.seeds)):
            if not given:
                raise ValueError(f"a comparison needs at least one {name}")
            if len(set(values)) < len(given):
                raise ValueError(f"expected each {name} once, got {', '.join(map(str, given))}")

    def runs(self) -> list[Run]:
        """All runs; of those that share a warm-up one comes early, so that the others find it done."""
        firsts: list[Run] = []
        others: list[Run] = []
        seen: set[TrainConfig] = set()
        for seed in self.seeds:
            for embedding in self.embeddings:
                config = replace(self.base.with_embedding(embedding), seed=seed)
                run = Run(config, f"runs/{folder_name(config)}")
                (others if config.warm_up() in seen else firsts).append(run)
                seen.add(config.warm_up())
        return firsts + others


@dataclass(frozen=True)
class Event:
    """Something that happened to a run: an epoch's report, its metrics at the end, or why it failed."""

    run: Run
    report: EpochReport | None = None
    metrics: dict[str, Any] | None = None
    error: str | None = None


OnEvent = Callable[[Event], None]


def check_study(study: Comparison) -> list[str]:
    """Load the data and build every embedding once, so that what cannot work is said before hours are spent.

    Returns what is cut to fit small tables, in words, each once.
    """
    return check_configs([replace(study.base.with_embedding(text), seed=study.seeds[0]) for text in study.embeddings])


def check_places(study: Comparison, overwrite: bool) -> None:
    """ValueError when a run's folder holds another run, or something else, before any run is trained."""
    for run in study.runs():
        check_place(run.config, study.out / run.folder, overwrite)


def check_configs(configs: Sequence[TrainConfig]) -> list[str]:
    """`check_run` of each, on data that are loaded once for all that have the same; what is cut, each once."""
    notes: dict[str, None] = {}
    by_data: dict[TrainConfig, list[TrainConfig]] = {}
    for config in configs:
        by_data.setdefault(config.of_checks(), []).append(config)
    for alike in by_data.values():
        data = RunData.load(alike[0])
        for config in alike:
            try:
                found = check_run(config, data)
            except ValueError as error:
                raise ValueError(
                    f"{config.label or config.embedding} with {config.model} on {config.data}: {error}"
                ) from error
            notes.update((f"{config.label or config.embedding}, {note}", None) for note in found)
    return list(notes)


def run_study(
    study: Comparison,
    jobs: int = 1,
    overwrite: bool = False,
    on_event: OnEvent = lambda event: None,
) -> list[dict[str, Any]]:
    """Run what is not finished yet, `jobs` at a time; returns the metrics of all runs that succeeded.

    A run that fails does not stop the others; `on_event` hears of it. OUT/results.json is written after each.
    """
    if jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {jobs}")
    runs = study.runs()
    if overwrite:
        shutil.rmtree(study.out / WARM_UPS, ignore_errors=True)
    finished: dict[str, dict[str, Any]] = {}
    for event in execute(runs, study.out, jobs, overwrite, on_event):
        if event.metrics is not None:
            finished[event.run.folder] = event.metrics
            _write_results(study, [finished[run.folder] for run in runs if run.folder in finished])
        on_event(event)
    return [finished[run.folder] for run in runs if run.folder in finished]


def execute(runs: Sequence[Run], out: Path, jobs: int, overwrite: bool, on_event: OnEvent) -> Iterator[Event]:
    """Each run's end as it comes, `jobs` runs at a time in folders below `out`; `on_event` hears of the epochs.

    A run that fails ends with its reason and does not stop the others. ValueError when a process is killed.
    """
    if jobs == 1:
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
        with ProcessPoolExecutor(jobs, context, _start_worker) as pool:
            try:
                work = [pool.submit(_work, run, out, overwrite, reports, at) for at, run in enumerate(runs)]
                for future in as_completed(work):
                    yield future.result()
            except BrokenProcessPool as error:
                raise ValueError(
                    "a run's process was killed, perhaps for want of memory: lower --jobs; what is finished is kept"
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
    except Exception as error:  # whatever it is, hours of other runs must not end with it
        return Event(run, error=f"{type(error).__name__}: {error}")


@functools.lru_cache(maxsize=1)
def _data(config: TrainConfig) -> RunData:
    """The data of the run before are kept: runs of one data set and seed come one after the other."""
    return RunData.load(config)


def _tell(run: Run, on_event: OnEvent) -> OnEpoch:
    return lambda report: on_event(Event(run, report))


def _start_worker() -> None:
    """Let this worker end at once when it is interrupted: its checkpoint is whole, a traceback would help nobody."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _end_with_parent()


def _end_with_parent() -> None:
    """Let this process end when the one that started it has ended, whatever ended that: nobody takes its results."""
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


def _write_results(study: Comparison, metrics: list[dict[str, Any]]) -> None:
    from mgqe.recsys.study.summary import summarise

    write_json(
        study.out / RESULTS,
        {
            "embeddings": list(study.embeddings),
            "seeds": list(study.seeds),
            "config": asdict(study.base),
            "summary": [asdict(row) for row in summarise(metrics)],
            "runs": [{name: value for name, value in run.items() if name != "history"} for run in metrics],
        },
    )


def is_finished(study: Comparison, run: Run) -> bool:
    """Whether the run's figures are there."""
    return (study.out / run.folder / METRICS).is_file()
