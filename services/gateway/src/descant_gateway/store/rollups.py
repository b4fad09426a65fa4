"""Sums of the ledger by the hour, and the end of its days.

`usage_unrolled` lists the hours whose rows are not all in `usage_hourly`: whoever adds to the ledger marks them, in the
same transaction. Rolling an hour up removes its marks and sums it anew, so doing it twice is doing it once, and a row
that comes late only makes its hour be summed again.
"""

from datetime import date, datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store import advisory_locks
from descant_gateway.store.ledger import partition_name
from descant_gateway.store.usage_tables import COUNTS, DIMENSIONS

MAX_TAG_SETS: Final = 1000
"""Of one team in one hour, those with the most requests; the rest is summed as one, see FOLDED_TAG."""
FOLDED_TAG: Final = ""
"""The name, which no client can give, of the tag that stands for folded ones."""
_LOCK_TIMEOUT: Final = "2s"
"""Dropping a day locks out every insert: rather try again later than make them queue."""

_KEYS: Final = tuple(name for name in DIMENSIONS if name != "tags")
_SUM: Final = f"""
    , sets AS (
        SELECT team_id, tags, row_number() OVER (PARTITION BY team_id ORDER BY count(*) DESC, tags) AS place
        FROM charges WHERE tags IS NOT NULL GROUP BY team_id, tags
    )
    INSERT INTO usage_hourly (hour, {", ".join(_KEYS)}, tags, {", ".join(COUNTS)})
    SELECT CAST(:hour AS timestamptz), {", ".join(f"charges.{name}" for name in _KEYS)},
        CASE WHEN place > {MAX_TAG_SETS} THEN jsonb_build_object('{FOLDED_TAG}', '') ELSE charges.tags END AS kept_tags,
        count(*), count(*) FILTER (WHERE estimated),
        sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(cost_microdollars)
    FROM charges LEFT JOIN sets ON sets.team_id = charges.team_id AND sets.tags = charges.tags
    GROUP BY {", ".join(f"charges.{name}" for name in _KEYS)}, kept_tags
"""
_WITHIN_HOUR: Final = "created_at >= :hour AND created_at < :hour + interval '1 hour'"
_SUM_HOUR: Final = text(
    f"WITH charges AS (SELECT * FROM usage_ledger"
    f" WHERE day = (CAST(:hour AS timestamptz) AT TIME ZONE 'UTC')::date AND {_WITHIN_HOUR}) {_SUM}"
)
_ADD_LATE: Final = text(
    f"WITH charges AS (DELETE FROM usage_ledger_default"
    f" WHERE day = (CAST(:hour AS timestamptz) AT TIME ZONE 'UTC')::date AND {_WITHIN_HOUR} RETURNING *) {_SUM}"
)


async def become_the_one(connection: AsyncConnection) -> bool:
    """False if another gateway is at it: one is enough. Until the transaction ends."""
    lock = text("SELECT pg_try_advisory_xact_lock(:lock)")
    return bool((await connection.execute(lock, {"lock": advisory_locks.UPKEEP})).scalar_one())


async def unrolled_hours(connection: AsyncConnection, before: datetime) -> list[datetime]:
    """Those that had ended by then, oldest first."""
    query = text("SELECT DISTINCT hour FROM usage_unrolled WHERE hour + interval '1 hour' <= :before ORDER BY hour")
    return list((await connection.execute(query, {"before": before})).scalars())


async def roll_up(connection: AsyncConnection, hour: datetime) -> None:
    """One transaction's work. Waits for those who add to this hour, and makes them wait."""
    # READ COMMITTED: the sum is taken with a look at the ledger that begins after the marks' writers have ended.
    await connection.execute(text("DELETE FROM usage_unrolled WHERE hour = :hour"), {"hour": hour})
    dropped_before = text("SELECT :hour < dropped_before::timestamp AT TIME ZONE 'UTC' FROM usage_retention FOR SHARE")
    if (await connection.execute(dropped_before, {"hour": hour})).scalar_one():
        # The rows that it was summed from are gone. What came late is added, and follows them.
        await connection.execute(_ADD_LATE, {"hour": hour})
        return
    await connection.execute(text("DELETE FROM usage_hourly WHERE hour = :hour"), {"hour": hour})
    await connection.execute(_SUM_HOUR, {"hour": hour})


async def old_days(connection: AsyncConnection, before: date) -> list[date]:
    """Days before `before` that the ledger still has a partition for, oldest first."""
    query = text(
        "SELECT to_date(right(inhrelid::regclass::text, 8), 'YYYYMMDD') AS day FROM pg_inherits"
        " WHERE inhparent = 'usage_ledger'::regclass AND inhrelid::regclass::text ~ '^usage_ledger_[0-9]{8}$'"
        " ORDER BY day"
    )
    return [day for day in (await connection.execute(query)).scalars() if day < before]


async def drop_day(connection: AsyncConnection, day: date) -> bool:
    """False if the day is not rolled up. Days are dropped oldest first, each in a transaction."""
    await connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
    await connection.execute(text(f"LOCK TABLE usage_ledger, {partition_name(day)} IN ACCESS EXCLUSIVE MODE"))
    unrolled = text("SELECT EXISTS (SELECT FROM usage_unrolled WHERE (hour AT TIME ZONE 'UTC')::date <= :day)")
    if (await connection.execute(unrolled, {"day": day})).scalar_one():
        return False
    raise_horizon = text("UPDATE usage_retention SET dropped_before = greatest(dropped_before, CAST(:day AS date) + 1)")
    await connection.execute(raise_horizon, {"day": day})
    await connection.execute(text("DELETE FROM usage_ledger_default WHERE day <= :day"), {"day": day})
    await connection.execute(text(f"DROP TABLE {partition_name(day)}"))
    return True
