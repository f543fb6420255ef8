"""The command convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import mgqe
from mgqe.cli.artefacts import Artefact, artefact_at
from mgqe.cli.open_collection import open_collection
from mgqe.cli.terminal import clean_errors, output, say
from mgqe.collection import Collection
from mgqe.convert.faiss_files import ENDINGS, INTEGERS, is_faiss_file, read_faiss_file, write_faiss_file
from mgqe.convert.folder import rewrite_model
from mgqe.convert.read import read_model
from mgqe.files.destination import check_file, check_folder
from mgqe.ids import IdMap

commands = typer.Typer()


@commands.command(
    help="Write an artefact in the present format, or as a faiss index, or make a collection of one.\n\n"
    "A table, folder of shards, id map, collection or model of an older format version is read and written in the "
    "present one, with checksums; shards and appended ids become one file. If OUT ends with .faiss or .index, a table "
    "or collection is written as a faiss index of the same codes. A file that faiss wrote (an IndexPQ, also one behind "
    "a rotation or with ids) becomes a collection with the same codes. Nothing is trained.",
    epilog="Examples:\n\n"
    "  mgqe convert old.safetensors --out new.safetensors\n\n"
    "  mgqe convert items --out items.faiss\n\n"
    "  mgqe convert items.faiss --out items",
)
@clean_errors
def convert(
    source: Annotated[Path, typer.Argument(help="What to convert.")],
    out: Annotated[Path, typer.Option(help="The file or folder to write; where SOURCE is, it is replaced.")],
) -> None:
    if is_faiss_file(source):
        check_folder(out)
        nbytes, what = read_faiss_file(source).save(out), "a collection of a faiss index"
    elif out.suffix.lower() in ENDINGS:
        check_file(out)
        items = open_collection(source)
        nbytes, what = write_faiss_file(items, out), "a faiss index"
        if items.ids is not None and items.ids.kind != INTEGERS:
            say(f"faiss holds ids of int64 alone: {out} answers with row numbers, whose ids {source} has")
    else:
        artefact = artefact_at(source)
        nbytes, what = _rewrite(artefact, out), f"{artefact}, in the present version"
    output.print(f"{out}: {what}, {nbytes:,} bytes", highlight=False, markup=False, soft_wrap=True)


def _rewrite(artefact: Artefact, out: Path) -> int:
    """Write an artefact in the present version, and return its bytes."""
    path = artefact.path
    if artefact.kind in ("collection", "model"):
        check_folder(out)
        return (
            Collection.load(path).save(out)
            if artefact.kind == "collection"
            else rewrite_model(read_model(path, True), out)
        )
    if artefact.kind in ("table", "shards", "id map"):
        check_file(out)
        return IdMap.load(path).save(out) if artefact.kind == "id map" else mgqe.save(mgqe.load(path), out)
    if artefact.kind == "counts":
        raise ValueError(
            f"{path}: an array is no artefact that has versions: `mgqe compress` makes a table of a matrix"
        )
    raise ValueError(
        f"{path} is {artefact}, whose files belong together: convert one of its tables, into another folder"
    )
