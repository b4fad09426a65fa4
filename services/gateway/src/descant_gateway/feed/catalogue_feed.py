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
from descant_gateway.store.session import is_outage

RETRY_S: Final = 0.5
LOAD_TIMEOUT_S: Final = 120.0
FAILURES: Final = (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, UnsealError)
"""What is expected to keep the first snapshot from being read."""
_LOST: Final = "catalogue feed lost PostgreSQL; serving the last snapshot"
_UNREADABLE: Final = "catalogue feed cannot read all that changed; serving what it knew until somebody mends it"

log = structlog.get_logger(__name__)


class CatalogueFeed:
    """`current` is the newest snapshot known: an attribute read, no await, never half-changed.

    Each signal is enough by itself, and the poll is behind them all: a change is seen at once while PostgreSQL's
    notifications or Valkey's messages come through, and within `poll_s` if neither does. While PostgreSQL is away, or
    holds a row that can't be read, the last snapshot stays; beside one that can't be unsealed all else is followed.
    `age_s` tells how long ago it was last known to be true.
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
        self._trouble = ""
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
            except Exception as error:  # Whatever it is: if this task ended, no revocation would be seen any more.
                self._report_trouble(error)
                await self._pause(RETRY_S)
            else:
                self._report_recovery()
                await self._pause(self._poll_s)

    async def _refresh(self) -> None:
        asked_at = time.monotonic()
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            try:
                self.current = await stored.refresh(self._engine, self._sealer, self.current)
            except stored.PartlyRead as partly:
                self.current = partly.catalogue
                raise
        self._confirmed_at = asked_at

    async def _pause(self, seconds: float) -> None:
        """Until something changed, at most so long."""
        try:
            # Not asyncio.wait_for: in Python 3.11 it loses a cancellation that comes just when the event is set.
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _report_trouble(self, error: Exception) -> None:
        """One line for each kind of trouble, however often it is met."""
        trouble = _LOST if is_outage(error) else _UNREADABLE
        if trouble != self._trouble:
            tell = log.warning if trouble == _LOST else log.error
            tell(trouble, kind=type(error).__name__, error=str(error), age_s=self.age_s)
        self._trouble = trouble

    def _report_recovery(self) -> None:
        if self._trouble:
            log.info("catalogue feed is up to date again", version=self.current.version)
        self._trouble = ""
