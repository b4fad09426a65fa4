"""/admin/v1/organizations: what teams belong to. The first, `default`, is made with the schema."""

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.routes.admin.fields import Listing, Name
from descant_gateway.store import teams as store


class Organization(Struct, frozen=True, forbid_unknown_fields=True):
    name: Name


@post("/organizations")
async def create_organization(data: JSONBody[Organization], engine: NamedDependency[AsyncEngine]) -> Organization:
    async with engine.begin() as connection:
        await store.create_organization(connection, data.name)
    return data


@get("/organizations")
async def list_organizations(engine: NamedDependency[AsyncEngine]) -> Listing[Organization]:
    async with engine.begin() as connection:
        return Listing([Organization(name) for name in await store.organization_names(connection)])


ROUTES = (create_organization, list_organizations)
