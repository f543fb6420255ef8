"""Checkpoints that survive a kill at any moment: a file is whole under its name, or it does not exist."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from mgqe.files.aside import aside_file
from mgqe.files.regular import require_replaceable

LAST = "last.pt"


def save_epoch(directory: Path, state: dict[str, Any], is_best: bool) -> None:
    """Write `state`, with `state["best_epoch"]`, as the last epoch's and, if it is the best so far, as that too.

    The best epoch's file gets its name before last.pt refers to it, and the one that it replaces is removed afterwards.
    So whenever the process is killed, last.pt is whole and the best epoch that it names exists.
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
        raise ValueError(
            f"{path} is damaged ({error}); remove it, or train from the beginning with --overwrite"
        ) from error
    return state
