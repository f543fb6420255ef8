"""Checkpoints that survive a kill at any moment: a file is whole and in place, or it is not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mgqe.files.atomic import aside_file, open_regular, require_replaceable, write_text

LAST, LOCK = "last.pt", ".lock"


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


def save_epoch(directory: Path, state: dict[str, Any], is_best: bool) -> None:
    """Write `state`, with `state["best_epoch"]`, as the last epoch's and, if it is the best so far, as that too.

    The best one gets its own name before the last one points at it, and the one it replaces goes afterwards, so
    that whatever the moment of a kill, last.pt is whole and its best epoch is there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    best = best_path(directory, state["best_epoch"])
    with aside_file(directory / LAST, lambda file: torch.save(state, file)) as temporary:
        if is_best:
            require_replaceable(best)
            best.unlink(missing_ok=True)
            try:
                os.link(temporary, best)  # the same bytes under a second name
            except OSError:
                shutil.copyfile(temporary, best)
        os.replace(temporary, directory / LAST)
    for old in directory.glob("best-*.pt"):
        if old != best:
            old.unlink(missing_ok=True)


def best_path(directory: Path, epoch: int) -> Path:
    """Where the best epoch's state lies."""
    return directory / f"best-{epoch}.pt"


def load_state(path: Path) -> dict[str, Any] | None:
    """A state that `save_epoch` wrote, or None where there is none. Weights only: no code is run."""
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        raise ValueError(f"{path} is damaged ({error}); remove it, or start afresh with --overwrite") from error
    return state


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


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold `directory` for one process; others wait. A kill lets go of it. Does nothing where flock is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (directory / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
