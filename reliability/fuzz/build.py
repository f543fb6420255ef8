"""Every artefact that is damaged: built in a process of its own, the same bytes in every run."""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reliability.fuzz.raw import unchecked

Files = dict[str, bytes]  # name in the artefact's folder -> content


@dataclass(frozen=True)
class Artefact:
    """Attributes:
    kind: what it is, "compact" and so on.
    name: which of them.
    checked: its files record checksums; those of format 1 do not.
    files: all of it.
    """

    kind: str
    name: str
    checked: bool
    files: Files


def write_all(folder: Path) -> None:
    """Build one folder per kind, with one folder per artefact in it."""
    import torch

    from reliability.fuzz import compact, others

    writers: dict[str, Callable[[Path], None]] = {
        "compact": compact.write_compact,
        "appended": compact.write_appended,
        "sharded": compact.write_sharded,
        "baseline": others.write_baselines,
        "id map": others.write_id_maps,
        "model": others.write_models,
        "run": others.write_runs,
    }
    counter = itertools.count(1)
    secrets.token_hex = lambda nbytes=None: f"{next(counter):0{2 * (nbytes or 8)}x}"  # names that a run can repeat
    torch.set_num_threads(1)
    for kind, write in writers.items():
        (folder / kind).mkdir()
        write(folder / kind)


def build(folder: Path) -> list[Artefact]:
    """Build everything under ``folder`` and read it: the kinds with checksums, then those of format 1."""
    # polars and training start threads, which this process must not have: it forks.
    command = [sys.executable, "-m", "reliability.fuzz.build", str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"})
    made = [
        Artefact(kind.name, place.name, True, read_files(place))
        for kind in sorted(folder.iterdir())
        if kind.is_dir()
        for place in sorted(kind.iterdir())
    ]
    old = [
        Artefact(f"{artefact.kind}, format 1", artefact.name, False, unchecked(artefact.files))
        for artefact in made
        if artefact.kind not in ("model", "run")
    ]
    return made + old


def read_files(folder: Path) -> Files:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
