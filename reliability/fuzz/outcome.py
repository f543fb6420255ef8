"""The outcome of loading and using one damaged artefact."""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from reliability.fuzz.build import Artefact, Files
from reliability.fuzz.mutations import FIFO, FOLDER

OUTCOMES = ("refused", "identical", "warned", "different", "unclear", "memory", "crash", "hang")
MAX_MESSAGE = 2000  # characters; a message must not repeat a whole file
BAD = ("warned", "different", "unclear", "memory", "crash", "hang")


@dataclass(frozen=True)
class Outcome:
    """An outcome.

    Attributes:
        name: one of :data:`OUTCOMES`.
        message: the error or warning.
    """

    name: str
    message: str = ""


def write_files(folder: Path, files: Files) -> None:
    """Make a folder with these files alone. Each is a new file, since an old one may still be mapped into memory."""
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
    """Load and use damaged files, and compare the result with that of the whole files.

    refused: a ValueError or OSError that names the folder or a file in it, and is not too long. identical: the same
    result. warned: another result, and a warning that names a file. different: another result without a warning.
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
    warned = [str(warning.message) for warning in caught if str(folder) in str(warning.message)]
    return Outcome("warned", warned[0]) if warned else Outcome("different")


def _judge_error(error: Exception, folder: Path) -> Outcome:
    message = f"{type(error).__name__}: {error}"
    if "allocate memory" in message:
        return Outcome("memory", message)
    # load_model raises TypeError for a model of another class.
    other_class = isinstance(error, TypeError) and "holds a model of class" in message
    is_expected_type = isinstance(error, (ValueError, OSError)) or other_class
    clear = is_expected_type and str(folder) in message and len(message) <= MAX_MESSAGE
    return Outcome("refused" if clear else "unclear", message[:MAX_MESSAGE])
