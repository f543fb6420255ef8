"""Advisory locks, which the system releases when a process dies.

Folders have a lock file of the package filelock. Files do, too, on systems without ``flock``, such as Windows. Where
there is ``flock``, the files themselves are locked by it, for what filelock's separate lock files cannot do:

- several processes append to a table at the same time, which only one may replace (a lock that is shared);
- nothing is left beside a user's table, and files are locked in folders that cannot be written to;
- a lock goes with the file when it is renamed, and says, by its very file, whether the writer of an unfinished one or a
  reader of an older save still lives (:mod:`mgqe.files.aside`, :mod:`mgqe.convert.saves`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock

FOLDER_LOCK = ".lock"  # the file whose lock stands for its folder's
fcntl: Any = import_module("fcntl") if os.name == "posix" else None


def file_identity(path: str | os.PathLike[str] | int) -> tuple[int, int, int, int]:
    """Device, inode, size and time of change: these differ if another file has taken the name."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def try_lock(descriptor: int, wait: bool) -> bool | None:
    """Lock an open file for this process alone: True, False if another process has it, None if there are no locks."""
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
    """Release a lock, also for the copies of the descriptor that forked processes have."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def file_lock(path: Path, exclusive: bool) -> Iterator[None]:
    """Lock a file: shared to append to it (not exclusive), alone to replace it (exclusive). Readers take no lock.

    If there is no file yet, or the file system has no such locks, nothing is locked. Appending therefore checks
    afterwards whether the file is still the one that it appended to. Without ``flock`` all locks are exclusive.
    """
    if fcntl is None:
        with FileLock(path.with_name(f".{path.name}.lock")):
            yield
        return
    descriptor = _lock(path, exclusive)
    try:
        yield
    finally:
        if descriptor is not None:
            unlock(descriptor)  # closing is not enough if a forked process has a copy of the descriptor
            os.close(descriptor)


def _lock(path: Path, exclusive: bool) -> int | None:
    """A descriptor of the locked file; None if it cannot be locked."""
    descriptor = None
    try:
        while True:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            if file_identity(path) == file_identity(descriptor):
                return descriptor
            os.close(descriptor)  # the file was replaced while this process waited
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
    with FileLock(folder / FOLDER_LOCK):
        yield
