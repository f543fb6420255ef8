"""Tables in files that somebody has opened: anything with ``write`` or ``read`` of bytes."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable
from typing import Any, BinaryIO

PathOrFile = str | os.PathLike[str] | BinaryIO


def write_to(file: BinaryIO, chunks: Iterable[bytes | memoryview]) -> None:
    """Write all chunks where the file is. Raises TypeError for a file of text, and for what is no file."""
    _need(file, "write")
    for chunk in chunks:
        rest = memoryview(chunk)
        while len(rest):
            try:
                count: Any = file.write(rest)
            except TypeError as error:
                raise TypeError(
                    f"{file_name(file)}: expected a file that is open for bytes, mode 'wb' ({error})"
                ) from error
            rest = rest[_taken(file, count, len(rest)) :]  # an unbuffered file may take less than all


def _taken(file: BinaryIO, count: int | None, size: int) -> int:
    """How many bytes a file took of so many. Raises OSError where it takes none, as a pipe that does not wait may."""
    if count is None and not isinstance(file, io.RawIOBase):  # somebody's own class, which says nothing
        return size
    if not count:
        raise BlockingIOError(errno.EAGAIN, "the file takes no more bytes: open it so that it waits", file_name(file))
    return count


def read_from(file: BinaryIO) -> bytes:
    """All bytes from where the file is to its end. Raises TypeError for a file of text, and for what is no file."""
    _need(file, "read")
    try:
        content: Any = file.read()
    except UnicodeDecodeError as error:
        raise TypeError(f"{file_name(file)}: expected a file that is open for bytes, mode 'rb' ({error})") from error
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"{file_name(file)}: expected a file that is open for bytes, mode 'rb', but read {type(content).__name__}"
        )
    return bytes(content)


def _need(file: object, method: str) -> None:
    if not hasattr(file, method):
        raise TypeError(f"expected a path or an open file, got {type(file).__name__}")


def file_name(file: object) -> str:
    """What errors call an open file."""
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else f"<{type(file).__name__}>"
