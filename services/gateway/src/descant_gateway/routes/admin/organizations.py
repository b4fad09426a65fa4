"""/admin/v1/organizations: what teams belong to. The first, `default`, is made with the schema."""

from litestar import get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, Struct, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.identity.roles import Level, Principal, Role
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.fields import Listing, Name, Names, listing, page_of
from descant_gateway.store import organizations as store
from descant_gateway.store.organizations import OrganizationChange, OrganizationRow
from descant_gateway.store.pages import Cursor


class OrganizationCreation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A list that is null, or not given, does not limit."""

    name: Name
    allowed_models: Names | None = None
    allowed_adapters: Names | None = None


class OrganizationPatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is not given stays; null lifts the limit."""

    allowed_models: Names | UnsetType | None = UNSET
    allowed_adapters: Names | UnsetType | None = UNSET


@post("/organizations", opt=needs(Role.ADMIN, Level.INSTALLATION))
async def create_organization(
    data: JSONBody[OrganizationCreation], engine: NamedDependency[AsyncEngine]
) -> OrganizationRow:
    allowed = OrganizationChange(allowed_models=data.allowed_models, allowed_adapters=data.allowed_adapters)
    async with engine.begin() as connection:
        return await store.create(connection, data.name, allowed)


@get("/organizations", opt=needs(Role.VIEWER))
async def list_organizations(
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    limit: FromQuery[int | None] = None,
    after: FromQuery[str | None] = None,
) -> Listing[OrganizationRow]:
    page = page_of(limit, after)
    async with engine.begin() as connection:
        rows = await store.find(connection, page, principal.reach())
    return listing(rows, page, lambda row: Cursor(row.created_at, row.id))


@patch("/organizations/{name:str}", opt=needs(Role.ADMIN, Level.INSTALLATION))
async def change_organization(
    name: FromPath[str], data: JSONBody[OrganizationPatch], engine: NamedDependency[AsyncEngine]
) -> OrganizationRow:
    """By name or id. What an organization may use is the installation's to say."""
    change = OrganizationChange(allowed_models=data.allowed_models, allowed_adapters=data.allowed_adapters)
    async with engine.begin() as connection:
        return await store.change(connection, name, change)


ROUTES = (create_organization, list_organizations, change_organization)
