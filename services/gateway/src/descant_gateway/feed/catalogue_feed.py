"""Keeps the catalogue in memory equal to PostgreSQL's: told of changes at once, and asking besides."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import asyncpg
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.catalogue.snapshot import Catalogue
from descant_gateway.feed.change_signals import ChangeSignal
from descant_gateway.sealing import Sealer, UnsealError
from descant_gateway.store import catalogue as stored

RETRY_S: Final = 0.5
LOAD_TIMEOUT_S: Final = 120.0
FAILURES: Final = (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, UnsealError)

log = structlog.get_logger(__name__)


class CatalogueFeed:
    """`current` is the newest snapshot known: an attribute read, no await, never half-changed.

    Each signal is enough by itself, and the poll is behind them all: a change is seen at once while PostgreSQL's
    notifications or Valkey's messages come through, and within `poll_s` if neither does. While PostgreSQL is away the
    last snapshot stays; `age_s` tells how long ago it was last known to be true.
    """

    def __init__(
        self, engine: AsyncEngine, sealer: Sealer, *, signals: Sequence[ChangeSignal] = (), poll_s: float = 3.0
    ) -> None:
        self.current = Catalogue(version=0)
        self._engine = engine
        self._sealer = sealer
        self._signals = signals
        self._poll_s = poll_s
        self._confirmed_at = -float("inf")
        self._changed = asyncio.Event()
        self._is_away = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Loads the first snapshot, or raises what the database raised; then follows the changes."""
        asked_at = time.monotonic()
        self.current = await stored.load(self._engine, self._sealer)
        self._confirmed_at = asked_at
        self._tasks = [asyncio.create_task(signal.follow(self._changed.set)) for signal in self._signals]
        self._tasks.append(asyncio.create_task(self._follow(), name="catalogue feed"))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    @property
    def age_s(self) -> float:
        """Seconds since the snapshot was last seen to be PostgreSQL's; infinite before the start."""
        return time.monotonic() - self._confirmed_at

    async def _follow(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self._refresh()
            except FAILURES as error:
                self._report_outage(error)
                await self._pause(RETRY_S)
            else:
                self._report_recovery()
                await self._pause(self._poll_s)

    async def _refresh(self) -> None:
        asked_at = time.monotonic()
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            self.current = await stored.refresh(self._engine, self._sealer, self.current)
        self._confirmed_at = asked_at

    async def _pause(self, seconds: float) -> None:
        """Until something changed, at most so long."""
        try:
            # Not asyncio.wait_for: in Python 3.11 it loses a cancellation that comes just when the event is set.
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _report_outage(self, error: BaseException) -> None:
        if not self._is_away:
            log.warning("catalogue feed lost PostgreSQL; serving the last snapshot", error=str(error), age_s=self.age_s)
        self._is_away = True

    def _report_recovery(self) -> None:
        if self._is_away:
            log.info("catalogue feed has PostgreSQL back", version=self.current.version)
        self._is_away = False
