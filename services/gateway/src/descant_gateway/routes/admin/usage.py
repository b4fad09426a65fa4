"""/admin/v1/usage: sums over the ledger and what months come to, as JSON or CSV."""

from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.identity.roles import Principal, Role
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.csv_text import csv_response
from descant_gateway.store import chargeback
from descant_gateway.store import usage as store
from descant_gateway.store.chargeback import ChargebackRow
from descant_gateway.store.usage import Grouping, Tag, UsageDimension, UsageFilter, UsageRow
from descant_gateway.usage.tags import MAX_NAME_LENGTH
from descant_wire.errors import invalid_request

DEFAULT_DAYS: Final = 30
MAX_DAYS: Final = 400
MAX_TAGS: Final = 3
TAG_PREFIX: Final = "tag:"


class Format(StrEnum):
    JSON = "json"
    CSV = "csv"


class Days(NamedTuple):
    """Both count."""

    first: date
    last: date


class UsageReport(Struct, frozen=True):
    first_day: date
    last_day: date
    data: list[UsageRow]


class Chargeback(Struct, frozen=True):
    month: str
    total_microdollars: int
    data: list[ChargebackRow]


@get("/usage", opt=needs(Role.VIEWER))
async def show_usage(
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    first_day: FromQuery[date | None] = None,
    last_day: FromQuery[date | None] = None,
    group_by: FromQuery[str] = "team,model",
    organization_id: FromQuery[UUID | None] = None,
    team_id: FromQuery[UUID | None] = None,
    project_id: FromQuery[UUID | None] = None,
    key_id: FromQuery[UUID | None] = None,
    model: FromQuery[str | None] = None,
    tag: FromQuery[str | None] = None,
    format: FromQuery[Format] = Format.JSON,
) -> Response[bytes]:
    """Both days count, in UTC; without them, the last 30 days. `tag` is name=value."""
    days = _days(first_day, last_day)
    wanted = UsageFilter(
        first_day=days.first,
        last_day=days.last,
        organization_id=organization_id,
        team_id=team_id,
        project_id=project_id,
        key_id=key_id,
        model=model,
        tag=None if tag is None else _tag(tag),
        reach=principal.reach(),
    )
    grouping = _grouping(group_by)
    async with engine.begin() as connection:
        rows = await store.summarize(connection, wanted, grouping)
    if format is Format.CSV:
        return _usage_csv(rows, grouping)
    return Response(msgspec.json.encode(UsageReport(days.first, days.last, rows)), media_type="application/json")


@get("/usage/chargeback", opt=needs(Role.VIEWER))
async def show_chargeback(
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    month: FromQuery[str | None] = None,
    format: FromQuery[Format] = Format.JSON,
) -> Response[bytes]:
    """What each team owes for a month of UTC, 2026-11; without one, for this month until now."""
    first = datetime.now(UTC).date().replace(day=1) if month is None else _month(month)
    async with engine.begin() as connection:
        rows = await chargeback.of_month(connection, first, principal.reach())
    shown = f"{first:%Y-%m}"
    if format is Format.CSV:
        columns = ("month", *ChargebackRow.__struct_fields__, "cost_dollars")
        return csv_response(
            columns,
            ((shown, *msgspec.structs.astuple(row), _dollars(row.cost_microdollars)) for row in rows),
        )
    report = Chargeback(shown, sum(row.cost_microdollars for row in rows), rows)
    return Response(msgspec.json.encode(report), media_type="application/json")


def _grouping(text: str) -> Grouping:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    tags = tuple(name.removeprefix(TAG_PREFIX) for name in names if name.startswith(TAG_PREFIX))
    if len(tags) > MAX_TAGS or not all(0 < len(tag) <= MAX_NAME_LENGTH for tag in tags):
        raise invalid_request(f"group_by takes at most {MAX_TAGS} tags, each as tag:NAME.", param="group_by")
    try:
        dimensions = tuple(UsageDimension(name) for name in names if not name.startswith(TAG_PREFIX))
    except ValueError:
        known = ", ".join(UsageDimension)
        message = f"group_by is a list of {known} and tag:NAME, separated by commas."
        raise invalid_request(message, param="group_by") from None
    return Grouping(dimensions, tags)


def _tag(text: str) -> Tag:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise invalid_request("tag is name=value.", param="tag")
    return Tag(name, value)


def _month(text: str) -> date:
    try:
        month = datetime.strptime(text, "%Y-%m").date()
    except ValueError:
        raise invalid_request("month is a year and a month, such as 2026-11.", param="month") from None
    if month >= date.max.replace(day=1):  # it ends where the calendar does
        raise invalid_request(f"month {text} is too late.", param="month")
    return month


def _days(first_day: date | None, last_day: date | None) -> Days:
    last = last_day or datetime.now(UTC).date()
    first = first_day or last - min(timedelta(days=DEFAULT_DAYS - 1), last - date.min)
    if first > last:
        raise invalid_request(f"first_day {first} is after last_day {last}.", param="first_day")
    if (last - first).days >= MAX_DAYS:
        raise invalid_request(f"The range is longer than {MAX_DAYS} days.", param="first_day")
    if last == date.max:
        raise invalid_request(f"last_day {last} is too late.", param="last_day")
    return Days(first, last)


def _usage_csv(rows: list[UsageRow], grouping: Grouping) -> Response[bytes]:
    fields = _fields(grouping)
    return csv_response(
        (*fields, *(f"{TAG_PREFIX}{name}" for name in grouping.tags)),
        ((*(getattr(row, name) for name in fields), *(row.tags or {}).values()) for row in rows),
    )


def _fields(grouping: Grouping) -> list[str]:
    """The fields of a row, without the dimensions that were not asked for."""
    absent = {str(dimension) for dimension in UsageDimension if dimension not in grouping.dimensions}
    absent |= {f"{name}_id" for name in absent} | {"tags"}
    return [name for name in UsageRow.__struct_fields__ if name not in absent]


def _dollars(microdollars: int) -> str:
    """Exact."""
    return f"{microdollars // 1_000_000}.{microdollars % 1_000_000:06}"


ROUTES = (show_usage, show_chargeback)
