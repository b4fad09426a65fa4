"""The counters behind the limits, in Valkey: reserve before a request, settle after it, each exactly once.

`limits.lua` decides; this file sees to it that every reservation comes back, whatever happens to the request, to the
gateway's task or to Valkey in between, and that the leases of requests that run do not lapse.
"""

import asyncio
import time
from collections import defaultdict, deque
from importlib import resources
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from msgspec import Struct

from descant_gateway.limits.limit import NOTHING, Amounts, Standing, rate_limit_headers
from descant_gateway.limits.paths import LimitPath, tag_of
from descant_gateway.limits.script_queue import Argument, CallNotSent, Reply, ScriptQueue

LEASE_S: Final = 30.0
"""After a gateway died, what its requests held comes back within this."""
_RENEWALS_A_LEASE: Final = 3
_RENEWED_AT_ONCE: Final = 500
_SETTLE_RETRY_S: Final = 1.0
_RESUMED_AT_ONCE: Final = 4
"""Settlements that were put off, for each that Valkey takes again."""
_SETTLE_GIVE_UP_S: Final = 900.0
"""A reservation's record lives for an hour. The ledger has the truth anyway."""
_SETTLE_AT_END_S: Final = 3.0
"""For so long at most a gateway that ends waits for its settlements, which take milliseconds unless Valkey is away:
the ledger is flushed after this, and whoever ended the gateway may not wait for long."""


class Reservation(Struct, frozen=True):
    """What one request holds: `amounts` of every limit on the path."""

    charge_id: UUID
    path: LimitPath
    amounts: Amounts

    @property
    def name(self) -> str:
        """Its key in Valkey."""
        return f"{self.path.tag}:reservation:{self.charge_id.hex}"


class Decision(NamedTuple):
    is_granted: bool
    path: LimitPath
    left: list[float]
    """Of each limit on the path, after what was reserved."""
    now: float
    """Seconds since 1970, by Valkey's clock."""

    @property
    def standings(self) -> tuple[Standing, ...]:
        return tuple(Standing(limit, left, self.now) for limit, left in zip(self.path.limits, self.left, strict=True))

    @property
    def headers(self) -> dict[str, str]:
        """`x-ratelimit-*`, without a look at limits that are not shown."""
        limits, left, now = self.path.limits, self.left, self.now
        return rate_limit_headers(tuple(Standing(limits[n], left[n], now) for n in self.path.shown))


class _Settlement(NamedTuple):
    operation: str
    reservation: Reservation
    used: Amounts
    give_up_at: float
    """On the monotonic clock."""


class Limiter:
    """Owns the settlements on their way and the leases of the requests that run."""

    def __init__(self, queue: ScriptQueue, *, lease_s: float = LEASE_S) -> None:
        self._queue = queue
        self._lease_s = lease_s
        self._running: dict[UUID, Reservation] = {}
        self._unsettled: set[UUID] = set()
        self._put_off: deque[_Settlement] = deque()
        """Those of them that Valkey did not take. One at a time asks whether it is back."""
        self._next_try: asyncio.TimerHandle | None = None
        self._all_settled = asyncio.Event()
        self._all_settled.set()
        self._renewer: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("descant_gateway.limits.limiter")

    def start(self) -> None:
        """Begins to renew leases."""
        self._renewer = asyncio.get_running_loop().create_task(self._keep_renewing(), name="lease-renewals")

    async def close(self) -> None:
        """Waits for the settlements on their way, but not for long: those that Valkey does not take lapse."""
        await self.drain(_SETTLE_AT_END_S)
        if self._renewer is not None:
            self._renewer.cancel()
            await asyncio.gather(self._renewer, return_exceptions=True)

    @property
    def num_unsettled(self) -> int:
        """Settlements on their way to Valkey."""
        return len(self._unsettled)

    async def probe(self) -> bool:
        """Is Valkey there?"""
        return await self._queue.probe()

    async def reserve(self, reservation: Reservation) -> Decision:
        """Raises ValkeyAway. However it is left, by an error or a cancellation, nothing stays reserved."""
        try:
            reply = await self._submit("reserve", reservation.name, reservation.path, reservation.amounts)
        except CallNotSent:
            raise
        except BaseException:
            # The script may have run all the same. If it did not, this does nothing.
            self.settle(reservation, NOTHING)
            raise
        if reply[0] == 1 and reservation.path.needs_lease:
            self._running[reservation.charge_id] = reservation
        return Decision(reply[0] == 1, reservation.path, [float(left) for left in reply[2:]], float(reply[1]))

    async def peek(self, path: LimitPath) -> tuple[Standing, ...]:
        """Where the limits stand, changing nothing. Raises ValkeyAway."""
        reply = await self._submit("peek", f"{path.tag}:reservation:none", path, NOTHING)
        return Decision(True, path, [float(left) for left in reply[2:]], float(reply[1])).standings

    def settle(self, reservation: Reservation, used: Amounts) -> None:
        """Books what was really used, at once or, while Valkey is away, when it is back. Never waits, never raises."""
        self._running.pop(reservation.charge_id, None)
        self._begin("settle", reservation, used)

    def book(self, reservation: Reservation, used: Amounts) -> None:
        """Counts a request that ran without a reservation in Valkey; otherwise like `settle`.

        The reservation is one that was never asked for there: its charge id is known to nobody else.
        """
        self._begin("book", reservation, used)

    async def drain(self, timeout_s: float) -> None:
        """Waits for the settlements on their way."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_settled.wait()
        except TimeoutError:
            self._log.error("settlements were given up; their reservations lapse", count=self.num_unsettled)
            if self._next_try is not None:
                self._next_try.cancel()

    def _begin(self, operation: str, reservation: Reservation, used: Amounts) -> None:
        self._all_settled.clear()
        self._unsettled.add(reservation.charge_id)
        self._try_settle(_Settlement(operation, reservation, used, time.monotonic() + _SETTLE_GIVE_UP_S))

    def _try_settle(self, settlement: "_Settlement") -> None:
        def tried(reply: asyncio.Future[Reply]) -> None:
            is_taken = not reply.cancelled() and reply.exception() is None
            if is_taken or reply.cancelled() or time.monotonic() > settlement.give_up_at:
                self._close(settlement.reservation.charge_id)
            else:
                self._put_off.append(settlement)
            if is_taken:
                self._try_put_off(_RESUMED_AT_ONCE)
            elif self._put_off and self._next_try is None:
                self._next_try = asyncio.get_running_loop().call_later(_SETTLE_RETRY_S, self._try_again)

        reservation = settlement.reservation
        submitted = self._submit(settlement.operation, reservation.name, reservation.path, settlement.used)
        submitted.add_done_callback(tried)

    def _try_again(self) -> None:
        """After an outage of any length one call a second asks: each that is taken lets some of the others follow."""
        self._next_try = None
        self._try_put_off(1)

    def _try_put_off(self, at_most: int) -> None:
        for _ in range(min(at_most, len(self._put_off))):
            self._try_settle(self._put_off.popleft())

    def _close(self, charge_id: UUID) -> None:
        self._unsettled.discard(charge_id)
        if not self._unsettled:
            self._all_settled.set()

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / _RENEWALS_A_LEASE)
            await self._renew()

    async def _renew(self) -> None:
        by_organization: defaultdict[UUID, list[str]] = defaultdict(list)
        for reservation in self._running.values():
            by_organization[reservation.path.organization_id].append(reservation.name)
        calls = [
            self._queue.submit([names[0], _leases(tag_of(organization_id)), *names], ["renew", self._lease_s])
            for organization_id, running in by_organization.items()
            for names in _parts(running)
        ]
        # One that fails is tried again with the next round, long before its lease lapses.
        await asyncio.gather(*calls, return_exceptions=True)

    def _submit(self, operation: str, name: str, path: LimitPath, amounts: Amounts) -> asyncio.Future[Reply]:
        keys = (name, _leases(path.tag), *path.counters)
        args: tuple[Argument, ...] = (
            operation,
            self._lease_s,
            path.described,
            amounts.requests,
            amounts.tokens,
            amounts.microdollars,
        )
        return self._queue.submit(keys, args)


def limits_script() -> str:
    return resources.files("descant_gateway.limits").joinpath("limits.lua").read_text()


def _parts(names: list[str]) -> list[list[str]]:
    return [names[start : start + _RENEWED_AT_ONCE] for start in range(0, len(names), _RENEWED_AT_ONCE)]


def _leases(tag: str) -> str:
    return f"{tag}:leases"
