"""What all commands share: output and errors, one line for a mistake, progress bars."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

P = ParamSpec("P")
R = TypeVar("R")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
output = Console()
errors = Console(stderr=True)
RESUMED = ("train", "compare", "study")  # commands that go on where they were interrupted


def clean_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Make a user's mistake one line and exit code 2, and let an interruption say how to go on."""

    @functools.wraps(command)
    def wrapped(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return command(*arguments, **options)
        except BrokenPipeError:  # nobody reads the output any more
            raise typer.Exit(1) from None
        except (ValueError, TypeError, OSError) as error:
            if os.environ.get("MGQE_TRACEBACK"):
                raise
            errors.print(f"mgqe: {' '.join(_message(error).split())}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except ImportError as error:  # a package that only some uses of a command need
            remedy = "" if "pip install" in str(error) else "; run: pip install 'mgqe[recsys]'"
            errors.print(f"mgqe: {error}{remedy}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            goes_on = "; the same command goes on from the last epoch" if command.__name__ in RESUMED else ""
            errors.print(f"mgqe: interrupted{goes_on}", style="yellow")
            raise typer.Exit(130) from None

    return wrapped


def _message(error: Exception) -> str:
    """Without the number that Python puts before an error of the system."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def make_progress() -> Progress:
    """Bars on a terminal's standard error that vanish when the work is done; tasks have a field `detail`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    # Not errors.is_terminal: where FORCE_COLOR asks for colours, as notebooks do, rich takes a pipe for a terminal.
    return Progress(*columns, console=errors, transient=True, disable=not sys.stderr.isatty())


def say(note: str) -> None:
    """Print a note on standard error."""
    errors.print(f"mgqe: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
