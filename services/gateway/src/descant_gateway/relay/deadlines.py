"""How long a backend may take: the gateway's own limits, a model's, and what the client asks for, which only shortens.

An `asyncio.timeout` makes a timer for every move. Here the timer looks when it fires whether its time has moved on:
for a chunk of a stream, moving costs an assignment.
"""

import asyncio
import math
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from msgspec import Struct

from descant_gateway.catalogue.routing_policy import TimeLimits
from descant_wire.errors import invalid_request

TOTAL_HEADER: Final = b"x-descant-timeout"
FIRST_BYTE_HEADER: Final = b"x-descant-first-byte-timeout"
IDLE_HEADER: Final = b"x-descant-idle-timeout"


class Timeouts(Struct, frozen=True, kw_only=True):
    """Seconds."""

    first_byte_s: float
    """A stream's first event: queueing and prefill."""
    idle_s: float
    """Between two events of a stream."""
    total_s: float
    """The whole of any reply."""
    shortened: frozenset[bytes] = frozenset()
    """The headers by which the client asked for less than there is."""


def timeouts_for(headers: Mapping[bytes, bytes], model: TimeLimits, defaults: Timeouts) -> Timeouts:
    """Raises ApiError 400 for a header that is no number of seconds."""
    granted = {
        FIRST_BYTE_HEADER: model.first_byte_s or defaults.first_byte_s,
        IDLE_HEADER: model.idle_s or defaults.idle_s,
        TOTAL_HEADER: model.total_s or defaults.total_s,
    }
    given = {name: _shorter(headers, name, limit_s) for name, limit_s in granted.items()}
    return Timeouts(
        first_byte_s=given[FIRST_BYTE_HEADER],
        idle_s=given[IDLE_HEADER],
        total_s=given[TOTAL_HEADER],
        shortened=frozenset(name for name, seconds in given.items() if seconds < granted[name]),
    )


def _shorter(headers: Mapping[bytes, bytes], name: bytes, limit_s: float) -> float:
    given = headers.get(name)
    if given is None:
        return limit_s
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        text = given[:40].decode("latin-1")
        raise invalid_request(f"The header {name.decode()} is {text!r}; it must be a number of seconds above 0.")
    return min(seconds, limit_s)


class Deadline:
    """`async with`: the block is cancelled when `due` has come, and TimeoutError raised in its place.

    Times are in the event loop's. Inside the block it is put off by setting `since` to now, never beyond `latest`.
    """

    __slots__ = ("_cancelling", "_handle", "_loop", "_seconds", "_task", "has_come", "latest", "since")

    def __init__(self, since: float, seconds: float, latest: float = math.inf) -> None:
        self.since = since
        self.latest = latest
        self._seconds = seconds
        self.has_come = False

    @property
    def due(self) -> float:
        return min(self.since + self._seconds, self.latest)

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_at(self.due, self._look)
        return self

    def restart(self, seconds: float) -> None:
        """Due so long from now on, and from each later `since`."""
        self._handle.cancel()
        self.since, self._seconds = self._loop.time(), seconds
        self._handle = self._loop.call_at(self.due, self._look)

    def _look(self) -> None:
        if self._loop.time() < self.due:
            self._handle = self._loop.call_at(self.due, self._look)
            return
        self.has_come = True
        self._task.cancel()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.cancel()
        # Somebody else may have cancelled the task too (the client left, shutdown): theirs must go on.
        if self.has_come and self._task.uncancel() <= self._cancelling and exc_type is asyncio.CancelledError:
            raise TimeoutError from exc
