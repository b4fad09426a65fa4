"""Runs one Lua script in Valkey for many requests: all calls that wait go out together in one round trip."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

import hiredis
import structlog
from msgspec import Struct
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

_MAX_BATCH: Final = 256
_SECOND_LOOK_S: Final = 0.02
_RETRY_AFTER_S: Final = 0.5
"""After a failure, calls are refused at once for this long, then one batch tries again."""

Argument = str | bytes | int | float
Reply = list[Any]


class ValkeyAway(Exception):
    """Valkey did not answer in time, or not at all. Whether the script ran is not known."""


class CallNotSent(ValkeyAway):
    """Refused at once, because Valkey was away a moment ago. The script did not run."""


class _ScriptCall(Struct, frozen=True):
    keys: Sequence[str]
    args: Sequence[Argument]
    reply: asyncio.Future[Reply]


def connect(url: str) -> "Redis":
    """A client that fails fast and leaves retries to its caller. Takes valkey:// for redis://, and with TLS valkeys://."""
    if url.startswith("valkey"):
        url = "redis" + url.removeprefix("valkey")
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=None, socket_connect_timeout=None)


class ScriptQueue:
    """Owns its connection to Valkey and knows whether Valkey is there; one log line whenever that changes."""

    def __init__(self, valkey: "Redis", script: str, timeout_s: float) -> None:
        self._valkey = valkey
        self._connection = valkey.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        self._script = script
        self._sha = ""
        self._timeout_s = timeout_s
        self._waiting: list[_ScriptCall] = []
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        self._log = structlog.get_logger("descant_gateway.valkey")
        self.is_available = True

    def start(self) -> None:
        self._worker = asyncio.get_running_loop().create_task(self._run(), name="valkey-scripts")

    async def close(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._fail(self._take_waiting(), CallNotSent("the gateway is shutting down"))
        await self._connection.disconnect()
        await self._valkey.aclose()

    def submit(self, keys: Sequence[str], args: Sequence[Argument]) -> asyncio.Future[Reply]:
        """The script's reply, or `ValkeyAway` within the timeout."""
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if not self.is_available and not self._may_try_again():
            reply.set_exception(CallNotSent("Valkey was away a moment ago"))
        else:
            self._waiting.append(_ScriptCall(keys, args, reply))
            self._wake.set()
        return reply

    def _may_try_again(self) -> bool:
        """True for one call: while it waits for its answer, the others are refused at once."""
        now = time.monotonic()
        if now < self._retry_at:
            return False
        self._retry_at = now + self._timeout_s + _RETRY_AFTER_S
        return True

    async def probe(self) -> bool:
        """Asks Valkey now, for readiness."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._valkey.ping()
        except (RedisError, OSError, TimeoutError):
            return False
        return True

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            batch, self._waiting = self._waiting[:_MAX_BATCH], self._waiting[_MAX_BATCH:]
            if not self._waiting:
                self._wake.clear()
            await self._execute(batch)

    async def _execute(self, batch: list[_ScriptCall]) -> None:
        try:
            replies = await self._round_trip_in_time(batch)
        except (RedisError, OSError, TimeoutError) as error:
            self._mark(False, repr(error))
            self._fail(batch, ValkeyAway(repr(error)))
            self._fail(self._take_waiting(), CallNotSent(repr(error)))
        except asyncio.CancelledError:
            self._fail(batch, ValkeyAway("the gateway is shutting down"))
            raise
        except Exception as error:  # One call that nobody foresaw must not leave those after it without an answer.
            self._log.exception("calls to valkey failed", num_calls=len(batch))
            self._fail(batch, ValkeyAway(repr(error)))
            await self._connection.disconnect(nowait=True)  # some of their replies may still come on it
        else:
            self._mark(True, "")
            for call, reply in zip(batch, replies, strict=True):
                _resolve(call.reply, reply)

    async def _round_trip_in_time(self, batch: list[_ScriptCall]) -> list[Reply | Exception]:
        """Looks twice before it gives up: a reply may lie in the socket unread because this process was busy itself."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as clock:
            timer = loop.call_later(self._timeout_s, lambda: clock.reschedule(loop.time() + _SECOND_LOOK_S))
            try:
                return await self._round_trip(batch)
            finally:
                timer.cancel()

    async def _round_trip(self, batch: list[_ScriptCall]) -> list[Reply | Exception]:
        if not self._sha:
            self._sha = await self._valkey.script_load(self._script)
        replies = await self._send(batch)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            # A restarted Valkey has forgotten the script, and ran none of the batch.
            self._sha = await self._valkey.script_load(self._script)
            replies = await self._send(batch)
        return replies

    async def _send(self, batch: list[_ScriptCall]) -> list[Reply | Exception]:
        """One write, then one reply for each call. On the bare connection: redis-py's pipeline costs twice the CPU."""
        connection = self._connection
        if not connection.is_connected:
            await connection.connect()
        commands = [_packed(self._sha, call) for call in batch]
        await connection.send_packed_command(commands, check_health=False)
        return [await self._read() for _ in batch]

    async def _read(self) -> Reply | Exception:
        try:
            reply: Reply = await self._connection.read_response(disable_decoding=True)
        except ResponseError as error:  # this call's own; whatever else breaks the connection breaks the batch
            return error
        return reply

    def _mark(self, is_available: bool, reason: str) -> None:
        if not is_available:
            self._retry_at = time.monotonic() + _RETRY_AFTER_S
        if is_available != self.is_available:
            self.is_available = is_available
            if is_available:
                self._log.info("valkey is back")
            else:
                self._log.error("valkey is away: keys with limits are refused with 503 until it is back", reason=reason)

    def _take_waiting(self) -> list[_ScriptCall]:
        """What was not sent. Each would only find out for itself, a timeout later."""
        waiting, self._waiting = self._waiting, []
        self._wake.clear()
        return waiting

    @staticmethod
    def _fail(calls: list[_ScriptCall], error: ValkeyAway) -> None:
        for call in calls:
            _resolve(call.reply, error)


def _packed(sha: str, call: _ScriptCall) -> bytes:
    command = ("EVALSHA", sha, len(call.keys), *call.keys, *call.args)
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows one-word commands only
    return packed


def _resolve(future: asyncio.Future[Reply], reply: Reply | Exception) -> None:
    if future.done():  # its owner was cancelled
        return
    if isinstance(reply, Exception):
        future.set_exception(reply if isinstance(reply, ValkeyAway) else ValkeyAway(repr(reply)))
    else:
        future.set_result(reply)
