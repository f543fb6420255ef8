"""Progress of functions that take a while: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, "int | None"], object]  # (done, total); None where the total is not known
EVERY = 5.0  # seconds between two lines; shorter work prints none


@contextmanager
def shown(progress: Progress | bool | None, what: str) -> Iterator[Progress]:
    """What to call after each step.

    Args:
        progress: a function of the user; False for nothing; None or True for a bar on standard error, where that is a
            terminal and rich is installed, and else for a line there every five seconds.
        what: what is being done, such as "compressing".

    Raises:
        TypeError: something else.
    """
    if callable(progress):
        yield progress
        return
    if progress not in (None, True, False):
        raise TypeError(f"progress must be a function of (done, total), None or False, got {type(progress).__name__}")
    if progress is False:
        yield lambda done, total: None
        return
    with _bar(what) if sys.stderr.isatty() and importlib.util.find_spec("rich") else _lines(what) as step:
        yield step


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _lines(what: str) -> Iterator[Progress]:
    """Lines come from a thread, since a single step may take long."""
    started, ended = time.perf_counter(), threading.Event()
    latest: list[tuple[int, int | None]] = []

    def report() -> None:
        while not ended.wait(EVERY):
            done, total = latest[-1] if latest else (0, None)
            count = f"{done:,} done" if total is None else f"{done:,} of {total:,}"
            print(f"mgqe: {what}, {count}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=report, name="mgqe progress", daemon=True)
    thread.start()
    try:
        yield lambda done, total: latest.__setitem__(slice(None), [(done, total)])
    finally:
        ended.set()
        thread.join()
