"""uvicorn's HTTP protocol, with one thing added: the chunks of a stream are written without going through ASGI.

ASGI's `send` is a coroutine, so it can only be called by a task: a wake-up for every chunk. Starting and ending a
reply, and waiting for a client that does not read, stay with ASGI.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CLIENT_LINE: Final = "descant.client_line"
"""The ASGI extension that holds the connection's `ClientLine`."""


class ClientLine:
    """A client's connection, for the chunks in the middle of a reply that was started without a content-length."""

    __slots__ = ("_flow", "_transport")

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self._transport = transport
        self._flow = flow

    @property
    def is_free(self) -> bool:
        """It is open, and not too much waits for the client to read it."""
        return not self._flow.write_paused and not self._transport.is_closing()

    def write_chunk(self, chunk: bytes) -> None:
        """`chunk` is not empty: that would end the reply."""
        self.write_framed(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    def write_framed(self, chunk: bytes) -> None:
        """A chunk in its frame, as HTTP carries it (RFC 9112 7.1)."""
        self._transport.write(chunk)


class ClientProtocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._extensions: dict[str, Any] = {CLIENT_LINE: ClientLine(transport, self.flow)}

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = self._extensions
