"""Workers: the threads that answer requests, behind a queue of limited length."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response


class Workers:
    """Each thread answers one request at a time, without Python's global lock while the kernels run.

    Args:
        number: of threads.
        max_waiting: requests that may wait for one; a further one is refused at once.
    """

    def __init__(self, number: int, max_waiting: int) -> None:
        self.pool = ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,))
        self.free, self.places = asyncio.Semaphore(number), number + max_waiting

    async def run(self, request: Request, work: Callable[[bytes], Response], body: bytes) -> Response:
        """The answer of ``work``. HTTPException 503: too many wait. ClientDisconnect: nobody waits for the answer."""
        if not self.places:
            raise HTTPException(503, "too many requests are waiting: try again later", {"retry-after": "1"})
        self.places -= 1
        try:
            async with self.free:
                if await request.is_disconnected():
                    raise ClientDisconnect
                return await asyncio.get_running_loop().run_in_executor(self.pool, work, body)
        finally:
            self.places += 1


async def body_of(request: Request, max_body: int, seconds: float) -> bytes:
    """The body of a request. HTTPException: 413, it is too long; 408, it took more than ``seconds`` to come."""
    try:
        return await asyncio.wait_for(_body_of(request, max_body), seconds)
    except asyncio.TimeoutError:
        late = f"the body did not come within {seconds:g} s"
        raise HTTPException(408, late, {"connection": "close"}) from None


async def _body_of(request: Request, max_body: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_body:
            raise HTTPException(413, f"the body must have at most {max_body:,} bytes")
    return bytes(body)
