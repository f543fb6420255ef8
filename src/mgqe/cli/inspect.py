"""The command inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import mgqe
from mgqe.cli.artefacts import Artefact, artefact_at
from mgqe.cli.inspections import inspection_of
from mgqe.cli.packages import missing_packages
from mgqe.cli.terminal import AsJson, clean_errors, output
from mgqe.collection.folder import table_of
from mgqe.files.atomic import fill_file

commands = typer.Typer()


@commands.command(
    help="Say what a file or folder of mgqe is, and what is in it.\n\n"
    "Takes tables, folders of shards, id maps, collections, the folders of runs, models and studies, and counts. Of a "
    "table: bytes by part, tiers, bits per code, how much of the codebook is in use.",
    epilog="Examples:\n\n  mgqe inspect items\n\n  mgqe inspect run\n\n"
    "  mgqe inspect run/item.mgqe.safetensors --plot bits.png\n\n  mgqe inspect items --json",
)
@clean_errors
def inspect(
    path: Annotated[Path, typer.Argument(help="A file or folder that mgqe wrote, or .npy counts.")],
    plot: Annotated[
        Path | None,
        typer.Option(help="Of a table, write a picture of the bits of each tier and coordinate to this PNG file."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    if plot is not None and missing_packages(("matplotlib",)):
        raise ImportError("inspect --plot needs matplotlib")
    artefact = artefact_at(path)
    found = inspection_of(artefact)
    if as_json:
        print(json.dumps({"path": str(path), "artefact": artefact.kind, **found.facts}, indent=1))
    else:
        output.print(f"{path}: {artefact}, {found.summary}", highlight=False, markup=False, soft_wrap=True)
        for block in found.blocks:
            if isinstance(block, str):
                output.print(block, highlight=False, markup=False, soft_wrap=True)
            else:
                output.print()
                output.print(block.terminal(output.width))
    if plot is not None:
        _draw(artefact, plot, quiet=as_json)


def _draw(artefact: Artefact, path: Path, quiet: bool) -> None:
    if artefact.kind not in ("table", "shards", "collection"):
        raise ValueError(f"--plot goes with a table, and {artefact.path} is {artefact}")
    import matplotlib

    matplotlib.use("Agg")
    file = table_of(artefact.path) if artefact.kind == "collection" else artefact.path
    figure = mgqe.plot_bits(mgqe.load(file))
    fill_file(path, lambda file: figure.savefig(file, format="png", dpi=110))
    if not quiet:
        output.print(f"picture written to {path}", highlight=False, soft_wrap=True)
