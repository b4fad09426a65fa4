"""/admin/v1/prices: what models and adapters cost, one version after another."""

from typing import Annotated

from litestar import delete, get, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Meta, Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.identity.roles import Level, Role
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.fields import Listing, Moment, Name, utc
from descant_gateway.store import prices
from descant_gateway.store.prices import Amounts, PriceRow

MicrodollarsPerMillion = Annotated[int, Meta(ge=0, le=10**12)]


class PriceSetting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Micro-dollars per million tokens: 3 dollars are 3000000."""

    model: Name
    """An adapter without a price of its own has its base model's."""
    input: MicrodollarsPerMillion
    cached: MicrodollarsPerMillion | None = None
    """Of the input, what the prefix cache had; null: as `input`."""
    output: MicrodollarsPerMillion
    valid_from: Moment | None = None
    """A moment to come, with its offset; null: now."""


@put("/prices", opt=needs(Role.ADMIN, Level.INSTALLATION))
async def put_price(data: JSONBody[PriceSetting], engine: NamedDependency[AsyncEngine]) -> PriceRow:
    """Holds for what is admitted from then on; what was charged before keeps its version."""
    cached = data.input if data.cached is None else data.cached
    valid_from = None if data.valid_from is None else utc(data.valid_from, "valid_from")
    async with engine.begin() as connection:
        return await prices.put(connection, data.model, Amounts(data.input, cached, data.output), valid_from)


@get("/prices", opt=needs(Role.VIEWER))
async def list_prices(engine: NamedDependency[AsyncEngine]) -> Listing[PriceRow]:
    """Those that hold now."""
    async with engine.begin() as connection:
        return Listing(await prices.list_all(connection))


@get("/price-versions", opt=needs(Role.VIEWER))
async def list_price_versions(
    engine: NamedDependency[AsyncEngine], model: FromQuery[str | None] = None
) -> Listing[PriceRow]:
    """All that ever held and those to come, or those of one model."""
    async with engine.begin() as connection:
        return Listing(await prices.history(connection, model))


@delete("/price-versions/{version:int}", opt=needs(Role.ADMIN, Level.INSTALLATION))
async def cancel_price(version: FromPath[int], engine: NamedDependency[AsyncEngine]) -> None:
    """Takes back one that has not begun."""
    async with engine.begin() as connection:
        await prices.cancel(connection, version)


@delete("/prices/{model:path}", opt=needs(Role.ADMIN, Level.INSTALLATION))
async def delete_price(model: FromPath[str], engine: NamedDependency[AsyncEngine]) -> None:
    """The model has no price of its own from now on."""
    async with engine.begin() as connection:
        await prices.withdraw(connection, model.removeprefix("/"))


ROUTES = (put_price, list_prices, list_price_versions, cancel_price, delete_price)
