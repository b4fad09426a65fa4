"""What each team owes for a month: every model at every version of its price."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from msgspec import Struct
from sqlalchemy import BigInteger, RowMapping, Subquery, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ColumnElement

from descant_gateway.identity.roles import Reach
from descant_gateway.store.charges import charges
from descant_gateway.store.reach import within
from descant_gateway.store.tables import organizations, projects, teams
from descant_gateway.store.usage_tables import price_versions

_SUMS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_microdollars")


class ChargebackRow(Struct, frozen=True, kw_only=True):
    """Prices are in micro-dollars per million tokens; null: it had none. `cached_tokens` are among `prompt_tokens`."""

    organization: str | None
    team: str | None
    project: str | None
    model: str
    price_version: int | None
    input_price: int | None
    cached_price: int | None
    output_price: int | None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_microdollars: int


async def of_month(connection: AsyncConnection, month: date, reach: Reach) -> list[ChargebackRow]:
    """`month`: any of its days, in UTC. Charges count in the month in which they were admitted, as budgets do."""
    first = datetime(month.year, month.month, 1, tzinfo=UTC)
    source = charges(first, (first + timedelta(days=32)).replace(day=1))
    groups = _groups(source)
    query = (
        select(*groups, *(func.sum(source.c[name]).cast(BigInteger).label(name) for name in _SUMS))
        .select_from(source)
        .outerjoin(organizations, organizations.c.id == source.c.organization_id)
        .outerjoin(teams, teams.c.id == source.c.team_id)
        .outerjoin(projects, projects.c.id == source.c.project_id)
        .outerjoin(price_versions, price_versions.c.version == source.c.price_version)
        .where(within(reach, source.c.organization_id, source.c.team_id))
        .group_by(*groups, source.c.organization_id, source.c.team_id, source.c.project_id)
        .order_by(*groups)
    )
    return [_row(fields) for fields in (await connection.execute(query)).mappings()]


def _groups(source: Subquery) -> tuple[ColumnElement[Any], ...]:
    prices = price_versions.c
    return (
        organizations.c.name.label("organization"),
        teams.c.name.label("team"),
        projects.c.name.label("project"),
        source.c.model,
        source.c.price_version,
        prices.input.label("input_price"),
        prices.cached.label("cached_price"),
        prices.output.label("output_price"),
    )


def _row(fields: RowMapping) -> ChargebackRow:
    return ChargebackRow(**{name: fields[name] for name in ChargebackRow.__struct_fields__})
