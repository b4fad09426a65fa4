"""The counters behind the limits, in Valkey: reserve before a request, settle after it, each exactly once.

`limits.lua` decides; this file names the buckets and sees to it that every reservation comes back, whatever happens to
the request, to the gateway's task or to Valkey in between.
"""

import asyncio
import time
from importlib import resources
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from msgspec import Struct

from descant_gateway.limits import NOTHING, Amounts, Limit, Standing
from descant_gateway.script_queue import Argument, CallNotSent, Reply, ScriptQueue

_RESERVATION_TTL_S: Final = 3600
"""Longer than any request. A reservation whose gateway died goes then; its amounts have long been refilled."""
_SETTLE_RETRY_S: Final = 1.0
_SETTLE_GIVE_UP_S: Final = 180.0
"""A bucket refills in a minute: long after that there is nothing left to give back. The ledger has the truth anyway."""


class Reservation(Struct, frozen=True):
    """What one request holds: `amounts` of every bucket in `limits`."""

    charge_id: UUID
    organization_id: UUID
    limits: tuple[Limit, ...]
    amounts: Amounts


class Decision(NamedTuple):
    is_granted: bool
    standings: tuple[Standing, ...]


class Limiter:
    def __init__(self, queue: ScriptQueue) -> None:
        self._queue = queue
        self._unsettled: dict[UUID, asyncio.TimerHandle | None] = {}
        self._all_settled = asyncio.Event()
        self._all_settled.set()
        self._log = structlog.get_logger("descant_gateway.limiter")

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
            reply = await self._submit("reserve", reservation, reservation.amounts)
        except CallNotSent:
            raise
        except BaseException:
            # The script may have run all the same. If it did not, this does nothing.
            self.settle(reservation, NOTHING)
            raise
        held = [float(level) for level in reply[1:]]
        standings = tuple(Standing(limit, level) for limit, level in zip(reservation.limits, held, strict=True))
        return Decision(reply[0] == 1, standings)

    def settle(self, reservation: Reservation, used: Amounts) -> None:
        """Books what was really used, at once or, while Valkey is away, when it is back. Never waits, never raises."""
        self._all_settled.clear()
        self._unsettled[reservation.charge_id] = None
        self._try_settle(reservation, used, time.monotonic() + _SETTLE_GIVE_UP_S)

    async def drain(self, timeout_s: float) -> None:
        """Waits for the settlements on their way."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_settled.wait()
        except TimeoutError:
            self._log.error("settlements were given up; their reservations lapse", count=self.num_unsettled)
            for timer in self._unsettled.values():
                if timer is not None:
                    timer.cancel()

    def _try_settle(self, reservation: Reservation, used: Amounts, give_up_at: float) -> None:
        reserved = reservation.amounts
        beyond = Amounts(used.requests - reserved.requests, used.tokens - reserved.tokens)

        def settled(reply: asyncio.Future[Reply]) -> None:
            if reply.cancelled() or reply.exception() is None or time.monotonic() > give_up_at:
                self._close(reservation.charge_id)
            else:
                loop = asyncio.get_running_loop()
                timer = loop.call_later(_SETTLE_RETRY_S, self._try_settle, reservation, used, give_up_at)
                self._unsettled[reservation.charge_id] = timer

        self._submit("settle", reservation, beyond).add_done_callback(settled)

    def _close(self, charge_id: UUID) -> None:
        self._unsettled.pop(charge_id, None)
        if not self._unsettled:
            self._all_settled.set()

    def _submit(self, operation: str, reservation: Reservation, amounts: Amounts) -> asyncio.Future[Reply]:
        tag = f"descant:{{{reservation.organization_id.hex}}}"  # one hash slot for all of an organization
        keys = [f"{tag}:reservation:{reservation.charge_id.hex}"]
        args: list[Argument] = [operation, _RESERVATION_TTL_S * 1000]
        for limit in reservation.limits:
            keys.append(f"{tag}:{limit.level}:{limit.owner}:{limit.dimension}")
            args += (limit.capacity, limit.refill_per_s, amounts.of(limit.dimension))
        return self._queue.submit(keys, args)


def limits_script() -> str:
    return resources.files("descant_gateway").joinpath("limits.lua").read_text()
