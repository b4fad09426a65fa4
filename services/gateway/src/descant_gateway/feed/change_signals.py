"""What tells a gateway that the catalogue changed. A signal carries nothing but "look": PostgreSQL is what is true.

There are two ways, so that losing one costs nothing: PostgreSQL's NOTIFY, which triggers send for any change, typed
into psql or not; and a message in Valkey, which the gateway that made a change sends, and which comes through where a
connection pooler (PgBouncer in transaction mode) swallows notifications.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import asyncpg
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.store.tables import CATALOGUE_CHANNEL

RECONNECT_S: Final = 0.5
HEARTBEAT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 5.0
PUBLISH_TIMEOUT_S: Final = 0.5
VALKEY_CHANNEL: Final = "descant:catalogue"

OnChange = Callable[[], None]

log = structlog.get_logger(__name__)


class ChangeSignal(Protocol):
    async def follow(self, on_change: OnChange) -> None:
        """Calls `on_change` after each change, and once whenever it may have missed some. Ends by cancellation only."""


class PostgresSignal:
    """Listens on a connection of its own, out of the engine's pool."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def follow(self, on_change: OnChange) -> None:
        while True:
            try:
                await self._listen(on_change)
            except (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.debug("no notifications from PostgreSQL", error=str(error))
            await asyncio.sleep(RECONNECT_S)

    async def _listen(self, on_change: OnChange) -> None:
        """Until the connection fails, which a heartbeat notices even where the network swallows everything."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            connection = await self._engine.connect()
        ended = asyncio.Event()
        try:
            # Notifications are delivered between transactions only.
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            await driver.add_listener(CATALOGUE_CHANNEL, lambda *_: on_change())
            driver.add_termination_listener(lambda _: ended.set())
            on_change()
            while not ended.is_set():
                await _heartbeat(connection)
                await _wait(ended, HEARTBEAT_S)
        finally:
            # Never back into the pool: it listens.
            await connection.invalidate()
            await connection.close()


class ValkeySignal:
    """Subscribes on a connection of its own; `publish` tells all gateways, this one too."""

    def __init__(self, valkey: "Redis") -> None:
        self._valkey = valkey

    async def publish(self) -> None:
        """Says that the catalogue changed. Where Valkey is away the notification and the poll remain."""
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                await self._valkey.publish(VALKEY_CHANNEL, b"")
        except (OSError, TimeoutError, RedisError) as error:
            log.debug("Valkey took no message about the catalogue", error=str(error))

    async def follow(self, on_change: OnChange) -> None:
        while True:
            try:
                async with self._valkey.pubsub() as subscription:
                    await _receive(subscription, on_change)
            except (OSError, TimeoutError, RedisError) as error:
                log.debug("no messages from Valkey", error=str(error))
            await asyncio.sleep(RECONNECT_S)

    async def close(self) -> None:
        await self._valkey.aclose()


async def _receive(subscription: PubSub, on_change: OnChange) -> None:
    """Until the connection fails: a ping that is not answered by the next one is a failure too."""
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        await subscription.subscribe(VALKEY_CHANNEL)
    is_silent = False
    while True:
        message = await subscription.get_message(timeout=HEARTBEAT_S)
        if message is not None:
            is_silent = False
            if message["type"] in {"message", "subscribe"}:
                on_change()
        elif is_silent:
            raise TimeoutError("Valkey does not answer")
        else:
            is_silent = True
            await subscription.ping()


async def _heartbeat(connection: AsyncConnection) -> None:
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        await connection.execute(text("SELECT 1"))


async def _wait(ended: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await ended.wait()
    except TimeoutError:
        pass
