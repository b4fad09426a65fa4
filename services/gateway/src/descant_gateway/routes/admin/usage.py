"""/admin/v1/usage: sums over the ledger, as JSON or CSV."""

import csv
import io
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.access import needs
from descant_gateway.roles import Principal, Role
from descant_gateway.store import usage as store
from descant_gateway.store.usage import UsageDimension, UsageFilter, UsageRow
from descant_wire.errors import invalid_request

DEFAULT_DAYS: Final = 30
MAX_DAYS: Final = 400


class Format(StrEnum):
    JSON = "json"
    CSV = "csv"


class UsageReport(Struct, frozen=True):
    first_day: date
    last_day: date
    data: list[UsageRow]


@get("/usage", opt=needs(Role.VIEWER))
async def show_usage(
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    first_day: FromQuery[date | None] = None,
    last_day: FromQuery[date | None] = None,
    group_by: FromQuery[str] = "team,model",
    team_id: FromQuery[UUID | None] = None,
    key_id: FromQuery[UUID | None] = None,
    model: FromQuery[str | None] = None,
    format: FromQuery[Format] = Format.JSON,
) -> Response[bytes]:
    """Both days count, in UTC; without them, the last 30 days."""
    last = last_day or datetime.now(UTC).date()
    first = first_day or last - timedelta(days=DEFAULT_DAYS - 1)
    _require_range(first, last)
    wanted = UsageFilter(
        first_day=first, last_day=last, team_id=team_id, key_id=key_id, model=model, reach=principal.reach()
    )
    dimensions = _dimensions(group_by)
    async with engine.begin() as connection:
        rows = await store.summarize(connection, wanted, dimensions)
    if format is Format.CSV:
        return Response(_csv(rows, dimensions), media_type="text/csv")
    return Response(msgspec.json.encode(UsageReport(first, last, rows)), media_type="application/json")


def _dimensions(text: str) -> list[UsageDimension]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    try:
        return [UsageDimension(name) for name in names]
    except ValueError:
        known = ", ".join(UsageDimension)
        raise invalid_request(f"group_by is a list of {known}, separated by commas.", param="group_by") from None


def _require_range(first: date, last: date) -> None:
    if first > last:
        raise invalid_request(f"first_day {first} is after last_day {last}.", param="first_day")
    if (last - first).days >= MAX_DAYS:
        raise invalid_request(f"The range is longer than {MAX_DAYS} days.", param="first_day")


def _csv(rows: list[UsageRow], dimensions: list[UsageDimension]) -> bytes:
    columns = _columns(dimensions)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(getattr(row, column)) for column in columns] for row in rows)
    return text.getvalue().encode()


def _columns(dimensions: list[UsageDimension]) -> list[str]:
    """The fields of a row, without the dimensions that were not asked for."""
    absent = {str(dimension) for dimension in UsageDimension if dimension not in dimensions}
    absent |= {f"{name}_id" for name in absent}
    return [name for name in UsageRow.__struct_fields__ if name not in absent]


def _cell(value: object) -> str:
    """Text as a spreadsheet may open it: a name that begins like a formula gets a quote before it."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


ROUTES = (show_usage,)
