"""Hours are summed exactly once whatever comes late, days are dropped only after it, and reports are always exact."""

import asyncio
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from random import Random
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.usage_records import usage_record

from descant_gateway.ledger.upkeep import LedgerUpkeep
from descant_gateway.store import chargeback, ledger, rollups, usage
from descant_gateway.store.usage import Grouping, Tag, UsageDimension, UsageFilter, UsageRow
from descant_gateway.usage.record import Outcome, UsageRecord

DAY = date(2026, 11, 20)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
TEAM = uuid4()
ALL = UsageFilter(first_day=DAY - timedelta(days=30), last_day=DAY + timedelta(days=2))


def record(at: datetime = NOON, **fields: object) -> UsageRecord:
    plain = {
        "team_id": TEAM,
        "prompt_tokens": 100,
        "cached_tokens": 40,
        "completion_tokens": 10,
        "cost_microdollars": 7,
    }
    return usage_record(created_at=at, **plain | fields)


async def book(engine: AsyncEngine, *records: UsageRecord) -> None:
    async with engine.begin() as connection:
        await ledger.insert_records(connection, records)


async def report(
    engine: AsyncEngine, *dimensions: UsageDimension, tags: tuple[str, ...] = (), **given: object
) -> list[UsageRow]:
    async with engine.connect() as connection:
        return await usage.summarize(connection, replace(ALL, **given), Grouping(dimensions, tags))


async def num_requests(engine: AsyncEngine) -> int:
    return sum(row.requests for row in await report(engine))


async def roll_up(engine: AsyncEngine, hour: datetime = NOON) -> None:
    async with engine.begin() as connection:
        await rollups.roll_up(connection, hour)


async def count(engine: AsyncEngine, table: str) -> int:
    async with engine.connect() as connection:
        found: int = (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()
        return found


def upkeep(engine: AsyncEngine, *, keep_days: int = 400) -> LedgerUpkeep:
    async def nothing() -> None: ...

    return LedgerUpkeep(engine, keep_days=keep_days, recover=nothing)


async def test_sums_are_those_of_the_rows_before_and_after_rolling_up(engine: AsyncEngine) -> None:
    random = Random(7)
    records = [
        record(
            NOON + timedelta(seconds=random.randrange(-7200, 7200)),
            model=random.choice(["base", "other"]),
            outcome=random.choice(list(Outcome)),
            estimated=random.random() < 0.2,
            prompt_tokens=random.randrange(10**6),
            cost_microdollars=random.randrange(10**9),
            tags=random.choice([None, {"app": "a"}, {"app": "b", "env": "x"}]),
        )
        for _ in range(300)
    ]
    await book(engine, *records)
    dimensions = (UsageDimension.HOUR, UsageDimension.MODEL, UsageDimension.OUTCOME)
    before = await report(engine, *dimensions, tags=("app", "env"))
    await upkeep(engine).look_after(NOON + timedelta(days=1))
    assert await count(engine, "usage_unrolled") == 0
    assert await report(engine, *dimensions, tags=("app", "env")) == before
    (total,) = await report(engine)
    assert total.requests == 300
    assert total.prompt_tokens == sum(each.prompt_tokens for each in records)
    assert total.cost_microdollars == sum(each.cost_microdollars for each in records)
    assert total.estimated_requests == sum(each.estimated for each in records)
    by_app = {row.tags["app"]: row.requests for row in await report(engine, tags=("app",)) if row.tags}
    assert by_app == Counter(each.tags["app"] if each.tags else None for each in records)
    (tagged,) = await report(engine, tag=Tag("env", "x"))
    assert tagged.requests == sum(bool(each.tags and "env" in each.tags) for each in records)


async def test_rolling_up_again_changes_nothing_and_late_rows_are_counted(engine: AsyncEngine) -> None:
    first = record()
    await book(engine, first)
    for _ in range(3):
        await roll_up(engine)
        assert await num_requests(engine) == 1
    await book(engine, first)
    assert await count(engine, "usage_unrolled") == 0, "a charge that was there already marks nothing"
    await book(engine, record())
    assert await num_requests(engine) == 2, "before its hour is rolled up again, too"
    await roll_up(engine)
    assert await num_requests(engine) == 2


async def test_no_row_is_missed_by_a_roll_up_that_runs_while_it_is_written(engine: AsyncEngine) -> None:
    async with engine.connect() as writing:
        await ledger.insert_records(writing, [record()])
        rolling = asyncio.create_task(roll_up(engine))
        await asyncio.sleep(0.3)
        await writing.commit()
    await asyncio.wait_for(rolling, 10)
    assert await num_requests(engine) == 1
    await roll_up(engine)
    assert await num_requests(engine) == 1


async def test_writers_and_roll_ups_at_once_agree_in_the_end(engine: AsyncEngine) -> None:
    is_over = asyncio.Event()

    async def write(writer: UUID) -> None:
        for _ in range(25):
            async with engine.begin() as connection:
                lines = [ledger.encode_line(record()) for _ in range(4)]
                await ledger.insert_lines(connection, lines, writer)

    async def roll() -> None:
        while not is_over.is_set():
            await roll_up(engine)

    rolling = asyncio.create_task(roll())
    async with asyncio.timeout(30):
        await asyncio.gather(*(write(uuid4()) for _ in range(2)))
        is_over.set()
        await rolling
    assert await num_requests(engine) == 200
    await roll_up(engine)
    assert await num_requests(engine) == 200
    assert await count(engine, "usage_unrolled") == 0


async def test_a_day_is_dropped_only_when_it_is_rolled_up(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await ledger.ensure_partitions(connection, DAY)
    await book(engine, record(), record())
    async with engine.begin() as connection:
        assert not await rollups.drop_day(connection, DAY)
    assert await count(engine, "usage_ledger") == 2
    await roll_up(engine)
    async with engine.begin() as connection:
        assert await rollups.old_days(connection, DAY + timedelta(days=2)) == [DAY, DAY + timedelta(days=1)]
        assert await rollups.drop_day(connection, DAY)
    assert await count(engine, "usage_ledger") == 0
    assert await num_requests(engine) == 2


async def test_what_comes_after_its_day_was_dropped_is_added(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await ledger.ensure_partitions(connection, DAY)
    await book(engine, record())
    looking_after = upkeep(engine, keep_days=10)
    await looking_after.look_after(NOON + timedelta(days=20))
    assert await count(engine, "usage_ledger") == 0
    await book(engine, record(), record(NOON + timedelta(hours=1)))
    assert await num_requests(engine) == 3
    for _ in range(2):
        await looking_after.look_after(NOON + timedelta(days=20))
        assert await num_requests(engine) == 3
    assert await count(engine, "usage_ledger") == 0


async def test_too_many_values_of_a_tag_are_folded_and_not_lost(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = [record(tags={"user": "often"}) for _ in range(3)]
    many = [record(tags={"user": f"u{number:05}"}) for number in range(rollups.MAX_TAG_SETS + 50)]
    await book(engine, *often, *many)
    await roll_up(engine)
    rows = {row.tags["user"]: row.requests for row in await report(engine, tags=("user",)) if row.tags}
    assert rows["often"] == 3
    assert rows[usage.FOLDED_VALUE] == 51
    assert len(rows) == rollups.MAX_TAG_SETS + 1


async def test_a_month_s_chargeback_tells_every_version_of_the_price(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(
            "INSERT INTO price_versions (model, input, cached, output) VALUES ('base', 70000, 7000, 140000)"
        ))  # fmt: skip
    await book(engine, record(price_version=1), record(price_version=1), record(), record(NOON + timedelta(days=11)))
    async with engine.connect() as connection:
        rows = await chargeback.of_month(connection, DAY, ALL.reach)
    assert [(row.price_version, row.input_price, row.requests, row.cost_microdollars) for row in rows] == [
        (1, 70_000, 2, 14),
        (None, None, 1, 7),
    ]
