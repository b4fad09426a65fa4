"""The two ends of a handler: a request's body decoded, an answer's bytes sent, and a client that leaves between."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from anyio import CancelScope
from litestar import Request
from litestar.exceptions import HTTPException
from litestar.response.base import ASGIResponse
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Scope, Send

from descant_server.errors import ClientLeft
from descant_wire.decoding import decode_request
from descant_wire.errors import unsupported_media_type
from descant_wire.load import CHARGE_HEADER
from descant_wire.sse import MEDIA_TYPE

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")
HttpRequest = Request[Any, Any, Any]
JSON = "application/json"


async def read_json(request: HttpRequest, request_type: type[RequestT]) -> RequestT:
    """The request's body.

    Raises:
        ApiError: 415 or 400. (Litestar raises 413 by itself.)
        ClientLeft: before it was complete.
    """
    content_type = request.content_type[0].lower()
    if content_type not in ("", JSON):
        raise unsupported_media_type(f"The content type must be {JSON}; got {content_type!r}.")
    try:
        body = await request.body()
    except HTTPException as error:
        if error.status_code == 500:  # Litestar's way to say so
            raise ClientLeft from None
        raise
    return decode_request(body, request_type)


def charge_of(request: HttpRequest) -> str:
    """The gateway's name for this call; empty without a gateway."""
    return request.headers.get(CHARGE_HEADER, "")


async def unless_client_leaves(request: HttpRequest, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of `work`, which is cancelled as soon as the client closes its connection.

    ASGI servers don't cancel a handler then. The body must have been read.

    Raises:
        ClientLeft
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(ASGIStreamingResponse):
    """Server-sent events. `close` runs once, whether the stream ended, the client left or it never began."""

    __slots__ = ("_close",)

    def __init__(self, events: Any, close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(
            iterator=events,
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
            media_type=MEDIA_TYPE,
            status_code=200,
        )
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with CancelScope(shield=True):
                await self._close()


def json_answer(body: bytes) -> ASGIResponse:
    return ASGIResponse(body=body, media_type=JSON, status_code=200)
