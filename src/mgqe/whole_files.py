"""Files that are written whole before anybody sees them, and locks that keep writers apart."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def written(target: Path, chunks: Iterable[bytes | memoryview]) -> Iterator[Path]:
    """A new file beside ``target`` that holds ``chunks`` and is on the disk; gone when the block ends, whatever it did.

    The block gives the file its real name: by ``os.replace``, or by ``os.link``, which refuses a name that is taken.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    # Made by hand and not by tempfile, which would leave the file readable by its owner alone.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with open(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # makes the new name itself last; Windows cannot open a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def put(path: str | os.PathLike[str], nbytes: int, content: Iterable[bytes | memoryview]) -> None:
    """A file at the path, whole or not at all; what is a link is followed, since a rename would replace the link.

    Raises:
        OSError: it cannot be written; the message names the path, the bytes needed and the remedy.
    """
    target = Path(os.path.realpath(path))
    try:
        with written(target, content) as temporary:
            os.replace(temporary, target)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {nbytes:,} bytes ({error.strerror or error}); nothing at the path has changed. "
            "Check that the folder exists, may be written to and has the space",
            str(path),
        ) from error


def identity(path: str | os.PathLike[str] | int) -> tuple[int, int, int, int]:
    """What changes when another file takes the name."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def guarded(path: Path, exclusive: bool) -> Iterator[None]:
    """Keeps those who append to a file (not exclusive) and those who save over it (exclusive) apart; not readers.

    An advisory lock on the file, which a process that dies lets go of. Where there is no file yet, or the system has
    no such locks, nothing is kept apart: whoever appends then looks afterwards whether the file is still there.
    """
    descriptor = _lock(path, exclusive)
    try:
        yield
    finally:
        if descriptor is not None:
            import fcntl

            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where a fork has a copy
            os.close(descriptor)


def _lock(path: Path, exclusive: bool) -> int | None:
    """A descriptor of the file, locked; None if that cannot be done."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = None
    try:
        while True:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            if identity(path) == identity(descriptor):
                return descriptor
            os.close(descriptor)  # replaced while we waited
            descriptor = None
    except OSError:
        return None
    except BaseException:  # Control-C while waiting
        if descriptor is not None:
            os.close(descriptor)
        raise


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, opened to be read. Raises OSError for a FIFO, a device or a socket instead of waiting for it."""
    _refuse_special(path, os.stat(path))
    return open(path, "rb")


def _refuse_special(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"expected a regular file, this is {kind_of(status.st_mode)}", os.fspath(path))


def kind_of(mode: int) -> str:
    """What a file is that is neither regular nor a folder."""
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "a special file")
