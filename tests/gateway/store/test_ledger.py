from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.usage_records import usage_record

from descant_gateway.store import ledger
from descant_gateway.usage.record import Outcome, UsageRecord

DAY = date(2026, 11, 21)


def record_at(created_at: datetime) -> UsageRecord:
    return usage_record(
        created_at=created_at,
        outcome=Outcome.REFUSED,
        status=400,
        prompt_tokens=2**40,
        cached_tokens=0,
        completion_tokens=0,
    )


async def homes(engine: AsyncEngine) -> list[str]:
    """Which partition each row is in."""
    async with engine.connect() as connection:
        query = text("SELECT tableoid::regclass::text FROM usage_ledger ORDER BY created_at")
        return list((await connection.execute(query)).scalars())


async def test_a_day_without_partition_is_taken_by_the_default_and_moves_later(engine: AsyncEngine) -> None:
    noon = datetime(2026, 11, 21, 12, tzinfo=UTC)
    records = [record_at(noon), record_at(noon + timedelta(days=1)), record_at(noon + timedelta(days=90))]
    async with engine.begin() as connection:
        await ledger.insert_records(connection, records)
    assert await homes(engine) == ["usage_ledger_default"] * 3
    for _ in range(2):
        async with engine.begin() as connection:
            await ledger.ensure_partitions(connection, DAY, days=3)
    assert await homes(engine) == ["usage_ledger_20261121", "usage_ledger_20261122", "usage_ledger_default"]
    async with engine.begin() as connection:
        await ledger.insert_records(connection, records)
    assert len(await homes(engine)) == 3, "a charge that has moved is still there only once"


async def test_the_day_is_that_of_utc(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await ledger.ensure_partitions(connection, DAY, days=2)
        late = datetime.fromisoformat("2026-11-22T01:30:00+02:00")
        await ledger.insert_records(connection, [record_at(late)])
    assert await homes(engine) == ["usage_ledger_20261121"]


async def test_a_charge_cannot_be_booked_on_another_day(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await ledger.insert_records(connection, [record_at(datetime(2026, 11, 21, tzinfo=UTC))])
    with pytest.raises(IntegrityError, match="usage_ledger_day_check"):
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE usage_ledger_default SET day = day + 1"))


@pytest.mark.parametrize(
    "change", ["UPDATE usage_ledger SET model = 'x'", "DELETE FROM usage_ledger", "TRUNCATE usage_ledger"]
)
async def test_the_ledger_only_grows(engine: AsyncEngine, change: str) -> None:
    async with engine.begin() as connection:
        await ledger.insert_records(connection, [record_at(datetime(2026, 11, 21, tzinfo=UTC))])
    with pytest.raises(DBAPIError, match="append-only"):
        async with engine.begin() as connection:
            await connection.execute(text(change))
