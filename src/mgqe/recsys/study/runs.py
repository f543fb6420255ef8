"""A declared study, run: what the results file lacks is trained, several runs at a time, and added to it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mgqe.recsys.study.compare import Event, Run, check_configs, execute
from mgqe.recsys.study.declaration import Pair, StudyDeclaration
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
from mgqe.recsys.train.config import TrainConfig

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class PendingRuns:
    """What there is to do. kept: runs that the results file has, failures among them unless they are tried again."""

    todo: list[tuple[Pair, Run]]
    kept: list[tuple[Pair, Run]]
    results: Results

    @property
    def failed(self) -> list[Record]:
        """Records of the kept runs that failed."""
        done = self.results.done()
        found = [done[run_key(pair.name, run.config)] for pair, run in self.kept]
        return [record for record in found if record["status"] == "failed"]


def plan_runs(
    grid: StudyDeclaration, out: Path, pairs: Sequence[str] = (), seeds: Sequence[int] = (), retry: bool = False
) -> PendingRuns:
    """Compare the declaration with OUT/results.jsonl; ValueError for pairs that are not declared."""
    for name in pairs:
        if name not in grid.pairs:
            raise ValueError(f"no pair {name!r}: expected {', '.join(grid.pairs)}")
    chosen = [pair for name, pair in grid.pairs.items() if not pairs or name in pairs]
    known = dict.fromkeys(seed for pair in chosen for seed in pair.seeds)
    for seed in seeds:
        if seed not in known:
            raise ValueError(f"--seeds: no pair has seed {seed}: expected {', '.join(map(str, known))}")
    results = read_results(out / RESULTS)
    done = results.done()
    todo: list[tuple[Pair, Run]] = []
    kept: list[tuple[Pair, Run]] = []
    for pair, run in grid.runs(pairs, seeds):
        record = done.get(run_key(pair.name, run.config))
        finished = record is not None and (record["status"] == "done" or not retry)
        (kept if finished else todo).append((pair, run))
    return PendingRuns(todo, kept, results)


def check_plan(plan: PendingRuns) -> list[str]:
    """Load each data set and build each embedding once, so that what cannot work is said before hours are spent.

    Returns what is cut to fit small tables, in words. ValueError names a file, or an embedding that does not fit.
    """
    once: dict[str, TrainConfig] = {}
    for pair, run in plan.todo:
        once.setdefault(run_key(pair.name, replace(run.config, seed=0)), run.config)
    return check_configs(list(once.values()))


def run_grid(
    plan: PendingRuns, out: Path, jobs: int, on_event: Callable[[Event], None] = lambda event: None
) -> list[Record]:
    """Train what is to do, `jobs` runs at a time; the new records, failures among them.

    OUT/results.jsonl gets a line as each run ends. A run that fails is recorded with its reason, and the others go on.
    """
    if jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {jobs}")
    if plan.results.damaged:  # what cannot be read is of no use to anybody; its runs are made again
        write_results(out / RESULTS, plan.results.records)
    pair_of = {run.folder: pair for pair, run in plan.todo}
    records = []
    for event in execute([run for _, run in plan.todo], out, jobs, False, on_event):
        pair, config = pair_of[event.run.folder], event.run.config
        if event.metrics is not None:
            records.append(record_of(pair.name, config, event.metrics))
        else:
            records.append(failure_of(pair.name, config, event.error or "no reason given"))
        append_result(out / RESULTS, records[-1])
        on_event(event)
    return records


def default_jobs(threads: int = 1) -> int:
    """As many runs side by side as there are cores for."""
    return max(1, len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0]) // threads)


@dataclass
class Pace:
    """How long the rest will take, by how long runs of the same kind took."""

    todo: list[tuple[Pair, Run]]
    jobs: int
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)

    def learn(self, records: Sequence[Record], pairs: dict[str, Pair]) -> None:
        """From earlier runs."""
        for record in records:
            if record["status"] == "done" and record["pair"] in pairs:
                kind = (record["pair"], record["embedding"].partition(":")[0])
                self.seconds.setdefault(kind, []).append(record["seconds"])

    def end(self, event: Event, pair: Pair) -> None:
        """A run has ended."""
        self.ended.add(event.run.folder)
        if event.metrics is not None:
            kind = (pair.name, event.run.config.spec.name)
            self.seconds.setdefault(kind, []).append(event.metrics["seconds"])

    def left(self) -> float | None:
        """Seconds until all is done; None while nothing is known."""
        known = [second for seconds in self.seconds.values() for second in seconds]
        if not known:
            return None
        anything = statistics.fmean(known)
        rest = 0.0
        for pair, run in self.todo:
            if run.folder not in self.ended:
                same = self.seconds.get((pair.name, run.config.spec.name))
                rest += statistics.fmean(same) if same else anything
        return rest / self.jobs
