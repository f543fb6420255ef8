"""What the commands show: output and errors, clean ends, progress bars."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mgqe.recsys.train.loop import EpochReport

if TYPE_CHECKING:
    from mgqe.recsys.study.compare import Event, Run

P = ParamSpec("P")
R = TypeVar("R")

output = Console()
errors = Console(stderr=True)


def clean_errors(command: Callable[P, R]) -> Callable[P, R]:
    """A user's mistake is one line and exit code 2; an interruption says how to go on."""

    @functools.wraps(command)
    def wrapped(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return command(*arguments, **options)
        except (ValueError, TypeError, OSError) as error:
            if os.environ.get("MGQE_TRACEBACK"):
                raise
            errors.print(f"mgqe: {' '.join(str(error).split())}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            errors.print("mgqe: interrupted; the same command goes on from the last epoch", style="yellow")
            raise typer.Exit(130) from None

    return wrapped


class RunBar:
    """A run's progress bar: the epoch's batches, the best validation figure so far."""

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress, self.name = progress, name
        self.task: TaskID | None = None

    def show(self, report: EpochReport) -> None:
        best = "" if report.best is None else f"best {report.metric.upper()} {report.best:.4f} (validation)"
        stage = {"full": "first phase", "annealed": "annealing", "quantised": "through the codes"}.get(
            report.phase, report.phase
        )
        detail = f"{stage}, epoch {report.epoch}  {best}"
        if self.task is None:
            self.task = self.progress.add_task(self.name, total=report.batches, detail=detail)
        self.progress.update(self.task, completed=report.batch, total=report.batches, detail=detail)

    def remove(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)


class RunBars:
    """A bar for each of the runs that go on, under what `name` calls it."""

    def __init__(self, progress: Progress, name: Callable[[Run], str]) -> None:
        self.progress, self.name = progress, name
        self.bars: dict[Run, RunBar] = {}

    def show(self, event: Event) -> bool:
        """Show how far a run is, or take away the bar of one that has ended; whether it has ended."""
        if event.report is None:
            if event.run in self.bars:
                self.bars.pop(event.run).remove()
            return True
        self.bars.setdefault(event.run, RunBar(self.progress, self.name(event.run))).show(event.report)
        return False


def make_progress() -> Progress:
    """Bars on standard error that vanish when the work is done; tasks have a field `detail`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=errors, transient=True)
