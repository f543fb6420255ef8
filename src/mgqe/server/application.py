"""The application: look-ups and top-K of a collection as JSON."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mgqe.collection import Collection
from mgqe.server.answers import HANDLED, answer, refuse
from mgqe.server.protocol import SECONDS
from mgqe.server.requests import kind_of, lookup_request, topk_request
from mgqe.server.servable import check_servable
from mgqe.server.workers import Workers, body_of


def make_app(
    items: Collection,
    users: Collection | None = None,
    *,
    unknown: str = "error",
    max_k: int = 1000,
    max_queries: int = 256,
    max_body: int = 1 << 20,
    max_waiting: int = 100,
    seconds: float = SECONDS,
    workers: int | None = None,
) -> Starlette:
    """An ASGI application of a collection.

    Args:
        items: what is looked up and found.
        users: whose vectors are the queries of ``{"ids": [...]}``; by default those of the items.
        unknown: the rule for ids that are not there, where a request names none: "error", "zeros" or "fallback".
        max_k, max_queries, max_body: limits of a request: k, ids or vectors, and bytes.
        max_waiting: requests that may wait for a thread.
        seconds: the time that a request's body may take.
        workers: threads; by default as many as there are cores.

    Raises:
        TypeError, ValueError: a collection that cannot be served; the message names the remedy.
    """
    users = items if users is None else users
    check_servable(items, users, unknown)
    lookups, searches = (
        lookup_request(items, max_queries, unknown),
        topk_request(items, users, max_k, max_queries, unknown),
    )
    threads = Workers(workers or os.cpu_count() or 1, max_waiting)

    def lookup(body: bytes) -> Response:
        asked = lookups.model_validate_json(body)
        return answer({"vectors": items.lookup(asked.ids, asked.unknown).numpy()})

    def topk(body: bytes) -> Response:
        asked = searches.model_validate_json(body)
        if (asked.vectors is None) == (asked.ids is None):
            raise ValueError("give either vectors or ids")
        queries = torch.tensor(asked.vectors) if asked.ids is None else users.lookup(asked.ids, asked.unknown)
        options = {"exclude": asked.exclude, "candidates": asked.candidates, "score": asked.score}
        hits = items.topk(queries, asked.k, **options)
        counts = [len(ids) - ids.count(None) for ids in hits.ids]  # fewer than k where exclusions leave fewer
        scores = [row[:n] for row, n in zip(hits.scores.numpy(), counts, strict=True)]
        return answer({"ids": [ids[:n] for ids, n in zip(hits.ids, counts, strict=True)], "scores": scores})

    def post(path: str, work: Callable[[bytes], Response]) -> Route:
        async def run(request: Request) -> Response:
            return await threads.run(request, work, await body_of(request, max_body, seconds))

        return Route(path, run, methods=["POST"])

    async def health(_: Request) -> Response:
        shape = {"num_embeddings": len(items), "embedding_dim": items.table.embedding_dim}
        return answer({"status": "ok", **shape, "ids": kind_of(items)})

    routes = [Route("/health", health), post("/lookup", lookup), post("/topk", topk)]
    return Starlette(routes=routes, exception_handlers=dict.fromkeys(HANDLED, refuse))
