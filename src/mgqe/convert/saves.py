"""The files of one save, which carry its token in their names: kept while somebody reads them, removed afterwards."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from mgqe.files.locks import fcntl, unlock

WINDOWS = os.name == "nt"
PATIENCE_SECONDS = 1.0
ABANDONED_SECONDS = 3600.0
Result = TypeVar("Result")

_NAME = re.compile(r"[\w.-]+\.([0-9a-f]{8})\.safetensors(\.append-[0-9a-f]{8}-(\d{6,}|record))?")


def dense_name(token: str) -> str:
    """The file of the weights beside the tables, which every save has. Locks are taken on it."""
    return f"dense.{token}.safetensors"


def saved_files(folder: Path) -> dict[str, list[str]]:
    """Token -> names of the files of this save and of older ones, also of those that died."""
    saves: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if match := _NAME.fullmatch(name):
            saves.setdefault(match[1], []).append(name)
    return saves


@contextmanager
def in_use(file: Path) -> Iterator[None]:
    """While the block runs, :func:`remove_others` leaves the save that ``file`` belongs to.

    Args:
        file: of the name that :func:`dense_name` gives.

    An advisory lock, which a process that dies lets go of. Where the system has none, nothing is kept: whoever reads
    then finds a file gone, and looks whether the manifest names others.
    """
    descriptor = _lock(file, exclusive=False)
    try:
        yield
    finally:
        _unlock(descriptor)


def remove_save(folder: Path, token: str) -> None:
    """Remove the files of a save that failed."""
    for name in saved_files(folder).get(token, []):
        with suppress(OSError):  # left behind it means nothing to anybody
            (folder / name).unlink(missing_ok=True)


def remove_others(folder: Path, token: str, replaced: str | None) -> None:
    """Remove the files of all saves but one, and leave those that are in use to the next save.

    Where the system has no locks, another save that is not finished looks like one that died. Then only those go that
    are an hour old, and the one that was replaced.

    Args:
        token: of the save to keep.
        replaced: of the save that the manifest named before.
    """
    ours = _lock(folder / dense_name(token), exclusive=False)
    try:
        has_locks = ours is not None and not WINDOWS
        for other, names in saved_files(folder).items():
            if other != token:
                _remove(folder, folder / dense_name(other), names, has_locks or other == replaced)
    finally:
        _unlock(ours)


def _remove(folder: Path, dense: Path, names: list[str], is_over: bool) -> None:
    descriptor = None
    try:
        descriptor = _lock(dense, exclusive=True)  # None also where a save died without this file
        if descriptor is None and not (is_over or _is_old(folder, names)):
            return
        dense.unlink(missing_ok=True)  # first: Windows refuses it while it is open
        for name in names:
            with suppress(OSError):  # left behind it means nothing to anybody
                (folder / name).unlink(missing_ok=True)
    except OSError:  # in use, or not ours to remove
        return
    finally:
        _unlock(descriptor)


def _is_old(folder: Path, names: list[str]) -> bool:
    """Whether nothing was written to a save for an hour. Raises OSError if somebody else removed it."""
    return time.time() - max((folder / name).stat().st_mtime for name in names) > ABANDONED_SECONDS


def patiently(work: Callable[[], Result]) -> Result:
    """What ``work`` gives. Windows refuses, for a moment, to replace a file that is open and to open one that is being
    replaced: there it is tried again for a second."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return work()
        except PermissionError:
            if not WINDOWS or time.monotonic() > end:
                raise
            time.sleep(0.005)


def _lock(file: Path, exclusive: bool) -> int | None:
    """A descriptor of the file, locked; None if there is no such file, or the system cannot.

    Raises BlockingIOError if it is to be ``exclusive`` and others have it.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
            return descriptor
        if not exclusive:
            return descriptor  # Windows does not remove a file that is open
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        pass
    os.close(descriptor)
    return None


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        unlock(descriptor)  # closing is not enough where a fork has a copy
        os.close(descriptor)
