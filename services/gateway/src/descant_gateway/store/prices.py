"""The price list: append-only, one version after another for each model and adapter, some of them still to come."""

from datetime import UTC, datetime

from msgspec import Struct
from sqlalchemy import delete, func, insert, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store import models
from descant_gateway.store.errors import Invalid, NotFound
from descant_gateway.store.rows import struct_of
from descant_gateway.store.usage_tables import price_versions


class Amounts(Struct, frozen=True):
    """Micro-dollars per million tokens."""

    input: int
    cached: int
    output: int


class PriceRow(Struct, frozen=True, kw_only=True):
    """Micro-dollars per million tokens; null: from then on the model has no price of its own."""

    version: int
    model: str
    valid_from: datetime
    input: int | None
    cached: int | None
    output: int | None


async def put(
    connection: AsyncConnection, model: str, amounts: Amounts, valid_from: datetime | None = None
) -> PriceRow:
    """Adds a version, from now on or from a moment to come: what was charged stays explained. Raises Invalid."""
    await models.require_known(connection, [model], field="model")
    return await _add(connection, model, amounts, valid_from)


async def withdraw(connection: AsyncConnection, model: str) -> None:
    """The model has no price of its own from now on. Raises NotFound."""
    held = next((row for row in await list_all(connection) if row.model == model), None)
    if held is None:
        raise NotFound("price", model)
    await _add(connection, model, None, None)


async def cancel(connection: AsyncConnection, version: int) -> None:
    """Takes back a version that has not begun. Raises NotFound."""
    columns = price_versions.c
    begun_never = delete(price_versions).where(columns.version == version, columns.valid_from > func.now())
    if (await connection.execute(begun_never)).rowcount == 0:
        raise NotFound("price to come", str(version))


async def list_all(connection: AsyncConnection) -> list[PriceRow]:
    """The price that each model has now."""
    columns = price_versions.c
    latest = (
        select(price_versions)
        .where(columns.valid_from <= func.now())
        .ext(distinct_on(columns.model))
        .order_by(columns.model, columns.valid_from.desc())
    )
    rows = [struct_of(PriceRow, row) for row in await connection.execute(latest)]
    return [row for row in rows if row.input is not None]


async def history(connection: AsyncConnection, model: str | None = None) -> list[PriceRow]:
    """Every version, by model, oldest first; those to come too."""
    query = select(price_versions).order_by(price_versions.c.model, price_versions.c.valid_from)
    if model is not None:
        query = query.where(price_versions.c.model == model)
    return [struct_of(PriceRow, row) for row in await connection.execute(query)]


async def _add(
    connection: AsyncConnection, model: str, amounts: Amounts | None, valid_from: datetime | None
) -> PriceRow:
    # Not the transaction's time: two versions within one second must differ.
    moment = func.clock_timestamp() if valid_from is None else valid_from
    if valid_from is not None and valid_from <= datetime.now(UTC):
        raise Invalid("A price can't begin in the past: what was charged then stays as it is.", field="valid_from")
    fields = {name: None if amounts is None else getattr(amounts, name) for name in Amounts.__struct_fields__}
    statement = insert(price_versions).values(model=model, valid_from=moment, **fields).returning(price_versions)
    try:
        return struct_of(PriceRow, (await connection.execute(statement)).one())
    except IntegrityError:
        raise Invalid(f"{model!r} has a price from that moment already.", field="valid_from") from None
