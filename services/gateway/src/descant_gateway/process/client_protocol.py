"""uvicorn's HTTP protocol, with one thing added: the chunks of a stream are written without going through ASGI.

ASGI's `send` is a coroutine, so it can only be called by a task: a wake-up for every chunk. Starting and ending a
reply, and waiting for a client that does not read, stay with ASGI.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CLIENT_LINE: Final = "descant.client_line"
"""The ASGI extension that holds the connection's `ClientLine`."""


class ClientLine:
    """A client's connection, for the chunks in the middle of a reply that was started without a content-length."""

    __slots__ = ("is_free", "write_framed")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.is_free = True
        """It is open, and not too much waits for the client to read it."""
        self.write_framed: Final = transport.write
        """Takes a chunk in its frame, as HTTP carries it (RFC 9112 7.1)."""

    def write_chunk(self, chunk: bytes) -> None:
        """`chunk` is not empty: that would end the reply."""
        self.write_framed(b"%x\r\n%b\r\n" % (len(chunk), chunk))


class ClientProtocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._line = ClientLine(transport)
        self._extensions: dict[str, Any] = {CLIENT_LINE: self._line}

    def pause_writing(self) -> None:
        super().pause_writing()
        self._line.is_free = False

    def resume_writing(self) -> None:
        super().resume_writing()
        self._line.is_free = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._line.is_free = False
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = self._extensions
