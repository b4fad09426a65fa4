"""One HTTP request as ASGI delivers it, and the way to answer it.

Raw ASGI because both directions matter: a stream must leave without buffering, and a client that goes away must be
noticed at once, whether its reply streams or not (frameworks cancel the former only).
"""

import asyncio
import os
import time
from types import TracebackType
from typing import Self

from litestar.types import HTTPScope, Receive, Send

from descant_gateway.dialects import Dialect, Translation
from descant_gateway.errors import ClientLeft, headers_too_large, request_timeout
from descant_gateway.process.client_protocol import CLIENT_LINE, ClientLine
from descant_wire.errors import ApiError, payload_too_large

Headers = tuple[tuple[bytes, bytes], ...]

_REQUEST_ID_MAX_LENGTH = 128
_BODY_TIMEOUT_S = 30.0
MAX_HEADER_BYTES = 64 << 10


class Call:
    """`headers` is by lower-case name; `reply_headers` go out with whatever answers this call, error or not."""

    __slots__ = (
        "_line",
        "_raw_headers",
        "_receive",
        "_send",
        "client_address",
        "dialect",
        "endpoint",
        "headers",
        "is_answered",
        "is_started",
        "method",
        "reply_headers",
        "request_id",
        "route_headers",
        "started_at",
        "translation",
    )

    def __init__(
        self,
        scope: HTTPScope,
        receive: Receive,
        send: Send,
        *,
        dialect: Dialect | None = None,
        client_address: str | None = None,
    ) -> None:
        self._receive = receive
        self._send = send
        line: object = (scope.get("extensions") or {}).get(CLIENT_LINE)
        self._line = line if isinstance(line, ClientLine) else None
        self.started_at = time.perf_counter()
        self.endpoint: str = scope["path"]
        self.method: str = scope["method"]
        self._raw_headers = scope["headers"]
        self.headers: dict[bytes, bytes] = dict(self._raw_headers)
        self.client_address = client_address
        """Who asks, as far as proxies are believed; None where there is no socket."""
        self.request_id = request_id_of(self.headers)
        self.reply_headers: list[tuple[bytes, bytes]] = [(b"x-request-id", self.request_id.encode())]
        if dialect is not None:
            self.reply_headers += dialect.reply_headers(self.request_id)
        self.route_headers: Headers = ()
        """Who answers and why: of the latest attempt, for whatever answers this call after it."""
        self.is_started = False
        self.is_answered = False
        self.dialect = dialect
        """Of the endpoint, where it is not chat completions' own."""
        self.translation: Translation | None = None
        """Once the request was read: from then on replies come in as chat completions and go out as the client's."""

    @property
    def authorization(self) -> bytes | None:
        given = self.headers.get(b"authorization")
        return given if self.dialect is None else self.dialect.authorization(self.headers)

    def require_small_headers(self) -> None:
        """431 for headers that are together larger than any honest request's, those of one name counted each."""
        if sum(len(name) + len(value) for name, value in self._raw_headers) > MAX_HEADER_BYTES:
            raise headers_too_large(MAX_HEADER_BYTES)

    async def read_body(self, max_bytes: int) -> bytes:
        """The whole body. 413 above `max_bytes`, 408 if it does not arrive in time, `ClientLeft` if it is cut off."""
        declared = self.headers.get(b"content-length")
        if declared is not None and int(declared) > max_bytes:
            raise _too_large(max_bytes)
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                return await self._read_parts(max_bytes)
        except TimeoutError:
            raise request_timeout(f"The request's body did not arrive within {_BODY_TIMEOUT_S:.0f} s.") from None

    async def _read_parts(self, max_bytes: int) -> bytes:
        parts = bytearray()
        while True:
            event = await self._receive()
            if event["type"] != "http.request":
                raise ClientLeft
            parts += event.get("body", b"")
            if len(parts) > max_bytes:
                raise _too_large(max_bytes)
            if not event.get("more_body"):
                return bytes(parts)

    def add_reply_headers(self, headers: dict[str, str]) -> None:
        self.reply_headers += [(name.encode(), value.encode()) for name, value in headers.items()]

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole reply at once."""
        if status >= 400:
            body = self._error(status, body)
        elif self.translation is not None:
            body = await self.translation.whole(body)
        if self._line is not None and self.method != "HEAD":
            self._line.join_head_and_body()
        await self.start(status, (*headers, (b"content-length", str(len(body)).encode())))
        await self._send_last(body)

    def _error(self, status: int, body: bytes) -> bytes:
        if self.translation is not None:
            body = self.translation.refusal(body)
        return body if self.dialect is None else self.dialect.error(status, body)

    async def start(self, status: int, headers: Headers) -> None:
        self.is_started = True
        all_headers = [*self.reply_headers, *self.route_headers, *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})

    async def send(self, chunk: bytes) -> None:
        if self.translation is not None:
            chunk = await self.translation.events(chunk)
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    @property
    def line(self) -> ClientLine | None:
        """What may take the place of `send` while it is free; None where replies are translated on their way."""
        return self._line if self.translation is None else None

    async def finish(self, chunk: bytes = b"") -> None:
        if self.translation is not None:
            chunk = await self.translation.events(chunk) + await self.translation.end()
        await self._send_last(chunk)

    async def _send_last(self, chunk: bytes) -> None:
        self.is_answered = True
        await self._send({"type": "http.response.body", "body": chunk, "more_body": False})

    def cancelled_on_disconnect(self) -> "_DisconnectWatch":
        """`async with`: the block is cancelled as soon as the client leaves, and `ClientLeft` is raised in its place.

        Enter it after the body was read, and not twice at a time. Built like `asyncio.timeout`, with the disconnect as
        its clock.
        """
        return _DisconnectWatch(self, self._line)

    async def wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _DisconnectWatch:
    __slots__ = ("_call", "_cancelling", "_has_left", "_line", "_task", "_watcher")

    def __init__(self, call: Call, line: ClientLine | None) -> None:
        self._call = call
        self._line = line
        self._has_left = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        if self._line is None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())
        elif self._line.is_lost:
            raise ClientLeft
        else:
            self._line.call_when_lost(self._leave)
        return self

    async def _watch(self) -> None:
        await self._call.wait_for_disconnect()
        self._leave()

    def _leave(self) -> None:
        if not self._call.is_answered:  # servers report a finished reply as a disconnect too
            self._has_left = True
            self._task.cancel()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._line is None:
            self._watcher.cancel()
        else:
            self._line.call_nobody()
        if not self._has_left:
            return
        # Somebody else may have cancelled the task too (shutdown): theirs must go on.
        if self._task.uncancel() <= self._cancelling and exc_type is asyncio.CancelledError:
            raise ClientLeft from exc


def request_id_of(headers: dict[bytes, bytes]) -> str:
    """The client's own x-request-id where it is short and plain, else a new one."""
    given = headers.get(b"x-request-id", b"")
    if 0 < len(given) <= _REQUEST_ID_MAX_LENGTH and given.isascii():
        text = given.decode()
        if text.replace("-", "").replace("_", "").replace(".", "").isalnum():
            return text
    return f"req_{os.urandom(16).hex()}"


def _too_large(max_bytes: int) -> ApiError:
    return payload_too_large(f"The request's body is larger than {max_bytes} bytes.")
