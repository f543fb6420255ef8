"""The files of one save, which carry its token in their names: they stay while they are read and are removed then."""

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
RETRY_SECONDS = 1.0
ABANDONED_SECONDS = 3600.0
Result = TypeVar("Result")

_NAME = re.compile(r"[\w.-]+\.([0-9a-f]{8})\.safetensors(\.append-[0-9a-f]{8}-(\d{6,}|record))?")


def dense_name(token: str) -> str:
    """The name of the file of the dense weights, which every save has. Locks are taken on it."""
    return f"dense.{token}.safetensors"


def saved_files(folder: Path) -> dict[str, list[str]]:
    """Token -> names of files, for all saves in the folder: complete ones and interrupted ones."""
    saves: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if match := _NAME.fullmatch(name):
            saves.setdefault(match[1], []).append(name)
    return saves


@contextmanager
def in_use(file: Path) -> Iterator[None]:
    """While the block runs, :func:`remove_other_saves` does not remove the save that ``file`` belongs to.

    This is an advisory lock, which ends with its process. On a system without locks nothing keeps the files: a reader
    that finds one missing has to look whether the manifest names others by then.

    Args:
        file: the save's file of the name that :func:`dense_name` gives.
    """
    descriptor = _lock(file, exclusive=False)
    try:
        yield
    finally:
        _unlock(descriptor)


def remove_save(folder: Path, token: str) -> None:
    """Remove the files of a save that failed."""
    for name in saved_files(folder).get(token, []):
        with suppress(OSError):  # a file that stays is harmless
            (folder / name).unlink(missing_ok=True)


def remove_other_saves(folder: Path, token: str, replaced: str | None) -> None:
    """Remove the files of all saves but one; those that are in use stay until the next save removes them.

    On a system without locks, a save that is still being written looks like an interrupted one. There, only saves that
    are an hour old are removed, and the save that was replaced.

    Args:
        token: of the save to keep.
        replaced: token of the save that the manifest named before.
    """
    own_lock = _lock(folder / dense_name(token), exclusive=False)
    try:
        has_locks = own_lock is not None and not WINDOWS
        for other, names in saved_files(folder).items():
            if other != token:
                _remove(folder, folder / dense_name(other), names, has_locks or other == replaced)
    finally:
        _unlock(own_lock)


def _remove(folder: Path, dense: Path, names: list[str], is_complete: bool) -> None:
    descriptor = None
    try:
        descriptor = _lock(dense, exclusive=True)  # None also for a save that was interrupted before it wrote this file
        if descriptor is None and not (is_complete or _is_old(folder, names)):
            return
        dense.unlink(missing_ok=True)  # first, since Windows refuses this while the file is open
        for name in names:
            with suppress(OSError):  # a file that stays is harmless
                (folder / name).unlink(missing_ok=True)
    except OSError:  # in use, or without permission to remove
        return
    finally:
        _unlock(descriptor)


def _is_old(folder: Path, names: list[str]) -> bool:
    """Whether nothing was written to a save for an hour. Raises OSError if another process removed it."""
    return time.time() - max((folder / name).stat().st_mtime for name in names) > ABANDONED_SECONDS


def retry_where_busy(work: Callable[[], Result]) -> Result:
    """What ``work`` returns; on Windows, where a file is busy while it is replaced, tried again for a second."""
    end = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            return work()
        except PermissionError:
            if not WINDOWS or time.monotonic() > end:
                raise
            time.sleep(0.005)


def _lock(file: Path, exclusive: bool) -> int | None:
    """A descriptor of the locked file; None if there is no such file, or the system has no locks.

    Raises BlockingIOError if the lock is ``exclusive`` and another process has one.
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
            return descriptor  # which is a lock on Windows: an open file cannot be removed there
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        pass
    os.close(descriptor)
    return None


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        unlock(descriptor)  # closing does not unlock the file while a forked process has a copy
        os.close(descriptor)
