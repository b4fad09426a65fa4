"""Writing the usage ledger: batches that may come twice, partitions made ahead of their day."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.ledger import UsageRecord
from descant_gateway.store.tables import usage_ledger

DAYS_AHEAD: Final = 7
PARTITION_LOCK: Final = 0x6465_7363_616E_7402


async def insert_records(connection: AsyncConnection, records: Sequence[UsageRecord]) -> None:
    """A record whose charge is there already is passed over."""
    rows = [_row(record) for record in records]
    await connection.execute(insert(usage_ledger).on_conflict_do_nothing(), rows)


async def ensure_partitions(connection: AsyncConnection, first: date, days: int = DAYS_AHEAD) -> None:
    """A partition for each day from `first` on. Rows that came before their partition move into it."""
    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": PARTITION_LOCK})
    for offset in range(days):
        day = first + timedelta(days=offset)
        exists = await connection.execute(text("SELECT to_regclass(:name)"), {"name": partition_name(day)})
        if exists.scalar_one() is None:
            await _create_partition(connection, day)


def partition_name(day: date) -> str:
    return f"usage_ledger_{day:%Y%m%d}"


async def _create_partition(connection: AsyncConnection, day: date) -> None:
    """Attached when it is filled: unlike CREATE TABLE ... PARTITION OF, that locks out no insert for other days."""
    name = partition_name(day)
    await connection.execute(text(f"CREATE TABLE {name} (LIKE usage_ledger INCLUDING ALL)"))
    await connection.execute(
        text(
            f"WITH early AS (DELETE FROM usage_ledger_default WHERE day = :day RETURNING *)"
            f" INSERT INTO {name} SELECT * FROM early"
        ),
        {"day": day},
    )
    bounds = f"FROM ('{day}') TO ('{day + timedelta(days=1)}')"
    await connection.execute(text(f"ALTER TABLE usage_ledger ATTACH PARTITION {name} FOR VALUES {bounds}"))


def utc_day(moment: datetime) -> date:
    return moment.astimezone(UTC).date()


def _row(record: UsageRecord) -> dict[str, object]:
    fields = {name: getattr(record, name) for name in UsageRecord.__struct_fields__}
    return {**fields, "day": utc_day(record.created_at), "outcome": record.outcome.value}
