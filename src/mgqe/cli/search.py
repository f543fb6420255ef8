"""The commands that ask a collection: topk and neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.markup import escape

from mgqe.checks.rows import as_rows
from mgqe.cli.open_collection import Folder, Ids, Users, as_id, open_collection, open_pair
from mgqe.cli.options import Format, Header, ItemColumn, NoQuote, Quote, Separator, UserColumn
from mgqe.cli.seen import LogLayout, seen_items
from mgqe.cli.terminal import AsJson, clean_errors, output
from mgqe.cli.vector_files import read_noted
from mgqe.collection import Collection, Hits
from mgqe.recsys.study.text_table import TextTable

commands = typer.Typer()
K = Annotated[int, typer.Option("-k", help="How many to show.")]


@commands.command(
    help="Show the ids of a collection whose vectors score highest with queries.",
    epilog="Examples:\n\n"
    "  mgqe topk items --queries users.npy -k 10\n\n"
    "  mgqe topk items --users users --query-id u1 --exclude i7 --exclude i9\n\n"
    "  mgqe topk run --query-id u1 --exclude-seen clicks.csv -k 10",
)
@clean_errors
def topk(
    folder: Folder,
    ids: Ids = None,
    queries: Annotated[
        Path | None, typer.Option(help="A file of query vectors, in any format that compress reads.")
    ] = None,
    users: Users = None,
    query_id: Annotated[
        list[str] | None, typer.Option(help="An id of --users, or else of FOLDER itself; repeatable.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="An id not to show; repeatable.")] = None,
    k: K = 10,
    score: Annotated[str, typer.Option(help="dot or cosine.")] = "dot",
    exclude_seen: Annotated[
        str | None,
        typer.Option(help="A log of interactions, as `mgqe train` reads it: what a --query-id has in it is not shown."),
    ] = None,
    format: Format = None,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    separator: Separator = None,
    quote: Quote = '"',
    no_quote: NoQuote = False,
    header: Header = None,
    as_json: AsJson = False,
) -> None:
    if (queries is None) == (not query_id):
        raise ValueError("give either --queries, a file of vectors, or --query-id")
    if users is not None and not query_id:
        raise ValueError("--users goes with --query-id")
    if exclude_seen is not None and not query_id:
        raise ValueError("--exclude-seen goes with --query-id, whose items are left out")
    items, asked = open_pair(folder, ids, users)
    names: list[Any]
    if query_id:
        names = [as_id(asked, text) for text in query_id]
        vectors = _looked_up(asked, names)
    else:
        assert queries is not None
        read = read_noted(queries)
        vectors = as_rows(read.rows, str(queries)).float()
        names = list(range(len(vectors))) if read.ids is None else list(read.ids)
    left_out = [as_id(items, text) for text in exclude or ()]
    lists: Any = left_out or None
    if exclude_seen is not None:
        layout = LogLayout(format, user_column, item_column, separator, "" if no_quote else quote, header)
        lists = [[*left_out, *of_user] for of_user in seen_items(exclude_seen, names, items, layout)]
    hits = items.topk(vectors, k, exclude=lists, score=score)
    _show(names, hits, as_json)


@commands.command(
    help="Show the ids of a collection that are most similar to some of them, by cosine.",
    epilog="Examples:\n\n  mgqe neighbours items shoe-17\n\n  mgqe neighbours items shoe-17 hat-3 -k 5 --json",
)
@clean_errors
def neighbours(
    folder: Folder,
    one: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of the collection.")],
    ids: Ids = None,
    k: K = 10,
    as_json: AsJson = False,
) -> None:
    items = open_collection(folder, ids)
    names = [as_id(items, text) for text in one]
    vectors = _looked_up(items, names)
    _show(names, items.topk(vectors, k, exclude=[[name] for name in names], score="cosine"), as_json)


def _looked_up(items: Collection, names: list[Any]) -> torch.Tensor:
    known = (items.rows(names, unknown=-1) >= 0).tolist()
    if missing := [name for name, is_known in zip(names, known, strict=True) if not is_known]:
        rule = f": ids are the rows' numbers, 0 to {len(items) - 1}" if items.ids is None else ""
        raise ValueError(f"there is no id {', '.join(map(repr, missing))} in the collection{rule}")
    return items.lookup(names)


def _show(names: list[Any], hits: Hits, as_json: bool) -> None:
    scores = hits.scores.tolist()
    found = [
        {"query": _plain(name), "ids": [_plain(one) for one in ids], "scores": of_query}
        for name, ids, of_query in zip(names, hits.ids, scores, strict=True)
    ]
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for entry in found:
        table = TextTable(escape(f"{entry['query']}"), ["rank", "id", "score"], left=2)
        for rank, (one, score) in enumerate(zip(entry["ids"], entry["scores"], strict=True), 1):
            if one is not None:
                table.rows.append([str(rank), escape(str(one)), f"{score:.4f}"])
        output.print(table.terminal(output.width))


def _plain(one: Any) -> Any:
    if isinstance(one, bytes):
        return one.decode(errors="backslashreplace")
    return one.item() if isinstance(one, np.generic) else one
