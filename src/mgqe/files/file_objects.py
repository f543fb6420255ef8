"""File objects, which users open: anything with ``write`` or ``read`` of bytes."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable
from typing import Any, BinaryIO

PathOrFile = str | os.PathLike[str] | BinaryIO


def write_to(file: BinaryIO, chunks: Iterable[bytes | memoryview]) -> None:
    """Write all chunks at the file's position. Raises TypeError for a text file and for what is no file."""
    _require_method(file, "write")
    for chunk in chunks:
        rest = memoryview(chunk)
        while len(rest):
            try:
                count: Any = file.write(rest)
            except TypeError as error:
                raise TypeError(
                    f"{file_name(file)}: expected a file that is open for bytes, mode 'wb' ({error})"
                ) from error
            rest = rest[_num_written(file, count, len(rest)) :]  # an unbuffered file may take less than all


def _num_written(file: BinaryIO, count: int | None, size: int) -> int:
    """How many of ``size`` bytes a file took, from what its ``write`` returned.

    Raises BlockingIOError if it took none, as a non-blocking pipe may.
    """
    if count is None and not isinstance(file, io.RawIOBase):  # a user's class whose write returns nothing
        return size
    if not count:
        raise BlockingIOError(errno.EAGAIN, "the file takes no more bytes: open it in blocking mode", file_name(file))
    return count


def read_from(file: BinaryIO) -> bytes:
    """All bytes from the file's position to its end. Raises TypeError for a text file and for what is no file."""
    _require_method(file, "read")
    try:
        content: Any = file.read()
    except UnicodeDecodeError as error:
        raise TypeError(f"{file_name(file)}: expected a file that is open for bytes, mode 'rb' ({error})") from error
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"{file_name(file)}: expected a file that is open for bytes, mode 'rb', but read {type(content).__name__}"
        )
    return bytes(content)


def _require_method(file: object, method: str) -> None:
    if not hasattr(file, method):
        raise TypeError(f"expected a path or an open file, got {type(file).__name__}")


def file_name(file: object) -> str:
    """The name of an open file in errors."""
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else f"<{type(file).__name__}>"
