"""Whole files: readers see the old content or the new one, and never a part of either.

A file is written aside (:mod:`mgqe.files.aside`) and renamed once its content is on the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from mgqe.files.aside import aside_file
from mgqe.files.regular import open_regular, require_replaceable


def write_aside(
    target: Path, chunks: Iterable[bytes | memoryview], like: Path | None = None
) -> AbstractContextManager[Path]:
    """:func:`aside_file` with ``chunks``."""
    return aside_file(target, lambda file: file.writelines(chunks), like)


def write_whole(path: str | os.PathLike[str], nbytes: int, content: Iterable[bytes | memoryview]) -> None:
    """Write a whole file to the path. A link is followed, since a rename would replace the link itself.

    Raises:
        OSError: the file cannot be written, or the path holds something other than a regular file; the message names
            the path, the bytes needed and the remedy.
    """
    _replace(path, lambda file: file.writelines(content), f"{nbytes:,} bytes")


def fill_file(path: str | os.PathLike[str], fill: Callable[[BinaryIO], object]) -> None:
    """Write a whole file with the content that ``fill`` writes to it; its folder is made if there is none."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _replace(path, fill, "the file")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a whole file of text in UTF-8; its folder is made if there is none."""
    fill_file(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: Path, content: Any) -> None:
    """Write a whole file of indented JSON; its folder is made if there is none."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a file of JSON; ValueError names the file if it is none."""
    try:
        with open_regular(path) as file:
            return json.loads(file.read().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from error


def _replace(path: str | os.PathLike[str], fill: Callable[[BinaryIO], object], what: str) -> None:
    target = Path(os.path.realpath(path))
    require_replaceable(target)
    state = "nothing at the path has changed. Check that the folder exists, may be written to and has the space"
    try:
        with aside_file(target, fill) as aside:
            os.replace(aside, target)
            state = (
                "the new content is at the path, but may not outlast a power cut: check the disk, and write it again"
            )
    except OSError as error:
        raise OSError(error.errno, f"could not write {what} ({error.strerror or error}); {state}", str(path)) from error
