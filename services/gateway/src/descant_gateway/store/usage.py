"""Reading usage and cost: sums over a range of days, by any of the ledger's dimensions."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from msgspec import Struct
from sqlalchemy import BigInteger, Date, RowMapping, Subquery, case, cast, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ColumnElement

from descant_gateway.identity.roles import EVERYTHING, Reach
from descant_gateway.store.charges import charges
from descant_gateway.store.reach import within
from descant_gateway.store.rollups import FOLDED_TAG
from descant_gateway.store.tables import keys, organizations, projects, teams
from descant_gateway.store.usage_tables import COUNTS

FOLDED_VALUE = "(others)"
"""What stands for a tag's values in hours that had too many of them."""


class UsageDimension(StrEnum):
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    """Its first day. All three are in UTC."""
    ORGANIZATION = "organization"
    TEAM = "team"
    PROJECT = "project"
    KEY = "key"
    MODEL = "model"
    ADAPTER = "adapter"
    """The model where it is an adapter; the base models' usage is in one row without an adapter."""
    OUTCOME = "outcome"


class Grouping(Struct, frozen=True):
    dimensions: tuple[UsageDimension, ...]
    tags: tuple[str, ...] = ()
    """Names of tags; what has no such tag is in a row of its own."""


class Tag(Struct, frozen=True):
    name: str
    value: str


class UsageFilter(Struct, frozen=True, kw_only=True):
    """Both days are in UTC and included."""

    first_day: date
    last_day: date
    organization_id: UUID | None = None
    team_id: UUID | None = None
    project_id: UUID | None = None
    key_id: UUID | None = None
    model: str | None = None
    tag: Tag | None = None
    reach: Reach = EVERYTHING


class UsageRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A dimension that was not asked for is None."""

    hour: datetime | None = None
    day: date | None = None
    month: date | None = None
    organization_id: UUID | None = None
    organization: str | None = None
    team_id: UUID | None = None
    team: str | None = None
    project_id: UUID | None = None
    project: str | None = None
    key_id: UUID | None = None
    key: str | None = None
    model: str | None = None
    adapter: str | None = None
    outcome: str | None = None
    tags: dict[str, str | None] | None = None
    """By name, for those that were asked for; null: the charges without it."""
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    estimated_requests: int
    """Those whose backend gave no usage, so that the tokens are the gateway's own count."""
    cost_microdollars: int


_NAMED = {
    UsageDimension.ORGANIZATION: organizations,
    UsageDimension.TEAM: teams,
    UsageDimension.PROJECT: projects,
    UsageDimension.KEY: keys,
}


async def summarize(connection: AsyncConnection, wanted: UsageFilter, grouping: Grouping) -> list[UsageRow]:
    """One row for each combination of what it is grouped by that has usage, in that order."""
    source = charges(_midnight(wanted.first_day), _midnight(wanted.last_day + timedelta(days=1)))
    groups = [column for dimension in grouping.dimensions for column in _columns(dimension, source)]
    groups += [_tag_value(source, name).label(f"tag_{number}") for number, name in enumerate(grouping.tags)]
    query = select(*groups, *(_sum(source, name) for name in COUNTS)).select_from(source)
    for dimension in grouping.dimensions:
        if dimension in _NAMED:
            table = _NAMED[dimension]
            query = query.outerjoin(table, table.c.id == source.c[f"{dimension}_id"])
    query = query.where(*_conditions(source, wanted)).group_by(*groups).order_by(*groups)
    if not groups:
        query = query.having(func.count() > 0)
    return [_usage_row(fields, grouping) for fields in (await connection.execute(query)).mappings()]


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _columns(dimension: UsageDimension, source: Subquery) -> tuple[ColumnElement[Any], ...]:
    c = source.c
    match dimension:
        case UsageDimension.HOUR:
            return (c.hour,)
        case UsageDimension.DAY:
            return (cast(func.timezone("UTC", c.hour), Date).label("day"),)
        case UsageDimension.MONTH:
            return (cast(func.date_trunc("month", func.timezone("UTC", c.hour)), Date).label("month"),)
        case UsageDimension.ADAPTER:
            return (case((c.parent.is_not(None), c.model)).label("adapter"),)
        case UsageDimension.MODEL | UsageDimension.OUTCOME:
            return (c[dimension],)
        case _:
            return (c[f"{dimension}_id"], _NAMED[dimension].c.name.label(str(dimension)))


def _tag_value(source: Subquery, name: str) -> ColumnElement[Any]:
    tags = source.c.tags
    return case((tags.has_key(FOLDED_TAG), FOLDED_VALUE), else_=tags[name].astext)


def _conditions(source: Subquery, wanted: UsageFilter) -> Iterator[ColumnElement[bool]]:
    c = source.c
    yield within(wanted.reach, c.organization_id, c.team_id)
    for name in ("organization_id", "team_id", "project_id", "key_id", "model"):
        value = getattr(wanted, name)
        if value is not None:
            yield c[name] == value
    if wanted.tag is not None:
        yield c.tags[wanted.tag.name].astext == wanted.tag.value


def _sum(source: Subquery, name: str) -> ColumnElement[Any]:
    # PostgreSQL's sum of bigint is numeric.
    return func.coalesce(func.sum(source.c[name]), 0).cast(BigInteger).label(name)


def _usage_row(fields: RowMapping, grouping: Grouping) -> UsageRow:
    tags = {name: fields[f"tag_{number}"] for number, name in enumerate(grouping.tags)}
    dimensions: dict[str, Any] = {
        name: fields.get(name) for name in UsageRow.__struct_fields__ if name not in {*COUNTS, "tags"}
    }
    return UsageRow(tags=tags or None, **dimensions, **{name: fields[name] for name in COUNTS})
