"""The command verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mgqe.cli.artefacts import artefact_at, artefacts_in
from mgqe.cli.counts_files import load_counts
from mgqe.cli.terminal import AsJson, clean_errors, errors, make_progress, output
from mgqe.convert.verification import Verification, verification
from mgqe.files.container import NO_CHECKSUMS, ArtifactError

MIB = 1 << 20
commands = typer.Typer()


@commands.command(
    help="Compare files with their checksums: whether they are unchanged since they were written.\n\n"
    "Takes what inspect takes, and any folder with such files: a table with what was appended to it, a folder of "
    "shards, an id map, a collection, a run, a model, a study. Counts have no checksums, and are read to their end. "
    "Says which file, tensor and block is damaged. Exit status: 0 if nothing is, 1 if something is, 2 if nothing can "
    "be read.",
    epilog="Examples:\n\n  mgqe verify items\n\n  mgqe verify items.safetensors\n\n  mgqe verify run --json",
)
@clean_errors
def verify(
    path: Annotated[Path, typer.Argument(help="A file or folder that mgqe wrote.")], as_json: AsJson = False
) -> None:
    what = _what(path)
    if what == "counts":
        load_counts(path)
        result = Verification((path,), path.stat().st_size, (path,), ())
    else:
        with make_progress() as progress:
            task = progress.add_task("MiB", total=1, detail="")
            result = verification(path, lambda done, of: progress.update(task, completed=done / MIB, total=of / MIB))
    if as_json:
        print(json.dumps({"path": str(path), "artefact": what, **_as_json(result)}, indent=1))
    else:
        _show(path, what, result)
    if result.damage:
        raise typer.Exit(1)


def _what(path: Path) -> str:
    """What is at a path. Raises ValueError, or OSError, for what cannot be verified."""
    try:
        return str(artefact_at(path))
    except ArtifactError:  # which verification tells of in full
        return "a damaged file"
    except ValueError:
        if path.is_dir() and artefacts_in(path):
            return "a folder of several artefacts"
        raise


def _show(path: Path, what: str, result: Verification) -> None:
    output.print(f"{path}: {what}; {_summary(result)}", markup=False, highlight=False, soft_wrap=True)
    for file in result.without_checksums:
        line = "counts have no checksums" if what == "counts" else NO_CHECKSUMS
        output.print(f"{file}: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for line in result.damage:
        errors.print(line, style="red", markup=False, highlight=False, soft_wrap=True)


def _as_json(result: Verification) -> dict[str, object]:
    names = {"files": result.files, "without_checksums": result.without_checksums}
    listed = {name: [str(file) for file in files] for name, files in names.items()}
    return {**listed, "nbytes": result.nbytes, "damage": list(result.damage)}


def _summary(result: Verification) -> str:
    compared = len(result.files) - len(result.without_checksums)
    what = f"{compared} file{'s'[: compared != 1]} compared with {'their' if compared != 1 else 'its'} checksums"
    without = f", {len(result.without_checksums)} without any" if result.without_checksums else ""
    return f"{what}{without}, {result.nbytes:,} bytes; " + (
        f"{len(result.damage)} damaged or missing" if result.damage else "nothing is damaged"
    )
