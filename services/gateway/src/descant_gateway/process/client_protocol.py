"""uvicorn's HTTP protocol, with what ASGI has no words for.

The chunks of a stream are written without a wake-up for each, a whole reply is one write, and who serves a client is
called when it leaves. Starting and ending a reply, and waiting for a client that does not read, stay with ASGI.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CLIENT_LINE: Final = "descant.client_line"
"""The ASGI extension that holds the connection's `ClientLine`."""


class ReplyTransport:
    """What uvicorn needs of the transport of a client, and a way to make two writes one system call."""

    __slots__ = ("_head", "_joins_next", "_transport", "close", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._joins_next = False
        self._head = b""
        self.close: Final = transport.close
        self.is_closing: Final = transport.is_closing

    def join_next(self) -> None:
        """The next write waits for the one after it, which has to come at once: the head of a reply for its body."""
        self._joins_next = True

    def write(self, data: bytes) -> None:
        if self._joins_next:
            self._joins_next, self._head = False, data
        elif self._head:
            self._transport.writelines((self._head, data))
            self._head = b""
        else:
            self._transport.write(data)


class ClientLine:
    """A client's connection. It takes the chunks in the middle of a reply that was started without a content-length."""

    __slots__ = ("_flow", "_when_lost", "is_free", "is_lost", "join_head_and_body", "write_framed")

    def __init__(self, transport: asyncio.Transport, reply_transport: ReplyTransport, flow: FlowControl) -> None:
        self.is_free = True
        """It is open, and not too much waits for the client to read it."""
        self.is_lost = False
        self.write_framed: Final = transport.write
        """Takes a chunk in its frame, as HTTP carries it (RFC 9112 7.1)."""
        self.join_head_and_body: Final = reply_transport.join_next
        """To be called right before a reply that has a body is sent whole."""
        self._flow = flow
        self._when_lost: Callable[[], None] | None = None

    def call_when_lost(self, callback: Callable[[], None]) -> None:
        """Once, if it is lost before `call_nobody`. For the one request that is being served."""
        self._when_lost = callback
        self._flow.resume_reading()  # a large body paused it, and the end of the connection is something to read

    def call_nobody(self) -> None:
        self._when_lost = None

    def lost(self) -> None:
        self.is_free, self.is_lost = False, True
        if self._when_lost is not None:
            self._when_lost()

    def write_chunk(self, chunk: bytes) -> None:
        """`chunk` is not empty: that would end the reply."""
        self.write_framed(b"%x\r\n%b\r\n" % (len(chunk), chunk))


class ClientProtocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = reply_transport = ReplyTransport(transport)  # type: ignore[assignment]
        self._line = ClientLine(transport, reply_transport, self.flow)
        self._extensions: dict[str, Any] = {CLIENT_LINE: self._line}

    def pause_writing(self) -> None:
        super().pause_writing()
        self._line.is_free = False

    def resume_writing(self) -> None:
        super().resume_writing()
        self._line.is_free = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._line.lost()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = self._extensions
