"""Progress of functions that take a while: a bar on a terminal, one line at the end."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, "int | None"], object]  # (done, total); None where the total is not known


@contextmanager
def shown(progress: Progress | bool | None, what: str) -> Iterator[Progress]:
    """What to call after each step.

    Args:
        progress: a function of the user; False for nothing; None or True for a bar on standard error, where that is a
            terminal and rich is installed.
        what: the name of the bar.

    Raises:
        TypeError: something else.
    """
    if callable(progress):
        yield progress
        return
    if progress not in (None, True, False):
        raise TypeError(f"progress must be a function of (done, total), None or False, got {type(progress).__name__}")
    if progress is False or not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
