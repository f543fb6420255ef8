"""Protocol: uvicorn's protocol with a time limit for the head of a request."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SECONDS = 10.0  # the time that a client may take to send a request


class Protocol(HttpToolsProtocol):
    """Closes a connection if its request has no complete head after some time."""

    seconds = SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self.too_late = self.loop.call_later(self.seconds, transport.close)

    def on_message_begin(self) -> None:
        """The first bytes of a request are there."""
        super().on_message_begin()
        self.too_late.cancel()
        self.too_late = self.loop.call_later(self.seconds, self.transport.close)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self.too_late.cancel()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self.too_late.cancel()
        super().connection_lost(exc)
