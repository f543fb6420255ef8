"""What the commands that train share: progress bars of runs, and options that say which runs, how many at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.progress import Progress, TaskID

from mgqe.cli.terminal import errors, make_progress
from mgqe.cli.time_left import EpochClock, in_words
from mgqe.recsys.study.declaration import Pair
from mgqe.recsys.study.execute import Event, Run
from mgqe.recsys.study.records import Record
from mgqe.recsys.study.runs import Pace, PendingRuns, run_study
from mgqe.recsys.train.loop import PLANNING, EpochReport

STAGES = {"full": "first phase", "annealed": "annealing", PLANNING: "planning", "quantised": "through the codes"}
EVERY = 60.0  # seconds between lines within an epoch


class RunBar:
    """A run's progress bar: the epoch's batches, the time left, the figure of the epoch that is kept.

    Without a terminal: a line for each epoch, and for each minute of one. An epoch through the codes that is better by
    less than chance may not replace the start.
    """

    def __init__(self, progress: Progress, name: str, clock: EpochClock | None = None) -> None:
        self.progress, self.name = progress, name
        self.task: TaskID | None = None
        self.clock = clock or EpochClock()
        self.said = self.clock.now()

    def show(self, report: EpochReport) -> None:
        left = self.clock.left(report)
        planning = report.phase == PLANNING
        epoch = STAGES.get(report.phase, report.phase) + ("" if planning else f", epoch {report.epoch}")
        figure = report.metric.removeprefix("full_").upper()
        kept = "" if report.best is None else f"kept {figure} {report.best:.4f} (validation)"
        if self.progress.disable:
            if report.record is not None:
                now = f"{figure} {report.record[report.metric]:.4f}"
                self._say(report, epoch, f"loss {report.record['loss']:.4f}, {now}, {kept}")
            elif left is not None and self.clock.now() - self.said >= EVERY:
                times = f"about {in_words(left[0])} left, at most {in_words(left[1])} of this phase"
                done = f"{report.batch:,} of {report.batches:,} {'plans judged' if planning else 'batches'}"
                self._say(report, epoch, f"{done}, {times}")
            return
        detail = f"{epoch}  {'' if left is None else f'{in_words(left[0])} left  '}{kept}"
        if self.task is None:
            self.task = self.progress.add_task(self.name, total=report.batches, detail=detail)
        self.progress.update(self.task, completed=report.batch, total=report.batches, detail=detail)

    def _say(self, report: EpochReport, epoch: str, what: str) -> None:
        most = "" if report.phase == PLANNING else f" of at most {report.max_epochs}"
        line = f"{self.name}: {epoch}{most}: {what}"
        errors.print(line, markup=False, highlight=False, soft_wrap=True)
        self.said = self.clock.now()

    def remove(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)


class RunBars:
    """A bar for each run in progress, called what `name` says."""

    def __init__(self, progress: Progress, name: Callable[[Run], str]) -> None:
        self.progress, self.name = progress, name
        self.bars: dict[Run, RunBar] = {}

    def show(self, event: Event) -> bool:
        """Show how far a run is, or remove its bar when it has ended; returns whether it has ended."""
        if event.report is None:
            if event.run in self.bars:
                self.bars.pop(event.run).remove()
            return True
        self.bars.setdefault(event.run, RunBar(self.progress, self.name(event.run))).show(event.report)
        return False


def train_with_bars(
    runs: PendingRuns, out: Path, jobs: int, name: Callable[[Pair, Run], str], overwrite: bool = False
) -> list[Record]:
    """`run_study` under a bar for each run in progress and one for all, with an estimate of the time left."""
    pair_of = {run.folder: pair for pair, run in runs.pending}
    pace = Pace(runs.pending, jobs)
    pace.learn(runs.results.records)
    with make_progress() as progress:
        total = progress.add_task("all runs", total=len(runs.pending), detail=_time_left(pace))
        bars = RunBars(progress, lambda run: name(pair_of[run.folder], run))

        def show(event: Event) -> None:
            if not bars.show(event):
                return
            pace.end(event, pair_of[event.run.folder])
            if event.error is not None:
                progress.print(f"{bars.name(event.run)} failed: {event.error}", markup=False)
            progress.update(total, advance=1, detail=_time_left(pace))

        return run_study(runs, out, jobs, show, overwrite)


def _time_left(pace: Pace) -> str:
    seconds = pace.seconds_left()
    return "" if seconds is None else f"about {in_words(seconds)} left"


def check_jobs(jobs: int) -> None:
    """ValueError for fewer than one run at a time."""
    if jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {jobs}")


def seeds_of(text: str) -> tuple[int, ...]:
    """The seeds that --seeds lists; ValueError for anything but whole numbers joined by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--seeds: expected whole numbers joined by commas such as 1,2,3, got {text!r}") from None
