"""Builds the artefacts to damage, in a separate process; every run builds the same bytes."""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reliability.fuzz.safetensors_bytes import unchecked

Files = dict[str, bytes]  # name in the artefact's folder -> content


@dataclass(frozen=True)
class Artefact:
    """An artefact to damage.

    Attributes:
        kind: "compact", "model" and so on.
        name: distinguishes artefacts of one kind.
        checked: whether its files have checksums, which those of format 1 do not.
        files: all its files.
    """

    kind: str
    name: str
    checked: bool
    files: Files


def write_all(folder: Path) -> None:
    """Build one folder per kind, which has one folder per artefact."""
    import torch

    from reliability.fuzz import artefacts, compact

    writers: dict[str, Callable[[Path], None]] = {
        "compact": compact.write_compact,
        "appended": compact.write_appended,
        "sharded": compact.write_sharded,
        "baseline": artefacts.write_baselines,
        "id map": artefacts.write_id_maps,
        "model": artefacts.write_models,
        "run": artefacts.write_runs,
    }
    counter = itertools.count(1)
    secrets.token_hex = lambda nbytes=None: (
        f"{next(counter):0{2 * (nbytes or 8)}x}"
    )  # gives the same names in every run
    torch.set_num_threads(1)
    for kind, write in writers.items():
        (folder / kind).mkdir()
        write(folder / kind)


def build(folder: Path) -> list[Artefact]:
    """Build all artefacts below ``folder`` and read them: first those with checksums, then those of format 1."""
    # polars and training start threads, which this process must not have because it forks.
    command = [sys.executable, "-m", "reliability.fuzz.build", str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"})
    folders = [folder for kind in sorted(folder.iterdir()) if kind.is_dir() for folder in sorted(kind.iterdir())]
    format_2 = [Artefact(folder.parent.name, folder.name, True, read_files(folder)) for folder in folders]
    format_1 = [Artefact(f"{a.kind}, format 1", a.name, False, unchecked(a.files)) for a in format_2]
    return format_2 + format_1


def read_files(folder: Path) -> Files:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
