"""One attempt at one backend: the request sent, its reply carried to the client as bytes, streaming or not."""

import asyncio
import contextlib
from typing import Final

import aiohttp
import msgspec
import structlog
from msgspec import Struct

from descant_gateway.admitted_call import AdmittedCall
from descant_gateway.call import Headers
from descant_gateway.catalogue.routing_policy import FailureKind
from descant_gateway.catalogue.snapshot import Backend
from descant_gateway.egress.connections import watch_connection
from descant_gateway.errors import ClientTimeUp
from descant_gateway.providers import Provider
from descant_gateway.providers.openai import is_too_long
from descant_gateway.providers.upstream_request import identity_headers
from descant_gateway.relay.arrivals import Arrivals
from descant_gateway.relay.deadlines import FIRST_BYTE_HEADER, IDLE_HEADER, TOTAL_HEADER, Deadline, Timeouts
from descant_gateway.relay.failures import BackendFailed, Refusal, nobody_serves
from descant_gateway.relay.stream import EventStream
from descant_gateway.relay.stream_tap import StreamTap
from descant_gateway.usage.meter import usage_of_reply
from descant_wire.errors import ApiError, ErrorDetail, bad_gateway, gateway_timeout
from descant_wire.sse import encode_event

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
DROPPED_REPLY_PREFIX: Final = b"x-descant-"
"""Only the gateway speaks by these names."""

_STREAM_HEADERS: Final = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
_LAST_WORDS_S: Final = 2.0
_STALE_WITHIN_S: Final = 1.0
"""A connection that its backend closed while it was idle says so within a round trip. Who takes longer had read it."""
_log = structlog.get_logger("descant_gateway.relay")


class Attempt(Struct, frozen=True):
    """What is sent, where, and how long it may take."""

    backend: Backend
    provider: Provider
    body: bytes
    timeouts: Timeouts


class Exchange:
    """Writes to the call's meter as it goes."""

    __slots__ = (
        "_attempt",
        "_call",
        "_clock",
        "_headers",
        "_meter",
        "_request",
        "_session",
        "break_reason",
    )

    def __init__(self, admitted: AdmittedCall, attempt: Attempt, session: aiohttp.ClientSession) -> None:
        self.break_reason = ""
        """Why the backend broke a reply off that had begun."""
        self._call = admitted.call
        self._request = admitted.request
        self._meter = admitted.meter
        self._attempt = attempt
        self._session = session
        self._headers = attempt.provider.headers(attempt.backend) | identity_headers(admitted, attempt.backend)
        now = asyncio.get_running_loop().time()
        self._clock = Deadline(now, self._first_timeout_s, latest=now + attempt.timeouts.total_s)

    async def run(self) -> None:
        """Raises BackendFailed or ApiError only while the client has had nothing."""
        self._meter.backend = self._attempt.backend.name
        try:
            async with self._clock:
                await self._run()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
            # The last two: a stream or a reply that is not what its provider's are.
            if not self._call.is_started:
                raise self._failure(error) from error
            await self._break_off(error)

    async def _run(self) -> None:
        response = await self._post()
        try:
            if response.status >= 400:
                self._meter.is_generating = False
                await self._pass_error_on(response)
            elif response.status >= 300:
                answer = bad_gateway(f"The backend answered with the redirect {response.status}; none is followed.")
                raise BackendFailed(FailureKind.SERVER_ERROR, answer, may_repeat=False, why="redirect")
            elif response.content_type == "text/event-stream":
                await self._relay_stream(response)
            else:
                await self._relay_whole(response)
        finally:
            if not response.closed:  # a finished one is, and its connection back in the pool already
                response.close()

    async def _post(self) -> aiohttp.ClientResponse:
        self._meter.is_generating = True
        try:
            return await self._send_twice_if_stale()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise nobody_serves(self._request.model, FailureKind.CONNECT, repr(error)) from error
        except (aiohttp.ClientConnectionError, aiohttp.ServerTimeoutError) as error:
            # It had the request. If that is why it broke off, the next backend must not get it too.
            answer = bad_gateway("The backend broke off before it answered; the request was not repeated.")
            raise BackendFailed(FailureKind.SERVER_ERROR, answer, may_repeat=False, why=repr(error)) from error

    async def _send_twice_if_stale(self) -> aiohttp.ClientResponse:
        """Again where the backend can't have had it: a fresh connection is never stale, nor one that took its time."""
        loop, use = asyncio.get_running_loop(), watch_connection()
        latest = loop.time() + _STALE_WITHIN_S
        try:
            return await self._send()
        except aiohttp.ClientConnectionError as error:
            if use.is_fresh or loop.time() > latest or not _was_closed_while_idle(error):
                raise
            return await self._send()

    async def _send(self) -> aiohttp.ClientResponse:
        url = self._attempt.provider.url(self._attempt.backend, self._request)
        return await self._session.post(url, data=self._attempt.body, headers=self._headers, allow_redirects=False)

    async def _relay_whole(self, response: aiohttp.ClientResponse) -> None:
        body = self._attempt.provider.whole_reply(await response.read(), self._request)
        self._meter.mark_first_byte()
        self._meter.usage = usage_of_reply(body)
        self._meter.status = response.status
        if self._meter.keeps_reply and response.status == 200 and response.content_type == "application/json":
            self._meter.whole_reply = body
        await self._call.answer(response.status, reply_headers(response), body)

    async def _relay_stream(self, response: aiohttp.ClientResponse) -> None:
        hides_usage = self._request.kind.has_usage_chunk and not self._request.include_usage
        tap, translator = StreamTap(self._meter, hides_usage=hides_usage), self._attempt.provider.stream(self._request)
        stream = EventStream(self._call, tap, self._meter.content, translator, self._clock)
        chunk = await response.content.readany()
        await self._start_stream(response)
        self._clock.restart(self._attempt.timeouts.idle_s)
        with Arrivals(response, stream) as arrivals:
            while chunk:
                await stream.pass_on(chunk)
                chunk = await arrivals.next()
        response.close()
        await stream.finish()

    async def _start_stream(self, response: aiohttp.ClientResponse) -> None:
        self._meter.mark_first_byte()
        self._meter.status = response.status
        await self._call.start(response.status, (*reply_headers(response), *_STREAM_HEADERS))

    async def _pass_error_on(self, response: aiohttp.ClientResponse) -> None:
        """What a backend refuses is told as it says it. What it fails at, and what is between it and us, is not."""
        status = response.status
        if status == 503:
            raise nobody_serves(self._request.model, FailureKind.SERVER_ERROR, "status 503")
        if status >= 500 or status in (401, 403, 407):
            self._log_failure(status)
            reason = "failed" if status >= 500 else "refused the gateway's own credentials"
            answer = bad_gateway(f"The backend {reason} (status {status}).")
            raise BackendFailed(FailureKind.SERVER_ERROR, answer, may_repeat=False, why=f"status {status}")
        refusal = self._refusal(response, await response.read())
        if status == 429 or (status == 400 and is_too_long(refusal.body)):
            kind = FailureKind.RATE_LIMITED if status == 429 else FailureKind.CONTEXT_LENGTH
            raise BackendFailed(kind, refusal, may_repeat=status == 429, why=f"status {status}")
        self._meter.status = status
        await self._call.answer(status, refusal.headers, refusal.body)

    def _refusal(self, response: aiohttp.ClientResponse, body: bytes) -> Refusal:
        """In OpenAI's shape; of what is no JSON only the status is told, and when to come back."""
        headers = reply_headers(response)
        if response.content_type == "application/json":
            return Refusal(response.status, headers, self._attempt.provider.error_reply(body))
        message = f"The backend refused the request (status {response.status})."
        answer = ApiError(response.status, ErrorDetail(message=message, type="invalid_request_error"))
        kept = tuple(header for header in headers if header[0].startswith(b"retry-after"))
        return Refusal(response.status, ((b"content-type", b"application/json"), *kept), answer.body)

    def _log_failure(self, status: int) -> None:
        name, request_id = self._attempt.backend.name, self._call.request_id
        _log.error("backend failed", backend=name, status=status, request_id=request_id)

    async def _break_off(self, error: Exception) -> None:
        self._meter.failure = repr(error)
        if not isinstance(error, TimeoutError):  # which may be the client's, who does not read
            self.break_reason = repr(error)
        # A client that does not read would hold this up for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._call.finish(encode_event(self._answer_to(error).body))

    def _failure(self, error: Exception) -> BackendFailed | ClientTimeUp:
        answer = self._answer_to(error)
        if isinstance(answer, ClientTimeUp):
            return answer
        if isinstance(error, TimeoutError):
            return BackendFailed(FailureKind.TIMEOUT, answer, may_repeat=False, why="no reply in time")
        return BackendFailed(FailureKind.SERVER_ERROR, answer, may_repeat=False, why=repr(error))

    def _answer_to(self, error: Exception) -> ApiError:
        if not isinstance(error, TimeoutError):
            return bad_gateway("The backend's connection broke before its reply was complete.")
        limit, what = self._limit_that_came()
        if self._clock.has_come and limit in self._attempt.timeouts.shortened:
            return ClientTimeUp(f"{what}, as the header {limit.decode()} asked; the request was cancelled.")
        return gateway_timeout(f"{what}; the request was cancelled.")

    def _limit_that_came(self) -> tuple[bytes, str]:
        """The header by which it can be shortened, and what took too long."""
        timeouts = self._attempt.timeouts
        if self._clock.due >= self._clock.latest:
            return TOTAL_HEADER, f"The reply was not complete within {timeouts.total_s:g} s"
        if not self._call.is_started:
            return FIRST_BYTE_HEADER, f"The backend did not begin its reply within {timeouts.first_byte_s:g} s"
        return IDLE_HEADER, f"The backend's stream stood still for {timeouts.idle_s:g} s"

    @property
    def _first_timeout_s(self) -> float:
        # Of a whole reply the first byte comes with the last.
        timeouts = self._attempt.timeouts
        return timeouts.first_byte_s if self._request.stream else timeouts.total_s


def reply_headers(response: aiohttp.ClientResponse) -> Headers:
    return tuple(
        (name, value)
        for name, value in ((name.lower(), value) for name, value in response.raw_headers)
        if name not in DROPPED_REPLY_HEADERS and not name.startswith(DROPPED_REPLY_PREFIX)
    )


def _was_closed_while_idle(error: aiohttp.ClientConnectionError) -> bool:
    """Of a kept connection that the backend closed just now: the request was not all sent, or nobody read it.

    A backend that read it and broke off at once looks the same.
    """
    return isinstance(error, aiohttp.ServerDisconnectedError) or isinstance(
        error.__cause__, aiohttp.ClientConnectionResetError
    )
