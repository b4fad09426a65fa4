"""The ledger as sums by the hour, exact at any moment: the hours that are not rolled up are read from it itself."""

from datetime import datetime

from sqlalchemy import (
    Date,
    DateTime,
    Integer,
    Interval,
    Subquery,
    and_,
    cast,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    union_all,
)

from descant_gateway.store.tables import usage_ledger
from descant_gateway.store.usage_tables import COUNTS, DIMENSIONS, usage_hourly, usage_retention, usage_unrolled

_AN_HOUR = literal_column("interval '1 hour'", Interval)


def charges(first: datetime, end: datetime) -> Subquery:
    """With columns `hour`, DIMENSIONS and COUNTS, for what was admitted from `first` on and before `end`."""
    return union_all(_rolled(first, end), _raw(first, end)).subquery("charges")


def _rolled(first: datetime, end: datetime):  # type: ignore[no-untyped-def]  # a Select of twelve columns
    hourly = usage_hourly.c
    dropped_before = func.timezone("UTC", cast(usage_retention.c.dropped_before, DateTime(timezone=False)))
    is_dropped = hourly.hour < select(dropped_before).scalar_subquery()
    return select(hourly.hour, *(hourly[name] for name in (*DIMENSIONS, *COUNTS))).where(
        hourly.hour >= first,
        hourly.hour < end,
        or_(~exists().where(usage_unrolled.c.hour == hourly.hour), is_dropped),
    )


def _raw(first: datetime, end: datetime):  # type: ignore[no-untyped-def]  # a Select of twelve columns
    ledger = usage_ledger.c
    hours = (
        select(usage_unrolled.c.hour)
        .where(usage_unrolled.c.hour >= first, usage_unrolled.c.hour < end)
        .distinct()
        .subquery("unrolled")
    )
    counts = {
        "requests": literal(1, Integer),
        "estimated_requests": cast(ledger.estimated, Integer),
        **{name: ledger[name] for name in COUNTS if name not in ("requests", "estimated_requests")},
    }
    return select(hours.c.hour, *(ledger[name] for name in DIMENSIONS), *(counts[name] for name in COUNTS)).join_from(
        hours,
        usage_ledger,
        and_(
            ledger.day == cast(func.timezone("UTC", hours.c.hour), Date),
            ledger.created_at >= hours.c.hour,
            ledger.created_at < hours.c.hour + _AN_HOUR,
        ),
    )
