"""Advisory locks on files (``flock``), of which a process that dies lets go; none on systems without them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

FOLDER_LOCK = ".lock"  # the file whose lock stands for its folder's
fcntl: Any = import_module("fcntl") if os.name == "posix" else None


def file_identity(path: str | os.PathLike[str] | int) -> tuple[int, int, int, int]:
    """What changes when another file takes the name."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def try_lock(descriptor: int, wait: bool) -> bool | None:
    """Lock an open file for this process alone: True; False if another holds it; None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def unlock(descriptor: int) -> None:
    """Let go of a lock, also for the copies of the descriptor that forked processes have."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def file_lock(path: Path, exclusive: bool) -> Iterator[None]:
    """Keeps those who append to a file (not exclusive) and those who save over it (exclusive) apart; not readers.

    An advisory lock on the file, which a process that dies lets go of. Where there is no file yet, or the system has
    no such locks, nothing is kept apart: whoever appends then looks afterwards whether the file is still there.
    """
    descriptor = _lock(path, exclusive)
    try:
        yield
    finally:
        if descriptor is not None:
            unlock(descriptor)  # closing is not enough where a fork has a copy
            os.close(descriptor)


def _lock(path: Path, exclusive: bool) -> int | None:
    """A descriptor of the file, locked; None if that cannot be done."""
    if fcntl is None:
        return None
    descriptor = None
    try:
        while True:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            if file_identity(path) == file_identity(descriptor):
                return descriptor
            os.close(descriptor)  # replaced while we waited
            descriptor = None
    except OSError:
        return None
    except BaseException:  # Control-C while waiting
        if descriptor is not None:
            os.close(descriptor)
        raise


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if it is missing, for this process; others that want it wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FOLDER_LOCK).open("w") as file:
        try_lock(file.fileno(), wait=True)
        try:
            yield
        finally:
            unlock(file.fileno())
