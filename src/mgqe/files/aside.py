"""Aside files: the content of a file under another name in its folder, until it is renamed.

Such a file, ``.NAME.HOST-PID-RANDOM.tmp``, names its writer, which holds a lock on it. The next writer to the folder
can therefore tell which aside files were left behind by processes that died, and removes them.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mgqe.files.locks import try_lock, unlock
from mgqe.files.regular import require_replaceable

ASIDE_NAME = re.compile(r"\..+\.(?:([0-9a-f]{8})-(\d+)-)?[0-9a-f]{8}\.tmp", re.DOTALL)
ABANDONED_SECONDS = 24 * 60 * 60  # after which a file counts as left behind, where its writer's machine cannot be asked
MAX_NAME_CHARS = 48  # of the target's name in an aside file's name, which may have at most 255 bytes in all


@contextmanager
def aside_file(target: Path, fill: Callable[[BinaryIO], object], like: Path | None = None) -> Iterator[Path]:
    """An aside file of ``target`` that ``fill`` has written and that is on the disk; removed when the block ends.

    The block renames it, by ``os.replace``, or by ``os.link``, which fails if the name is taken. The file gets the mode
    bits of the file that it will replace. If there is none, it gets those of the file ``like``, to which it belongs, or
    else those that the umask leaves.

    Raises OSError, before ``fill`` is called, if ``target`` exists and is no regular file.
    """
    old_status = require_replaceable(target)
    remove_abandoned(target.parent)
    aside, descriptor = _create_aside(target, old_status if old_status is not None or like is None else os.stat(like))
    try:
        with open(descriptor, "wb") as file:
            try:
                fill(file)
                file.flush()
                os.fsync(descriptor)
                if os.name != "posix":
                    file.close()  # an open file cannot be renamed there
                yield aside
            finally:
                if not file.closed:
                    unlock(descriptor)  # closing is not enough if a forked process has a copy of the descriptor
    finally:
        aside.unlink(missing_ok=True)
    if os.name == "posix":  # puts the new name on the disk; Windows cannot open a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def aside_folder(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, for files that are needed to make it; removed when the block ends."""
    remove_abandoned(target.parent)
    folder, descriptor = _create_aside_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            unlock(descriptor)
            os.close(descriptor)


def _create_aside(target: Path, old_status: os.stat_result | None) -> tuple[Path, int]:
    """(path, descriptor) of a new aside file, locked."""
    # tempfile would leave the file readable by its owner alone.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    while True:
        aside = _aside_name(target)
        descriptor = os.open(
            aside, flags, 0o666 if old_status is None else stat.S_IMODE(old_status.st_mode) & 0o666 | 0o200
        )
        try:
            if old_status is not None and os.name == "posix":
                with suppress(OSError):  # the mode bits of the group need the same group
                    os.fchown(descriptor, -1, old_status.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(old_status.st_mode))
            if _hold(aside, descriptor):
                return aside, descriptor
        except BaseException:
            os.close(descriptor)
            aside.unlink(missing_ok=True)
            raise
        os.close(descriptor)  # another writer removed the file before it was locked


def _create_aside_folder(target: Path) -> tuple[Path, int | None]:
    """(path, descriptor) of a new aside folder, locked; without a descriptor where a folder cannot be opened."""
    while True:
        folder = _aside_name(target)
        folder.mkdir(0o700)
        if os.name != "posix":
            return folder, None
        with suppress(FileNotFoundError):  # another writer removed the folder before it was locked
            descriptor = os.open(folder, os.O_RDONLY)
            if _hold(folder, descriptor):
                return folder, descriptor
            os.close(descriptor)


def _hold(aside: Path, descriptor: int) -> bool:
    """Lock a new aside file or folder; False if another writer has removed it meanwhile."""
    return not try_lock(descriptor, wait=True) or aside.exists()


def _aside_name(target: Path) -> Path:
    name = f".{target.name[:MAX_NAME_CHARS]}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    return target.with_name(name)


def remove_abandoned(folder: Path) -> None:
    """Remove the aside files and aside folders of processes that have died."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = ASIDE_NAME.fullmatch(entry.name)
            if match:
                with suppress(OSError), _abandoned(entry.path, match[1], match[2]) as abandoned:
                    if abandoned:
                        shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)


def has_writer(folder: Path) -> bool:
    """Whether a process is writing a file in the folder."""
    try:
        with os.scandir(folder) as entries:
            aside = [(entry.path, match) for entry in entries if (match := ASIDE_NAME.fullmatch(entry.name))]
    except OSError:
        return False
    for path, match in aside:
        with _abandoned(path, match[1], match[2]) as abandoned:
            if not abandoned:
                return True
    return False


@contextmanager
def _abandoned(path: str, host: str | None, pid: str | None) -> Iterator[bool]:
    """Whether the writer of an aside file has died; False if that cannot be told.

    The file stays locked until the block ends. A writer that has just made a file locks it next, and waits until then.
    If the block has removed the file, the writer sees that, and makes another one.
    """
    descriptor = _opened(path, host)
    if descriptor is None:
        yield False
        return
    try:
        locked = try_lock(descriptor, wait=False)
        yield host == _host() and pid is not None and not _is_alive(int(pid)) if locked is None else locked
    finally:
        os.close(descriptor)


def _opened(path: str, host: str | None) -> int | None:
    """The descriptor of an aside file whose lock says whether its writer lives; None if it does not say that."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) and not (stat.S_ISDIR(status.st_mode) and host is not None):
            return None
        if host != _host() and time.time() - status.st_mtime < ABANDONED_SECONDS:
            return None  # another machine's, whose locks may not show here, or an older version's, which took no lock
        return os.open(path, os.O_RDONLY)
    except OSError:
        return None


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # on Windows os.kill would end the process; a file that it has open cannot be removed anyway
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process
        return True
    return True


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
