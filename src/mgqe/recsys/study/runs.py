"""A declared study, run: what its results file lacks is trained, several runs at a time, and added to it."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mgqe.recsys.study.candidates import Preferred
from mgqe.recsys.study.declaration import Pair, StudyDeclaration
from mgqe.recsys.study.execute import WARM_UPS, Event, Run, check_configs, execute
from mgqe.recsys.study.records import (
    Record,
    Results,
    append_result,
    failure_of,
    read_results,
    record_of,
    run_key,
    write_results,
)
from mgqe.recsys.train.artifacts import CONFIG
from mgqe.recsys.train.config import TrainConfig

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class PendingRuns:
    """The runs of a study that are not done.

    recorded: those that the results file has, failures among them. waiting: those of further seeds of a method whose
    candidates have not all ended with the first ones, or which validation does not prefer.
    """

    pending: list[tuple[Pair, Run]]
    recorded: list[tuple[Pair, Run]]
    results: Results
    waiting: list[tuple[Pair, Run]] = field(default_factory=list)

    @property
    def failed(self) -> list[Record]:
        """The last records of the recorded runs that failed."""
        done = self.results.done()
        records = [done[run_key(pair.name, run.config)] for pair, run in self.recorded]
        return [record for record in records if record["status"] == "failed"]


def pending_runs(
    study: StudyDeclaration,
    out: Path,
    pairs: Sequence[str] = (),
    seeds: Sequence[int] = (),
    retry: bool = False,
    repeat: Callable[[Run], bool] = lambda run: False,
    methods: Sequence[str] = (),
) -> PendingRuns:
    """Compare the declaration with OUT/results.jsonl; ValueError for pairs, seeds or methods that are not declared.

    methods: only these, and the full tables.
    retry: runs that failed are pending again. repeat: says of a run that is done whether it is pending all the same.
    """
    if (out / CONFIG).is_file():
        raise ValueError(f"{out} holds a run of mgqe train: choose another --out")
    for name in pairs:
        if name not in study.pairs:
            raise ValueError(f"no pair {name!r}: expected {', '.join(study.pairs)}")
    study = study.of_methods(methods) if methods else study
    chosen = [pair for name, pair in study.pairs.items() if not pairs or name in pairs]
    known = dict.fromkeys(seed for pair in chosen for seed in pair.seeds)
    for seed in seeds:
        if seed not in known:
            raise ValueError(f"--seeds: no pair has seed {seed}: expected {', '.join(map(str, known))}")
    results = read_results(out / RESULTS)
    done = results.done()
    runs, preferred = PendingRuns([], [], results), Preferred(study, done)
    for pair, run in study.runs(pairs, seeds):
        status = done.get(run_key(pair.name, run.config), {"status": None})["status"]
        is_done = (status == "done" and not repeat(run)) or (status == "failed" and not retry)
        others = runs.waiting if preferred.waits(pair, run) else runs.pending
        (runs.recorded if is_done else others).append((pair, run))
    return runs


def check_pending(runs: PendingRuns, records_impossible: bool = False) -> list[str]:
    """`check_configs` of the pending runs, those that differ only in their seeds once."""
    once: dict[str, TrainConfig] = {}
    for pair, run in runs.pending:
        once.setdefault(run_key(pair.name, replace(run.config, seed=0)), run.config)
    return check_configs(list(once.values()), records_impossible)


def run_study(
    runs: PendingRuns,
    out: Path,
    jobs: int,
    on_event: Callable[[Event], None] = lambda event: None,
    overwrite: bool = False,
) -> list[Record]:
    """Train the pending runs, `jobs` at a time, and return their records, failures among them.

    OUT/results.jsonl gets a line as each run ends. A run that fails is recorded with its reason, and the others go on.
    overwrite: runs whose folders hold them already, finished or not, are trained from the beginning.
    """
    if jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {jobs}")
    if overwrite:  # a record must not outlive its run's files, in case this is killed
        shutil.rmtree(out / WARM_UPS, ignore_errors=True)
        keys = {run_key(pair.name, run.config) for pair, run in runs.pending}
        write_results(out / RESULTS, [record for record in runs.results.records if record["key"] not in keys])
    elif runs.results.damaged:  # the runs of lines that cannot be read are pending
        write_results(out / RESULTS, runs.results.records)
    pair_of = {run.folder: pair for pair, run in runs.pending}
    records = []
    for event in execute([run for _, run in runs.pending], out, jobs, overwrite, on_event):
        pair, config = pair_of[event.run.folder], event.run.config
        if event.metrics is not None:
            records.append(record_of(pair.name, config, event.metrics))
        else:
            records.append(failure_of(pair.name, config, event.error or "no reason given"))
        append_result(out / RESULTS, records[-1])
        on_event(event)
    return records


def default_jobs(threads: int = 1) -> int:
    """As many runs at the same time as this process has cores for."""
    return max(1, len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0]) // threads)


@dataclass
class Pace:
    """How long the rest will take, by how long runs of the same pair and embedding method took."""

    pending: list[tuple[Pair, Run]]
    jobs: int
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)

    def learn(self, records: Sequence[Record]) -> None:
        """From earlier runs."""
        for record in records:
            if record["status"] == "done":
                self._add(record["pair"], record["embedding"].partition(":")[0], record["seconds"])

    def _add(self, pair: str, method: str, seconds: float) -> None:
        self.seconds.setdefault((pair, method), []).append(seconds)

    def end(self, event: Event, pair: Pair) -> None:
        """A run has ended."""
        self.ended.add(event.run.folder)
        if event.metrics is not None:
            self._add(pair.name, event.run.config.spec.name, event.metrics["seconds"])

    def seconds_left(self) -> float | None:
        """Seconds until all runs are done; None while no run has ended."""
        if not self.seconds:
            return None
        mean = statistics.fmean(seconds for times in self.seconds.values() for seconds in times)
        left = 0.0
        for pair, run in self.pending:
            if run.folder not in self.ended:
                times = self.seconds.get((pair.name, run.config.spec.name))
                left += statistics.fmean(times) if times else mean
        return left / self.jobs
