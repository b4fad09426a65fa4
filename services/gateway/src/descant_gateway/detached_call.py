"""Calls without a socket: their two ends are in memory, and their client never leaves."""

import asyncio

from litestar.types import HTTPReceiveMessage, HTTPScope, Message

from descant_gateway.call import Call
from descant_gateway.dialects import Dialect


class Exchange:
    """The two halves of ASGI without a socket between them."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.status = 500
        self.headers: dict[bytes, bytes] = {}
        self.reply = bytearray()

    async def receive(self) -> HTTPReceiveMessage:
        if self._body is None:
            await asyncio.Event().wait()  # this client never leaves
        body, self._body = self._body or b"", None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        elif message["type"] == "http.response.body":
            self.reply += message["body"]


def detached_call(path: str, request_id: str, exchange: Exchange, dialect: Dialect | None) -> Call:
    return Call(_scope(path, request_id), exchange.receive, exchange.send, dialect=dialect)


def _scope(path: str, request_id: str) -> HTTPScope:
    headers = [(b"x-request-id", request_id.encode()), (b"content-type", b"application/json")]
    return {"type": "http", "path": path, "method": "POST", "headers": headers, "client": None}  # type: ignore[typeddict-item]
