"""Writing the usage ledger: batches that may come twice, partitions made ahead of their day."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store import advisory_locks
from descant_gateway.usage.record import UsageRecord, encode_line

DAYS_AHEAD: Final = 7
NOBODY: Final = UUID(int=0)
_COLUMNS: Final = {
    "charge_id": "uuid",
    "created_at": "timestamptz",
    "organization_id": "uuid",
    "team_id": "uuid",
    "key_id": "uuid",
    "project_id": "uuid",
    "request_id": "text",
    "model": "text",
    "parent": "text",
    "alias_of": "text",
    "served_model": "text",
    "backend": "text",
    "endpoint": "text",
    "stream": "boolean",
    "outcome": "text",
    "status": "smallint",
    "prompt_tokens": "bigint",
    "cached_tokens": "bigint",
    "completion_tokens": "bigint",
    "estimated": "boolean",
    "ttft_ms": "bigint",
    "duration_ms": "bigint",
    "cost_microdollars": "bigint",
    "price_version": "bigint",
    "tags": "jsonb",
}
_INSERT: Final = text(f"""
    WITH stored AS (
        INSERT INTO usage_ledger (day, {", ".join(_COLUMNS)})
        SELECT (created_at AT TIME ZONE 'UTC')::date, {", ".join(_COLUMNS)}
        FROM json_to_recordset(CAST(CAST(:lines AS text) AS json))
            AS given ({", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())})
        ON CONFLICT DO NOTHING
        RETURNING created_at
    )
    INSERT INTO usage_unrolled (hour, writer)
    SELECT DISTINCT date_trunc('hour', created_at, 'UTC') AS hour, CAST(:writer AS uuid) FROM stored ORDER BY hour
    -- Updates nothing, but holds the mark until this transaction ends: nobody rolls the hour up without its rows.
    ON CONFLICT (hour, writer) DO UPDATE SET writer = excluded.writer WHERE false
""")


async def insert_records(connection: AsyncConnection, records: Sequence[UsageRecord]) -> None:
    await insert_lines(connection, [encode_line(record) for record in records], NOBODY)


async def insert_lines(connection: AsyncConnection, lines: Sequence[bytes], writer: UUID) -> None:
    """Records as `encode_line` writes them. One whose charge is there already is passed over.

    PostgreSQL takes the JSON apart: an INSERT with a parameter for every field costs the gateway three times the CPU.
    In the same transaction their hours are marked: they have to be rolled up (again), see `rollups`.
    """
    await connection.execute(_INSERT, {"lines": f"[{b','.join(lines).decode()}]", "writer": writer})


async def ensure_partitions(connection: AsyncConnection, first: date, days: int = DAYS_AHEAD) -> None:
    """A partition for each day from `first` on. Rows that came before their partition move into it."""
    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": advisory_locks.PARTITIONS})
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
