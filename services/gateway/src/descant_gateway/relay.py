"""Carries a request to a backend and the reply back, as bytes, streaming or not.

Before the first byte of a reply a backend that is away is replaced by the next candidate; after it nothing can be taken
back, so a stream that breaks ends with an error event in OpenAI's shape.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import aiohttp
import msgspec
import structlog
from msgspec import Raw, Struct
from yarl import URL

from descant_gateway.admitted_call import AdmittedCall
from descant_gateway.backends import Backends
from descant_gateway.call import Call, Headers
from descant_gateway.catalogue import Backend
from descant_gateway.meter import usage_of_reply
from descant_gateway.request import InferenceRequest
from descant_gateway.stream_tap import EventTooLarge, StreamTap
from descant_wire.errors import ApiError, ErrorDetail, bad_gateway, gateway_timeout, service_unavailable
from descant_wire.sse import encode_event

TENANT_HEADER: Final = "x-descant-tenant"
FORWARDED_REQUEST_HEADERS: Final = (b"traceparent", b"tracestate")
"""Besides what the relay sets itself. Only these pass, so that no client reaches a backend's internal headers."""

DROPPED_REPLY_HEADERS: Final = frozenset(
    {
        # RFC 9110 7.6.1: of one connection only
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer",
        b"transfer-encoding", b"upgrade",
        # set by us
        b"content-length", b"date", b"server", b"x-request-id",
        # of the backend's own limits and sessions
        b"set-cookie", b"x-ratelimit-limit-requests", b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-requests",
        b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-requests", b"x-ratelimit-reset-tokens",
    }
)  # fmt: skip

_LAST_WORDS_S: Final = 2.0
_log = structlog.get_logger("descant_gateway.relay")
_options_decoder = msgspec.json.Decoder(dict[str, Raw])


class Timeouts(Struct, frozen=True, kw_only=True):
    """Seconds."""

    first_byte_s: float
    """A stream's first event: queueing and prefill."""
    idle_s: float
    """Between two events of a stream."""
    total_s: float
    """The whole of any reply."""


class BackendAway(Exception):
    """The backend can't take the request now and has not begun it; another one may."""


async def relay(admitted: AdmittedCall, candidates: Sequence[Backend], backends: Backends, timeouts: Timeouts) -> None:
    """Answers the call from the first candidate that takes it. ApiError if none does, ClientLeft if the client goes.

    A client that goes cancels the request upstream at once: closing the connection is how backends are told.
    """
    body = rewrite_body(admitted.request, admitted.model.upstream_name)
    async with admitted.call.cancelled_on_disconnect():
        for backend in candidates:
            try:
                with backends.in_flight(backend):
                    await _Exchange(admitted, backend, backends.session, timeouts).run(body)
                return
            except BackendAway as away:
                admitted.meter.is_generating = False
                _log.warning("backend did not take a request", backend=backend.name, reason=str(away))
        raise service_unavailable(
            f"No backend for the model {admitted.model.name!r} takes requests right now. Try again shortly.",
            retry_after_s=1,
            code="no_healthy_backend",
        )


class _Exchange:
    """One attempt at one backend."""

    __slots__ = ("_backend", "_call", "_meter", "_request", "_session", "_tenant", "_timeouts")

    def __init__(
        self, admitted: AdmittedCall, backend: Backend, session: aiohttp.ClientSession, timeouts: Timeouts
    ) -> None:
        self._call = admitted.call
        self._request = admitted.request
        self._tenant = admitted.tenant
        self._meter = admitted.meter
        self._backend = backend
        self._session = session
        self._timeouts = timeouts

    async def run(self, body: bytes) -> None:
        """Raises BackendAway or ApiError only while the client has had nothing."""
        self._meter.backend = self._backend.name
        try:
            async with asyncio.timeout(self._first_timeout_s) as clock:
                await self._run(body, clock)
        except (aiohttp.ClientError, OSError, TimeoutError, EventTooLarge) as error:
            if not self._call.is_started:
                raise self._refusal(error) from error
            await self._break_off(error)

    async def _run(self, body: bytes, clock: asyncio.Timeout) -> None:
        response = await self._post(body)
        try:
            if response.status >= 400:
                self._meter.is_generating = False
                await self._pass_error_on(response)
            elif response.status >= 300:
                raise bad_gateway(f"The backend answered with the redirect {response.status}; none is followed.")
            elif response.content_type == "text/event-stream":
                await self._relay_stream(response, clock)
            else:
                await self._relay_whole(response)
        finally:
            response.close()  # an unfinished one is aborted, a finished one is back in the pool already

    async def _post(self, body: bytes) -> aiohttp.ClientResponse:
        url = _url(self._backend.base_url, self._request.endpoint)
        headers = request_headers(self._call, self._backend, self._tenant)
        self._meter.is_generating = True
        try:
            try:
                return await self._session.post(url, data=body, headers=headers, allow_redirects=False)
            except aiohttp.ServerDisconnectedError:
                # An idle connection that the backend closed just now; a fresh one tells whether it is really away.
                return await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise BackendAway(repr(error)) from error
        except (aiohttp.ClientConnectionError, aiohttp.ServerTimeoutError) as error:
            # It had the request. If that is why it broke off, the next backend must not get it too.
            raise bad_gateway("The backend broke off before it answered; the request was not repeated.") from error

    async def _relay_whole(self, response: aiohttp.ClientResponse) -> None:
        body = await response.read()
        self._meter.mark_first_byte()
        self._meter.usage = usage_of_reply(body)
        self._meter.status = response.status
        await self._call.answer(response.status, reply_headers(response), body)

    async def _relay_stream(self, response: aiohttp.ClientResponse, clock: asyncio.Timeout) -> None:
        tap = StreamTap(self._meter, hides_usage=not self._request.include_usage)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeouts.total_s
        while chunk := await response.content.readany():
            clock.reschedule(min(loop.time() + self._timeouts.idle_s, deadline))
            events = tap.feed(chunk)
            if not self._call.is_started:
                await self._start_stream(response)
            if events:
                await self._call.send(events)
        if not self._call.is_started:
            await self._start_stream(response)
        response.close()
        await self._call.finish(tap.finish())

    async def _start_stream(self, response: aiohttp.ClientResponse) -> None:
        self._meter.mark_first_byte()
        self._meter.status = response.status
        await self._call.start(response.status, (*reply_headers(response), *_STREAM_HEADERS))

    async def _pass_error_on(self, response: aiohttp.ClientResponse) -> None:
        """What a backend refuses is told as it says it. What it fails at, and what is between it and us, is not."""
        status = response.status
        if status == 503:
            raise BackendAway("status 503")
        if status >= 500 or status in (401, 403, 407):
            _log.error("backend failed", backend=self._backend.name, status=status, request_id=self._call.request_id)
            reason = "failed" if status >= 500 else "refused the gateway's own credentials"
            raise bad_gateway(f"The backend {reason} (status {status}).")
        body = await response.read()
        if response.content_type != "application/json":
            message = f"The backend refused the request (status {status})."
            raise ApiError(status, ErrorDetail(message=message, type="invalid_request_error"))
        self._meter.status = status
        await self._call.answer(status, reply_headers(response), body)

    async def _break_off(self, error: Exception) -> None:
        self._meter.failure = repr(error)
        # A client that does not read would hold this up for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._call.finish(encode_event(self._refusal(error).body))

    def _refusal(self, error: Exception) -> ApiError:
        if isinstance(error, TimeoutError):
            return gateway_timeout("The backend took too long and the request was cancelled.")
        return bad_gateway("The backend's connection broke before its reply was complete.")

    @property
    def _first_timeout_s(self) -> float:
        # Of a whole reply the first byte comes with the last.
        return self._timeouts.first_byte_s if self._request.stream else self._timeouts.total_s


_STREAM_HEADERS: Final = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


def rewrite_body(request: InferenceRequest, upstream_name: str) -> bytes:
    """The body for the backend: its own name of the model, and the usage chunk asked for in every stream.

    The values of all other fields are the client's bytes. The object around them is written anew even if nothing
    changes, so that a field that is given twice reaches the backend once, with the value that was decided on; a compact
    body, as clients write it, comes out the same.
    """
    members = dict(request.members)
    if request.model != upstream_name:
        members["model"] = Raw(msgspec.json.encode(upstream_name))
    if request.stream and not request.include_usage:
        options = _options_decoder.decode(members["stream_options"]) if _has_options(members) else {}
        options["include_usage"] = Raw(b"true")
        members["stream_options"] = Raw(msgspec.json.encode(options))
    return msgspec.json.encode(members)


def _has_options(members: dict[str, Raw]) -> bool:
    return "stream_options" in members and bytes(members["stream_options"]) != b"null"


def request_headers(call: Call, backend: Backend, tenant: str) -> dict[str, str]:
    """Everything the backend is told besides the body. The client's key stays here."""
    headers = {"content-type": "application/json", "x-request-id": call.request_id, TENANT_HEADER: tenant}
    if backend.api_key is not None:
        headers["authorization"] = f"Bearer {backend.api_key}"
    for name in FORWARDED_REQUEST_HEADERS:
        value = call.headers.get(name)
        if value is not None:
            headers[name.decode()] = value.decode("latin-1")
    return headers


def reply_headers(response: aiohttp.ClientResponse) -> Headers:
    return tuple(
        (name, value)
        for name, value in ((name.lower(), value) for name, value in response.raw_headers)
        if name not in DROPPED_REPLY_HEADERS
    )


@lru_cache(maxsize=1024)
def _url(base_url: str, endpoint: str) -> URL:
    return URL(base_url + endpoint)
