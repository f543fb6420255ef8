"""What became of one damaged artefact."""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from reliability.fuzz.build import Artefact, Files
from reliability.fuzz.mutations import FIFO, FOLDER

OUTCOMES = ("refused", "identical", "warned", "different", "unclear", "memory", "crash", "hang")
MAX_MESSAGE = 2000  # characters; a message that repeats a whole file helps nobody
BAD = ("warned", "different", "unclear", "memory", "crash", "hang")


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    name: one of :data:`OUTCOMES`.
    message: the error or warning.
    """

    name: str
    message: str = ""


def write_files(folder: Path, files: Files) -> None:
    """A folder with these files and no others. Each is a new file: an old one may still be mapped."""
    folder.mkdir(exist_ok=True)
    for entry in os.scandir(folder):
        shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
    for name, content in files.items():
        if content == FIFO:
            os.mkfifo(folder / name)
        elif content == FOLDER:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


def judge(artefact: Artefact, folder: Path, files: Files, expected: bytes) -> Outcome:
    """Load and use damaged files, and compare with what the whole ones gave.

    refused: a ValueError or OSError that names the folder or a file in it, and is not too long. identical: no
    difference. warned: another result, and a warning that names a file. different: another result, and nothing said.
    unclear: any other error.
    """
    from reliability.fuzz.use import use

    write_files(folder, files)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = use(artefact.kind, folder, artefact.checked)
        except MemoryError as error:
            return Outcome("memory", repr(error))
        except Exception as error:
            return _judge_error(error, folder)
    if result == expected:
        return Outcome("identical")
    said = [str(warning.message) for warning in caught if str(folder) in str(warning.message)]
    return Outcome("warned", said[0]) if said else Outcome("different")


def _judge_error(error: Exception, folder: Path) -> Outcome:
    message = f"{type(error).__name__}: {error}"
    if "allocate memory" in message:
        return Outcome("memory", message)
    clear = isinstance(error, (ValueError, OSError)) and str(folder) in message and len(message) <= MAX_MESSAGE
    return Outcome("refused" if clear else "unclear", message[:MAX_MESSAGE])
