"""The command verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mgqe.cli.terminal import clean_errors, errors, make_progress, output
from mgqe.convert.verification import Verification, verification
from mgqe.files.container import NO_CHECKSUMS

MIB = 1 << 20
commands = typer.Typer()


@commands.command(
    help="Compare files with their checksums: whether they are unchanged since they were written.\n\n"
    "Reads a table with what was appended to it, a folder of shards, an id map, or all of these in a folder, such as a "
    "run's or a model's. Says which file, tensor and block is damaged. Exit status: 0 if nothing is, 1 if "
    "something is, 2 if nothing can be read.",
    epilog="Examples:\n\n  mgqe verify items.safetensors\n\n  mgqe verify run",
)
@clean_errors
def verify(path: Annotated[Path, typer.Argument(help="A file that mgqe wrote, or a folder.")]) -> None:
    with make_progress() as progress:
        task = progress.add_task("MiB", total=1, detail="")
        result = verification(path, lambda done, of: progress.update(task, completed=done / MIB, total=of / MIB))
    for file in result.without_checksums:
        output.print(f"{file}: {NO_CHECKSUMS}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for line in result.damage:
        errors.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    output.print(f"{path}: {_summary(result)}", markup=False, highlight=False, soft_wrap=True)
    if result.damage:
        raise typer.Exit(1)


def _summary(result: Verification) -> str:
    compared = len(result.files) - len(result.without_checksums)
    what = f"{compared} file{'s'[: compared != 1]} compared with {'their' if compared != 1 else 'its'} checksums"
    without = f", {len(result.without_checksums)} without any" if result.without_checksums else ""
    return f"{what}{without}, {result.nbytes:,} bytes; " + (
        f"{len(result.damage)} damaged or missing" if result.damage else "nothing is damaged"
    )
