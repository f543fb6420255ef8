"""Regular files: they are read and replaced, and a FIFO, a device or a socket is refused."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for a FIFO, a device or a socket instead of waiting for it."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # open itself refuses a folder
        raise OSError(errno.EINVAL, f"expected a regular file, this is {_file_type(mode)}", os.fspath(path))
    return open(path, "rb")


def require_replaceable(target: Path) -> os.stat_result | None:
    """The status of the regular file that is to be replaced; None if there is none. OSError for anything else."""
    try:
        old_status = os.stat(target)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(old_status.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(old_status.st_mode) else errno.EINVAL
        message = (
            f"only a regular file can be replaced, and this is {_file_type(old_status.st_mode)}: choose another path"
        )
        raise OSError(number, message, os.fspath(target))
    return old_status


def _file_type(mode: int) -> str:
    """The type of a file that is not regular, as an error names it."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")
