"""What the ledger needs besides being written: hours rolled up, old days dropped, dead gateways' records found."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.store import ledger, rollups

INTERVAL_S: Final = 60.0
SETTLING: Final = timedelta(minutes=5)
"""Most requests of an hour have ended by so long after it. Those that end later only make it be summed again."""

log = structlog.get_logger(__name__)


class LedgerUpkeep:
    """Runs in every gateway; an advisory lock lets one at a time do the work."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        keep_days: int,
        recover: Callable[[], Awaitable[None]],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._engine = engine
        self._keep = timedelta(days=keep_days)
        self._recover = recover
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="ledger upkeep")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look_after(self, now: datetime) -> None:
        """Everything that is due at `now`, once. Raises what the database raises."""
        async with self._engine.begin() as guard:
            if not await rollups.become_the_one(guard):
                return
            async with self._engine.begin() as connection:
                await ledger.ensure_partitions(connection, ledger.utc_day(now))
            await self._roll_up(now)
            await self._drop_days(now)

    async def _run(self) -> None:
        while True:
            await self._recover()
            try:
                await self.look_after(datetime.now(UTC))
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("the ledger could not be looked after; trying again", error=str(error))
            await asyncio.sleep(self._interval_s)

    async def _roll_up(self, now: datetime) -> None:
        async with self._engine.begin() as connection:
            hours = await rollups.unrolled_hours(connection, now - SETTLING)
        for hour in hours:
            async with self._engine.begin() as connection:
                await rollups.roll_up(connection, hour)

    async def _drop_days(self, now: datetime) -> None:
        async with self._engine.begin() as connection:
            days = await rollups.old_days(connection, ledger.utc_day(now - self._keep))
        for day in days:
            async with self._engine.begin() as connection:
                if not await rollups.drop_day(connection, day):
                    return
            log.info("dropped a day of the ledger; its sums stay", day=day.isoformat())
