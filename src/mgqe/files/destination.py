"""Whether a command can write where it is told to, asked before its work and without writing anything."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path


def check_folder(folder: Path, option: str = "--out") -> None:
    """ValueError unless files can be written in `folder`, or it can be made; nothing is written to find out."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise ValueError(f"{option}: {there} is no folder: choose another {option}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: nothing can be written in {there.absolute()}: choose another {option}")


def check_file(path: Path, option: str = "--out") -> None:
    """ValueError unless a file can be written at `path`, in a folder that is there."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise ValueError(f"{option}: there is no folder {folder}: make it first")
    if path.is_dir():
        raise ValueError(f"{option}: {path} is a folder: name a file in it, such as {path / 'ids.safetensors'}")
    check_folder(folder, option)


def refuse_other_files(folder: Path, is_own: Callable[[str], bool]) -> None:
    """FileExistsError if a folder holds files by names that are not its own, since files that it no longer needs go."""
    others = sorted(name for name in os.listdir(folder) if not is_own(name))
    if others:
        raise FileExistsError(
            errno.EEXIST, f"it holds other files ({', '.join(others[:3])}): choose an empty folder", os.fspath(folder)
        )
