"""A server of look-ups and top-K from a saved table: pip install "mgqe[serve]"

python examples/serve_topk.py items.safetensors --port 8000     (without a file: a table of random codes)
curl localhost:8000/topk -d '{"ids": [3, 5], "k": 4, "exclude": [[3], [5, 9]]}'
"""

import argparse
import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import orjson
import torch
import uvicorn
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

import mgqe

SECONDS = 10.0  # the time that a client may take to send a request
Id = Annotated[int, Field(ge=0, lt=2**63)]


def answer(content: dict[str, Any], status: int = 200, headers: Any = None) -> Response:
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, media_type="application/json")


def refuse(_: Request, error: Exception) -> Response:
    """The library's message for an error of the caller; for any other error only that it happened."""
    if isinstance(error, HTTPException):
        return answer({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, ValidationError):
        found = error.errors()[:10]
        return answer({"error": "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in found)}, 422)
    status = {IndexError: 404, ValueError: 400, TypeError: 400}.get(type(error), 500)
    return answer({"error": "internal error" if status == 500 else str(error)}, status)


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which closes a connection if its request has no complete head after some time."""

    seconds = SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.too_late = self.loop.call_later(self.seconds, transport.close)

    def on_message_begin(self) -> None:  # the first bytes of a request
        super().on_message_begin()
        self.too_late.cancel()
        self.too_late = self.loop.call_later(self.seconds, self.transport.close)

    def on_headers_complete(self) -> None:
        self.too_late.cancel()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self.too_late.cancel()
        super().connection_lost(exc)


class Workers:
    """One thread per core, each with one request and without the GIL, behind a queue of limited length."""

    def __init__(self, number: int, max_waiting: int) -> None:
        self.pool = ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,))
        self.free, self.places = asyncio.Semaphore(number), number + max_waiting

    async def run(self, request: Request, work: Callable[[bytes], Response], body: bytes) -> Response:
        if not self.places:
            raise HTTPException(503, "too many requests are waiting: try again later", {"retry-after": "1"})
        self.places -= 1
        try:
            async with self.free:
                if await request.is_disconnected():  # the answer would not be read
                    raise ClientDisconnect
                return await asyncio.get_running_loop().run_in_executor(self.pool, work, body)
        finally:
            self.places += 1


async def body_of(request: Request, max_body: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_body:
            raise HTTPException(413, f"the body must have at most {max_body:,} bytes")
    return bytes(body)


def make_app(
    table: mgqe.CompactTable,
    max_k: int = 1000,
    max_queries: int = 256,
    max_body: int = 1 << 20,
    max_waiting: int = 100,
    seconds: float = SECONDS,
    number: int | None = None,
) -> Starlette:
    """The application, with ``seconds`` for a request's body and ``number`` workers, by default one per core."""
    if not isinstance(table, mgqe.CompactTable):
        raise TypeError(f"expected a table of codes, got {type(table).__name__}")
    workers = Workers(number or os.cpu_count() or 1, max_waiting)

    class Lookup(BaseModel, extra="forbid", strict=True):  # a misspelt field is an error, not a default
        ids: list[Id] = Field(max_length=max_queries)

    class TopK(BaseModel, extra="forbid", strict=True):
        vectors: list[list[float]] | None = Field(None, max_length=max_queries)  # queries by vector,
        ids: list[Id] | None = Field(None, max_length=max_queries)  # or by the vectors of these ids
        k: int = Field(10, le=max_k)
        exclude: list[Id] | list[list[Id]] = []  # ids for all queries, or one list per query

    def lookup(body: bytes) -> Response:
        asked = Lookup.model_validate_json(body)
        return answer({"vectors": table.lookup(torch.tensor(asked.ids).long()).numpy()})

    def topk(body: bytes) -> Response:
        asked = TopK.model_validate_json(body)
        if (asked.vectors is None) == (asked.ids is None):
            raise ValueError("give either vectors or ids")
        queries = torch.tensor(asked.vectors) if asked.ids is None else table.lookup(torch.tensor(asked.ids).long())
        lists = [torch.tensor(ids).long() for ids in asked.exclude if isinstance(ids, list)]
        found = table.topk(queries, asked.k, exclude=lists or torch.tensor(asked.exclude).long())
        counts = (found.ids >= 0).sum(dim=1).tolist()  # fewer than k where exclusions leave fewer
        return answer({name: [row[:n] for row, n in zip(t.numpy(), counts)] for name, t in found._asdict().items()})

    def post(path: str, work: Callable[[bytes], Response]) -> Route:
        async def run(request: Request) -> Response:
            try:
                body = await asyncio.wait_for(body_of(request, max_body), seconds)
            except asyncio.TimeoutError:
                late = f"the body did not come within {seconds:g} s"
                raise HTTPException(408, late, {"connection": "close"}) from None
            return await workers.run(request, work, body)

        return Route(path, run, methods=["POST"])

    async def health(_: Request) -> Response:
        return answer({"status": "ok", "rows": table.num_embeddings, "dim": table.embedding_dim})

    kinds = (HTTPException, ClientDisconnect, ValueError, TypeError, IndexError, Exception)
    routes = [Route("/health", health), post("/lookup", lookup), post("/topk", topk)]
    return Starlette(routes=routes, exception_handlers=dict.fromkeys(kinds, refuse))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", help="a file that mgqe.save wrote")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    tiers, codes = mgqe.Tiers.from_sizes([100_000]), [torch.randint(256, (100_000, 8))]
    random = mgqe.CompactTable.from_codes(tiers, codes, [torch.randn(8, 256, 8)], [0], [256])
    app = make_app(mgqe.load(options.table) if options.table else random)
    # limit_concurrency: connections, each of which may hold a body.
    uvicorn.run(app, port=options.port, log_level="warning", http=Protocol, limit_concurrency=500)
