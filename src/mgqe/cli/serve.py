"""The command serve."""

from __future__ import annotations

from typing import Annotated

import typer

from mgqe.cli.open_collection import Folder, Ids, Users, open_pair
from mgqe.cli.terminal import clean_errors, output

commands = typer.Typer()


@commands.command(
    help="Answer look-ups and top-K over HTTP, as JSON, in the ids of a collection.\n\n"
    'GET /health says what is served. POST /lookup takes {"ids": [...]}. POST /topk takes {"ids": [...]} or '
    '{"vectors": [[...], ...]}, and also k, exclude and candidates (one list, or one per query) and score (dot or '
    'cosine). Errors are {"error": "..."} with a status of 400 or more.\n\n'
    "There is neither authentication nor encryption: put a proxy that has both before it.",
    epilog="Examples:\n\n"
    "  mgqe serve items --port 8000\n\n"
    "  mgqe serve run\n\n"
    "  mgqe serve items.safetensors --ids item-ids.safetensors\n\n"
    '  curl localhost:8000/topk -d \'{"ids": ["shoe-17"], "k": 5, "exclude": ["shoe-17"]}\'',
)
@clean_errors
def serve(
    folder: Folder,
    ids: Ids = None,
    users: Users = None,
    unknown: Annotated[
        str, typer.Option(help="What ids that are not there give: error, zeros or fallback. Requests may say another.")
    ] = "error",
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    workers: Annotated[
        int | None,
        typer.Option(help="Requests that are worked on at once. Default: as many as there are cores.", min=1),
    ] = None,
    max_k: Annotated[int, typer.Option(help="The largest k of a request.", min=1)] = 1000,
    max_queries: Annotated[int, typer.Option(help="The most ids or vectors of a request.", min=1)] = 256,
) -> None:
    from mgqe import server  # whose packages other commands do without

    items, asked = open_pair(folder, ids, users)
    limits = {"max_k": max_k, "max_queries": max_queries, "workers": workers}
    app = server.make_app(items, asked, unknown=unknown, **limits)  # type: ignore[arg-type]
    shape = f"{len(items):,} ids x {items.table.embedding_dim} dimensions"
    server.serve(
        app, host, port, lambda at: output.print(f"{folder}: {shape}, at {at}", highlight=False, soft_wrap=True)
    )
