"""What models and adapters cost: one price each, which holds from the moment it is stored."""

from msgspec import Struct
from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store import models, tables
from descant_gateway.store.errors import NotFound


class PriceRow(Struct, frozen=True, kw_only=True):
    """Micro-dollars per million tokens."""

    model: str
    input: int
    cached: int
    output: int


async def put(connection: AsyncConnection, price: PriceRow) -> PriceRow:
    """Raises Invalid (model)."""
    await models.require_known(connection, [price.model], field="model")
    amounts = {"input": price.input, "cached": price.cached, "output": price.output}
    statement = upsert(tables.prices).values(model=price.model, **amounts)
    await connection.execute(statement.on_conflict_do_update(index_elements=["model"], set_=amounts))
    return price


async def list_all(connection: AsyncConnection) -> list[PriceRow]:
    rows = await connection.execute(select(tables.prices).order_by(tables.prices.c.model))
    return [PriceRow(model=row.model, input=row.input, cached=row.cached, output=row.output) for row in rows]


async def remove(connection: AsyncConnection, model: str) -> None:
    """The model is free from now on. Raises NotFound."""
    removed = await connection.execute(delete(tables.prices).where(tables.prices.c.model == model))
    if removed.rowcount == 0:
        raise NotFound("price", model)
