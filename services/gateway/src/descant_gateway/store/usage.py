"""Reading the usage ledger: sums over a range of days, by any of its dimensions."""

from collections.abc import Sequence
from datetime import date
from enum import StrEnum
from typing import Any
from uuid import UUID

from msgspec import Struct
from sqlalchemy import BigInteger, RowMapping, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ColumnElement

from descant_gateway.roles import EVERYTHING, Reach
from descant_gateway.store.reach import within
from descant_gateway.store.tables import keys, teams, usage_ledger


class UsageDimension(StrEnum):
    DAY = "day"
    TEAM = "team"
    KEY = "key"
    MODEL = "model"
    ADAPTER = "adapter"
    """The model where it is an adapter; the base models' usage is in one row without an adapter."""
    OUTCOME = "outcome"


class UsageFilter(Struct, frozen=True, kw_only=True):
    """Both days are in UTC and included."""

    first_day: date
    last_day: date
    team_id: UUID | None = None
    key_id: UUID | None = None
    model: str | None = None
    reach: Reach = EVERYTHING


class UsageRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A dimension that was not asked for is None."""

    day: date | None = None
    team_id: UUID | None = None
    team: str | None = None
    key_id: UUID | None = None
    key: str | None = None
    model: str | None = None
    adapter: str | None = None
    outcome: str | None = None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    estimated_requests: int
    """Those whose backend gave no usage, so that the tokens are the gateway's own count."""


_COLUMNS: dict[UsageDimension, tuple[ColumnElement[Any], ...]] = {
    UsageDimension.DAY: (usage_ledger.c.day,),
    UsageDimension.TEAM: (usage_ledger.c.team_id, teams.c.name.label("team")),
    UsageDimension.KEY: (usage_ledger.c.key_id, keys.c.name.label("key")),
    UsageDimension.MODEL: (usage_ledger.c.model,),
    UsageDimension.ADAPTER: (case((usage_ledger.c.parent.is_not(None), usage_ledger.c.model)).label("adapter"),),
    UsageDimension.OUTCOME: (usage_ledger.c.outcome,),
}


async def summarize(
    connection: AsyncConnection, wanted: UsageFilter, dimensions: Sequence[UsageDimension]
) -> list[UsageRow]:
    """One row for each combination of the dimensions that has usage, in their order."""
    groups = [column for dimension in dimensions for column in _COLUMNS[dimension]]
    query = (
        select(
            *groups,
            func.count().label("requests"),
            *(_sum(name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")),
            func.count().filter(usage_ledger.c.estimated).label("estimated_requests"),
        )
        .select_from(usage_ledger.outerjoin(teams, teams.c.id == usage_ledger.c.team_id))
        .where(*_conditions(wanted))
        .group_by(*groups)
        .order_by(*groups)
    )
    if UsageDimension.KEY in dimensions:
        query = query.outerjoin_from(usage_ledger, keys, keys.c.id == usage_ledger.c.key_id)
    return [_usage_row(fields) for fields in (await connection.execute(query)).mappings()]


def _conditions(wanted: UsageFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        usage_ledger.c.day.between(wanted.first_day, wanted.last_day),
        within(wanted.reach, usage_ledger.c.organization_id, usage_ledger.c.team_id),
    ]
    if wanted.team_id is not None:
        conditions.append(usage_ledger.c.team_id == wanted.team_id)
    if wanted.key_id is not None:
        conditions.append(usage_ledger.c.key_id == wanted.key_id)
    if wanted.model is not None:
        conditions.append(usage_ledger.c.model == wanted.model)
    return conditions


def _sum(name: str) -> ColumnElement[Any]:
    # PostgreSQL's sum of bigint is numeric.
    return func.coalesce(func.sum(usage_ledger.c[name]), 0).cast(BigInteger).label(name)


def _usage_row(fields: RowMapping) -> UsageRow:
    return UsageRow(
        day=fields.get("day"),
        team_id=fields.get("team_id"),
        team=fields.get("team"),
        key_id=fields.get("key_id"),
        key=fields.get("key"),
        model=fields.get("model"),
        adapter=fields.get("adapter"),
        outcome=fields.get("outcome"),
        requests=fields["requests"],
        prompt_tokens=fields["prompt_tokens"],
        cached_tokens=fields["cached_tokens"],
        completion_tokens=fields["completion_tokens"],
        estimated_requests=fields["estimated_requests"],
    )
