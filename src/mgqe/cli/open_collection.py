"""What the commands that ask a collection take: its folder, or a table with its id map, or the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import mgqe
from mgqe.cli.artefacts import artefact_at
from mgqe.collection import Collection
from mgqe.collection.folder import MANIFEST, is_collection
from mgqe.ids import IdMap
from mgqe.table.sharded import INDEX

Folder = Annotated[
    Path, typer.Argument(help="A collection, as `mgqe compress` writes it; or a table's file or folder of shards.")
]
Ids = Annotated[
    Path | None, typer.Option("--ids", help="Of a table, the id map of its rows. Without, rows have their numbers.")
]


Users = Annotated[
    Path | None,
    typer.Option(
        help="A collection with the vectors of queries' ids. Of a run's folder, its users; else FOLDER itself."
    ),
]
TABLES = ("table", "shards", "collection")  # what has rows to look up, as a kind of artefact
RUN_ITEMS, RUN_USERS = "item", "user"  # the collections in the folder of a run


def open_pair(folder: Path, ids: Path | None, users: Path | None) -> tuple[Collection, Collection]:
    """The collection that is asked, and the one that has the vectors of queries' ids; of a run, its items and users.

    Raises as :func:`open_collection`.
    """
    if is_collection(folder / RUN_ITEMS) and not is_collection(folder):
        folder, users = folder / RUN_ITEMS, users or folder / RUN_USERS
    items = open_collection(folder, ids)
    return items, items if users is None else open_collection(users)


def open_collection(path: Path, ids: Path | None = None) -> Collection:
    """The collection at a path.

    Args:
        path: a collection's folder; a folder with one collection in it, such as a run's; a table's file, or a folder of
            shards.
        ids: the file of an id map, of a table.

    Raises ValueError for anything else, and OSError; the message names what can be asked in the folder.
    """
    if path.is_file() and artefact_at(path).kind not in TABLES:
        raise ValueError(f"{path}: expected a collection or a table; `mgqe compress` makes a collection of a matrix")
    if path.is_file() or (path / INDEX).is_file():
        return Collection(mgqe.load(path), None if ids is None else IdMap.load(ids))
    if ids is not None:
        raise ValueError(f"--ids goes with a table, and {path} is a folder: a collection has its ids")
    if is_collection(path):
        return Collection.load(path)
    inside = sorted(each.parent for each in path.glob(f"*/{MANIFEST}"))
    if len(inside) == 1:
        return Collection.load(inside[0])
    if found := inside or sorted(path.glob("*.mgqe.safetensors")):
        what = "several collections" if inside else "no collection, but tables"
        raise ValueError(f"{path} holds {what}: name one of {', '.join(map(str, found))}")
    return Collection.load(path)  # which says what is missing


def as_id(items: Collection, text: str) -> Any:
    """What a user typed as an id of the collection's kind."""
    kind = "int64" if items.ids is None else items.ids.kind
    if kind == "string":
        return text
    if kind == "binary":
        return text.encode()
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"the collection's ids are whole numbers, got {text!r}") from None
