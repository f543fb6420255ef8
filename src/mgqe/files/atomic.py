"""Files that are written whole before anybody sees them: under another name, which is theirs once they are on the disk.

The other name, ``.NAME.HOST-PID-RANDOM.tmp``, says who writes it, and its writer holds a lock on it. So whoever writes
to the same folder later can tell which of these files were left behind by processes that died, and removes them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mgqe.files.locks import try_lock, unlock

TEMPORARY = re.compile(r"\..+\.(?:([0-9a-f]{8})-(\d+)-)?[0-9a-f]{8}\.tmp", re.DOTALL)
ABANDONED_SECONDS = 24 * 60 * 60  # after which a file counts as left behind, where its writer's machine cannot be asked
MAX_NAME_CHARS = 48  # of the real name in the other one, which is longer than it and may be no longer than 255 bytes


@contextmanager
def prepared(target: Path, fill: Callable[[BinaryIO], object], like: Path | None = None) -> Iterator[Path]:
    """A new file beside ``target`` that ``fill`` has filled and that is on the disk; gone when the block ends.

    The block gives the file its real name: by ``os.replace``, or by ``os.link``, which refuses a name that is taken. It
    gets the mode bits of the file that it will replace; if there is none, those of the file ``like``, to which it
    belongs, or else those that the umask leaves.

    Raises OSError, before ``fill`` is called, where ``target`` is neither a regular file nor missing.
    """
    old = replaceable(target)
    sweep(target.parent)
    temporary, descriptor = _create(target, old if old is not None or like is None else os.stat(like))
    try:
        with _locked_file(descriptor) as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            if os.name != "posix":
                file.close()  # an open file cannot be renamed there
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # makes the new name itself last; Windows cannot open a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _locked_file(descriptor: int) -> Iterator[BinaryIO]:
    with open(descriptor, "wb") as file:
        try:
            yield file
        finally:
            if not file.closed:
                unlock(descriptor)  # closing is not enough where a fork has a copy


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, for files of which it will be made; gone when the block ends, or swept later."""
    sweep(target.parent)
    folder = _temporary_name(target)
    folder.mkdir(0o700)
    descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    try:
        if descriptor is not None:
            try_lock(descriptor, wait=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            unlock(descriptor)
            os.close(descriptor)


def write_aside(
    target: Path, chunks: Iterable[bytes | memoryview], like: Path | None = None
) -> AbstractContextManager[Path]:
    """:func:`prepared` of a file that holds ``chunks``."""
    return prepared(target, lambda file: file.writelines(chunks), like)


def write_whole(path: str | os.PathLike[str], nbytes: int, content: Iterable[bytes | memoryview]) -> None:
    """A file at the path, whole or not at all; what is a link is followed, since a rename would replace the link.

    Raises:
        OSError: it cannot be written, or what is there is no regular file; the message names the path, the bytes needed
            and the remedy.
    """
    _put(path, lambda file: file.writelines(content), f"{nbytes:,} bytes")


def fill_file(path: str | os.PathLike[str], fill: Callable[[BinaryIO], object]) -> None:
    """:func:`write_whole` of a file that ``fill`` fills, in a folder that is made if there is none."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _put(path, fill, "the file")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """:func:`fill_file` with text, in UTF-8."""
    fill_file(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """ValueError that names the file when it is not JSON."""
    try:
        with open_regular(path) as file:
            return json.loads(file.read().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from error


def _put(path: str | os.PathLike[str], fill: Callable[[BinaryIO], object], what: str) -> None:
    target = Path(os.path.realpath(path))
    replaceable(target)
    try:
        with prepared(target, fill) as temporary:
            os.replace(temporary, target)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {what} ({error.strerror or error}); nothing at the path has changed. "
            "Check that the folder exists, may be written to and has the space",
            str(path),
        ) from error


def replaceable(target: Path) -> os.stat_result | None:
    """What is known of the regular file that is to be replaced; None if there is none. OSError for anything else."""
    try:
        old = os.stat(target)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(old.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(old.st_mode) else errno.EINVAL
        told = f"only a regular file can be replaced, and this is {kind_of(old.st_mode)}: choose another path"
        raise OSError(number, told, os.fspath(target))
    return old


def _create(target: Path, old: os.stat_result | None) -> tuple[Path, int]:
    """A new file beside the target, locked: its path and a descriptor."""
    # Made by hand and not by tempfile, which would leave the file readable by its owner alone.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    while True:
        temporary = _temporary_name(target)
        descriptor = os.open(temporary, flags, 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o666 | 0o200)
        try:
            if old is not None and os.name == "posix":
                with suppress(OSError):  # the group counts, since mode bits say what it may do
                    os.fchown(descriptor, -1, old.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            if not try_lock(descriptor, wait=True) or temporary.exists():
                return temporary, descriptor
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        os.close(descriptor)  # taken for one that was left behind, between the two steps


def _temporary_name(target: Path) -> Path:
    name = f".{target.name[:MAX_NAME_CHARS]}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    return target.with_name(name)


def sweep(folder: Path) -> None:
    """Remove from a folder the unfinished files, and folders of such, of processes that have died."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            named = TEMPORARY.fullmatch(entry.name)
            if named and _is_abandoned(entry.path, named[1], named[2]):
                with suppress(OSError):
                    shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)


def being_written(folder: Path) -> bool:
    """Whether a process is writing a file in the folder."""
    try:
        with os.scandir(folder) as entries:
            unfinished = [(entry.path, named) for entry in entries if (named := TEMPORARY.fullmatch(entry.name))]
    except OSError:
        return False
    return any(not _is_abandoned(path, named[1], named[2]) for path, named in unfinished)


def _is_abandoned(path: str, host: str | None, pid: str | None) -> bool:
    """Whether nobody writes to an unfinished file any more; False where that cannot be told."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) and not (stat.S_ISDIR(status.st_mode) and host is not None):
            return False
        if host != _host() and time.time() - status.st_mtime < ABANDONED_SECONDS:
            return False  # of another machine, whose locks may not show here, or of an older version, without a lock
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        locked = try_lock(descriptor, wait=False)
        if locked is not None:
            return locked
        return host == _host() and pid is not None and not _lives(int(pid))
    finally:
        os.close(descriptor)


def _lives(pid: int) -> bool:
    if os.name != "posix":
        return True  # there an open file cannot be removed, but this would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, opened to be read. Raises OSError for a FIFO, a device or a socket instead of waiting for it."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder is refused by open
        raise OSError(errno.EINVAL, f"expected a regular file, this is {kind_of(mode)}", os.fspath(path))
    return open(path, "rb")


def kind_of(mode: int) -> str:
    """What a file is that is not regular."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")
