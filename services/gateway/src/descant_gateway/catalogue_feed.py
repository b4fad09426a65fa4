"""Keeps the catalogue in memory equal to PostgreSQL's: told of changes at once, and asking besides."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Final

import asyncpg
import structlog
from msgspec.structs import replace
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.catalogue import Catalogue
from descant_gateway.sealing import Sealer, UnsealError
from descant_gateway.store import catalogue as stored
from descant_gateway.store.tables import CATALOGUE_CHANNEL

RECONNECT_S: Final = 0.5
ANSWER_TIMEOUT_S: Final = 5.0
FAILURES: Final = (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, UnsealError)

log = structlog.get_logger(__name__)


class CatalogueFeed:
    """`current` is the newest snapshot known: an attribute read, no await, never half-changed.

    While PostgreSQL is away the last snapshot stays; `age_s` tells how long ago it was last known to be true. Rotated
    secrets end on time even then.
    """

    def __init__(self, engine: AsyncEngine, sealer: Sealer, *, poll_s: float = 3.0) -> None:
        self.current = Catalogue(version=0)
        self._engine = engine
        self._sealer = sealer
        self._poll_s = poll_s
        self._expiries: tuple[stored.SecretExpiry, ...] = ()
        self._confirmed_at = -float("inf")
        self._changed = asyncio.Event()
        self._is_away = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the first snapshot, or raises what the database raised; then follows the changes."""
        await self._load()
        self._task = asyncio.create_task(self._follow(), name="catalogue feed")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @property
    def age_s(self) -> float:
        """Seconds since the snapshot was last seen to be PostgreSQL's; infinite before the start."""
        return time.monotonic() - self._confirmed_at

    async def _follow(self) -> None:
        while True:
            try:
                await self._listen()
            except FAILURES as error:
                self._report_outage(error)
            await self._pause(RECONNECT_S)

    async def _listen(self) -> None:
        """Refreshes on every notification and every poll, until the connection fails."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            connection = await self._engine.connect()
        try:
            # Notifications are delivered between transactions only.
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            await driver.add_listener(CATALOGUE_CHANNEL, self._on_notification)
            driver.add_termination_listener(self._on_disconnect)
            while True:
                self._changed.clear()
                await self._refresh(connection)
                await self._pause(self._poll_s)
        finally:
            # Never back into the pool: it listens.
            await connection.invalidate()
            await connection.close()

    async def _refresh(self, connection: AsyncConnection) -> None:
        asked_at = time.monotonic()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            version = await stored.version(connection)
        if version != self.current.version:
            await self._load()
        self._confirmed_at = max(self._confirmed_at, asked_at)
        self._report_recovery()

    async def _load(self) -> None:
        asked_at = time.monotonic()
        snapshot = await stored.load(self._engine, self._sealer)
        self.current, self._expiries = snapshot.catalogue, snapshot.expiries
        self._confirmed_at = asked_at

    async def _pause(self, seconds: float) -> None:
        """Until something changed, at most so long; secrets that end meanwhile are dropped on time."""
        until = time.monotonic() + seconds
        while not self._changed.is_set() and (left := until - time.monotonic()) > 0:
            try:
                # Not asyncio.wait_for: in Python 3.11 it loses a cancellation that comes just when the event is set.
                async with asyncio.timeout(min(left, self._seconds_to_expiry())):
                    await self._changed.wait()
            except TimeoutError:
                self._drop_expired()

    def _seconds_to_expiry(self) -> float:
        if not self._expiries:
            return float("inf")
        return max(0.0, (self._expiries[0].not_after - datetime.now(UTC)).total_seconds())

    def _drop_expired(self) -> None:
        now = datetime.now(UTC)
        ended = [expiry for expiry in self._expiries if expiry.not_after <= now]
        if not ended:
            return
        keys = dict(self.current.keys)
        for expiry in ended:
            key = keys[expiry.public_id]
            valid = tuple(stored for stored in key.secret_hmacs if stored != expiry.secret_hmac)
            keys[expiry.public_id] = replace(key, secret_hmacs=valid)
        self.current = replace(self.current, keys=keys)
        self._expiries = self._expiries[len(ended) :]

    def _on_notification(self, connection: object, pid: int, channel: str, payload: object) -> None:
        self._changed.set()

    def _on_disconnect(self, connection: object) -> None:
        self._changed.set()

    def _report_outage(self, error: BaseException) -> None:
        if not self._is_away:
            log.warning("catalogue feed lost PostgreSQL; serving the last snapshot", error=str(error), age_s=self.age_s)
        self._is_away = True

    def _report_recovery(self) -> None:
        if self._is_away:
            log.info("catalogue feed has PostgreSQL back", version=self.current.version)
        self._is_away = False
