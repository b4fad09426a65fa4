"""Lets requests wait for their turn while backends are saturated: bounded in number and time, left with the client.

A pool is a set of backends that serve the same models. It has as many turns as its healthy backends take requests at
once; this process decides about its part of them. Models whose backends have no bound never wait here.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from msgspec import Struct

from descant_gateway.call import Call
from descant_gateway.catalogue.snapshot import Catalogue, ModelRoute, Team
from descant_gateway.limits.admit import Ticket
from descant_gateway.process.metrics import Metrics
from descant_gateway.routing.backend_state import UNKNOWN, BackendState
from descant_gateway.waiting.fair_queue import Ask, FairQueue, QueueFull
from descant_wire.errors import ApiError, service_unavailable

POSITION_HEADER: Final = "x-descant-queue-position"
EXPECTED_WAIT_HEADER: Final = "x-descant-queue-expected-wait-ms"
_SMOOTHING: Final = 0.1
_MAX_RETRY_AFTER_S: Final = 60.0

Backends = tuple[str, ...]


class QueueBounds(Struct, frozen=True, kw_only=True):
    max_length: int
    """Requests that wait, of each pool."""
    timeout_s: float
    num_processes: int = 1
    """Gateway processes that share the backends."""


class _Pool:
    """`num_running` turns are taken; `interval_s` is the smoothed time between two that ended while others waited."""

    __slots__ = ("backends", "ended_at", "interval_s", "num_running", "queue", "turns")

    def __init__(self, backends: Backends, max_length: int) -> None:
        self.backends = frozenset(backends)
        self.queue = FairQueue(max_length)
        self.turns: dict[Ask, asyncio.Future[None]] = {}
        self.num_running = 0
        self.interval_s = 0.0
        self.ended_at = 0.0

    def end_turn(self) -> None:
        self.num_running -= 1
        now = time.monotonic()
        if self.queue and self.ended_at:
            weight = _SMOOTHING if self.interval_s else 1.0
            self.interval_s += weight * (now - self.ended_at - self.interval_s)
        self.ended_at = now if self.queue else 0.0

    def expected_wait_s(self, position: int) -> float:
        return (position + 1) * self.interval_s


class FairShare:
    """Owns the pools. `states` are the backends' health, by name."""

    def __init__(
        self,
        bounds: QueueBounds,
        catalogue: Callable[[], Catalogue],
        states: Callable[[], Mapping[str, BackendState]],
        metrics: Metrics,
    ) -> None:
        self._bounds = bounds
        self._catalogue = catalogue
        self._states = states
        self._metrics = metrics
        self._pools: dict[Backends, _Pool] = {}
        self._read: Catalogue | None = None
        self._unbounded: set[Backends] = set()
        """Of the catalogue that was read last: pools that need no look."""

    @property
    def num_waiting(self) -> int:
        return sum(len(pool.queue) for pool in self._pools.values())

    @property
    def num_running(self) -> int:
        """Turns that are taken, of pools that have a bound."""
        return sum(pool.num_running for pool in self._pools.values())

    def turn(self, call: Call, team: Team, model: ModelRoute, ticket: Ticket) -> AbstractAsyncContextManager[None]:
        """Entered when a backend of the model has room. 503 if too many wait, or for too long; ClientLeft.

        Nobody waits for a model with a fallback for saturation: the relay goes there at once.
        """
        pool = self._pool(model.backends)
        return _NO_BOUND if pool is None or model.policy.has_way_out else self._turn(pool, call, team, ticket)

    @asynccontextmanager
    async def _turn(self, pool: _Pool, call: Call, team: Team, ticket: Ticket) -> AsyncIterator[None]:
        ask = Ask(team.id, num_tokens=ticket.reserved_tokens, priority=team.priority, weight=team.weight)
        if pool.queue or not self._has_room(pool):
            await self._wait(call, pool, ask)
        else:
            pool.num_running += 1
        try:
            yield
        finally:
            pool.queue.correct(ask, ticket.used_tokens)
            pool.end_turn()
            self.give_turns()

    async def _wait(self, call: Call, pool: _Pool, ask: Ask) -> None:
        """On return the turn is taken."""
        turn = self._enqueue(call, pool, ask)
        asked_at, result = time.monotonic(), "left"
        try:
            async with call.cancelled_on_disconnect(), asyncio.timeout(self._bounds.timeout_s):
                await turn
            result = "served"
        except TimeoutError:
            result = "timed_out"
            raise _busy("The request waited too long for a free backend.", "queue_timeout", pool) from None
        except ApiError:
            result = "evicted"
            raise
        finally:
            self._leave(pool, ask, turn, is_served=result == "served")
            self._metrics.waited(ask.priority, result, time.monotonic() - asked_at)

    def _enqueue(self, call: Call, pool: _Pool, ask: Ask) -> asyncio.Future[None]:
        try:
            evicted = pool.queue.push(ask)
        except QueueFull:
            raise _busy("Too many requests wait for a free backend.", "queue_full", pool) from None
        if evicted is not None:
            loser = pool.turns.pop(evicted)
            if not loser.done():
                message = "Too many requests of your team wait for a free backend."
                loser.set_exception(_busy(message, "queue_full", pool))
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pool.turns[ask] = turn
        self._metrics.queued(self.num_waiting)
        position = pool.queue.position(ask)
        wait_ms = math.ceil(1000 * pool.expected_wait_s(position))
        call.add_reply_headers({POSITION_HEADER: str(position), EXPECTED_WAIT_HEADER: str(wait_ms)})
        return turn

    def _leave(self, pool: _Pool, ask: Ask, turn: asyncio.Future[None], *, is_served: bool) -> None:
        """Whoever goes without its turn gives it on, if it had got it in the same moment."""
        pool.queue.remove(ask)
        pool.turns.pop(ask, None)
        self._metrics.queued(self.num_waiting)
        if not is_served and turn.done() and not turn.cancelled() and turn.exception() is None:
            pool.queue.correct(ask, 0)
            pool.num_running -= 1
            self.give_turns()

    def give_turns(self) -> None:
        """To everybody for whom there is room now. To be called, besides, whenever there may be more than before."""
        for pool in self._pools.values():
            while pool.queue and self._has_room(pool):
                ask = pool.queue.pop()
                assert ask is not None
                turn = pool.turns.pop(ask)
                if not turn.done():  # one that is done was cancelled and is on its way out
                    pool.num_running += 1
                    turn.set_result(None)

    def _pool(self, backends: Backends) -> _Pool | None:
        """None if some backend takes any number of requests."""
        catalogue = self._catalogue()
        if catalogue is not self._read:
            self._read, self._unbounded = catalogue, set()
        if backends in self._unbounded:
            return None
        known = catalogue.backends
        if any((backend := known.get(name)) is not None and backend.max_in_flight is None for name in backends):
            self._unbounded.add(backends)
            return None
        pool = self._pools.get(backends)
        if pool is None:
            pool = self._pools[backends] = _Pool(backends, self._bounds.max_length)
        return pool

    def _has_room(self, pool: _Pool) -> bool:
        """Pools that share a backend share its room: each counts all that run in the others, too."""
        running = sum(other.num_running for other in self._pools.values() if pool.backends & other.backends)
        return running < self._capacity(pool)

    def _capacity(self, pool: _Pool) -> float:
        """Infinite where no backend is healthy: routing refuses at once, which tells more than waiting does."""
        known, states = self._catalogue().backends, self._states()
        healthy = [name for name in pool.backends if name in known and states.get(name, UNKNOWN).is_healthy]
        bounds = [known[name].max_in_flight for name in healthy]
        shares = [math.inf if bound is None else math.ceil(bound / self._bounds.num_processes) for bound in bounds]
        return sum(shares) if shares else math.inf


class _NoBound(AbstractAsyncContextManager[None]):
    """The turn of a request that need not wait. Stateless: one for all."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None


_NO_BOUND: Final = _NoBound()


def _busy(message: str, code: str, pool: _Pool) -> ApiError:
    """503 with the time in which the queue as it is will be served."""
    wait_s = pool.expected_wait_s(len(pool.queue))
    return service_unavailable(
        f"{message} Try again shortly.", retry_after_s=min(_MAX_RETRY_AFTER_S, max(1.0, wait_s)), code=code
    )
