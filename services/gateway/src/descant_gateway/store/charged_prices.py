"""The part of the price list that gateways charge by, for the catalogue."""

from collections import defaultdict
from typing import Any, Final

from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.catalogue.snapshot import Price
from descant_gateway.store.usage_tables import price_versions

_KEPT_IN_MEMORY: Final = 2
"""Of each model the version that holds and the one before it, for a gateway whose clock is behind."""


async def by_model(connection: AsyncConnection) -> dict[str, tuple[Price, ...]]:
    """What gateways charge by: the latest first."""
    columns = price_versions.c
    has_begun = columns.valid_from <= func.now()
    age = func.row_number().over(partition_by=(columns.model, has_begun), order_by=columns.valid_from.desc())
    numbered = select(price_versions, has_begun.label("has_begun"), age.label("age")).subquery()
    wanted = select(numbered).where(~numbered.c.has_begun | (numbered.c.age <= _KEPT_IN_MEMORY))
    found: defaultdict[str, tuple[Price, ...]] = defaultdict(tuple)
    for row in await connection.execute(wanted.order_by(numbered.c.valid_from.desc())):
        found[row.model] += (_price(row),)
    return dict(found)


def _price(row: Row[Any]) -> Price:
    return Price(
        row.input or 0,
        row.cached or 0,
        row.output or 0,
        version=row.version,
        valid_from=row.valid_from.timestamp(),
        is_withdrawn=row.input is None,
    )
