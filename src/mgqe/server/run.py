"""serve: an application on a port, until it is stopped."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette

from mgqe.server.protocol import Protocol

BACKLOG = 2048  # connections that wait to be accepted
MAX_CONNECTIONS = 500  # each may hold a body


def serve(app: Starlette, host: str, port: int, on_start: Callable[[str], object]) -> None:
    """Answer requests until the process is interrupted.

    Args:
        host, port: where to listen; port 0 takes a free one.
        on_start: called with the address, such as ``http://127.0.0.1:8000``, once it is taken.

    Raises:
        OSError: the address is in use, or not of this machine; the message names it.
    """
    with listening_socket(host, port) as taken:
        named = f"[{host}]" if ":" in host else host
        on_start(f"http://{named}:{taken.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="warning", http=Protocol, limit_concurrency=MAX_CONNECTIONS)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[taken])


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket of this address. OSError: it is in use, or not of this machine."""
    # The protocol is named so that asyncio sends answers at once: it sets TCP_NODELAY of such sockets alone.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")
        taken.bind((host, port))
        taken.listen(BACKLOG)
    except OSError as error:
        taken.close()
        raise OSError(f"cannot listen on {host} port {port}: {error}: choose another --port or --host") from error
    return taken
