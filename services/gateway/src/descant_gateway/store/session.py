"""Connections to PostgreSQL."""

from typing import Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec
from msgspec import Struct
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from descant_gateway.config import Secret

CONNECT_TIMEOUT_S: Final = 5.0
COMMAND_TIMEOUT_S: Final = 30.0
_ACTOR: Final = "descant_actor"

# Classes of SQLSTATE, https://www.postgresql.org/docs/current/errcodes-appendix.html
OUTAGE_CLASSES: Final = frozenset({"08", "53", "57", "58"})
"""Connection, resources, shutdown or start-up, input and output."""
REJECTION_CLASSES: Final = frozenset({"22", "23"})
"""Data, constraints."""


def create_engine(database_url: Secret, *, pool_size: int = 4) -> AsyncEngine:
    """An engine with a small pool. It connects on first use, and again after PostgreSQL was away."""
    dsn = postgres_dsn(database_url.reveal())

    async def connect() -> asyncpg.Connection:
        # asyncpg reads the URL itself, so libpq's parameters (sslmode, host=/socket/folder, ...) mean what they should.
        return await asyncpg.connect(
            dsn,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings={"application_name": "descant-gateway"},
        )

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_S,
        pool_pre_ping=True,
        hide_parameters=True,
    )
    event.listen(engine.sync_engine, "begin", _say_who_acts)
    return engine


class ActingAs(Struct, frozen=True):
    """What the audit log records of who makes a change, and from where."""

    kind: str
    id: str
    name: str
    address: str | None
    request: str
    request_id: str


def acting_as(engine: AsyncEngine, actor: ActingAs) -> AsyncEngine:
    """The same engine and pool; every transaction that it begins is this actor's in the audit log."""
    return engine.execution_options(**{_ACTOR: actor})


def _say_who_acts(connection: Connection) -> None:
    actor = connection.get_execution_options().get(_ACTOR)
    if actor is not None:
        text = msgspec.json.encode(actor).decode()
        connection.exec_driver_sql("SELECT set_config('descant.actor', $1, true)", (text,))


def postgres_dsn(url: str) -> str:
    """The URL without SQLAlchemy's driver suffix."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(scheme="postgresql"))


def is_outage(error: BaseException) -> bool:
    """True if PostgreSQL can't be reached or can't serve now, so that the same statement may work later."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or _sqlstate(error)[:2] in OUTAGE_CLASSES
    return isinstance(error, (OSError, TimeoutError, PoolTimeout, asyncpg.PostgresError, asyncpg.InterfaceError))


def is_rejection(error: DBAPIError) -> bool:
    """True if PostgreSQL, or the driver for it, refuses the values themselves: they will never be taken."""
    return _sqlstate(error)[:2] in REJECTION_CLASSES or isinstance(_cause(error), ValueError)


def _sqlstate(error: DBAPIError) -> str:
    return getattr(_cause(error), "sqlstate", None) or ""


def _cause(error: DBAPIError) -> BaseException | None:
    """The driver's own error, which SQLAlchemy wraps twice."""
    return error.orig.__cause__ if error.orig is not None else None
