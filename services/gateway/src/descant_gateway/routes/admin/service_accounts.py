"""/admin/v1/service-accounts: what machines act as. Their keys are made at /keys, with `service_account_id`."""

from uuid import UUID

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.identity.roles import Principal, Role
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.administration import require, require_place, require_seen
from descant_gateway.routes.admin.fields import Listing, Name, listing, page_of
from descant_gateway.store import service_accounts as store
from descant_gateway.store.pages import Cursor
from descant_gateway.store.service_accounts import ServiceAccountRow


class ServiceAccountCreation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    role: Role
    organization: Name = "default"
    """Name or id."""
    team_id: UUID | None = None
    """Null: over all teams of the organization."""


@post("/service-accounts", opt=needs(Role.ADMIN))
async def create_service_account(
    data: JSONBody[ServiceAccountCreation], engine: NamedDependency[AsyncEngine], principal: NamedDependency[Principal]
) -> ServiceAccountRow:
    """Its role is at most that of its maker."""
    async with engine.begin() as connection:
        place = await require_place(connection, principal, data.organization, data.team_id, granting=data.role)
        assert place.organization_id is not None, "an organization was named, or has a default"
        return await store.create(connection, data.name, data.role, place.organization_id, place.team_id)


@get("/service-accounts", opt=needs(Role.VIEWER))
async def list_service_accounts(
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    limit: FromQuery[int | None] = None,
    after: FromQuery[str | None] = None,
) -> Listing[ServiceAccountRow]:
    page = page_of(limit, after)
    async with engine.begin() as connection:
        rows = await store.find(connection, page, principal.reach())
    return listing(rows, page, lambda row: Cursor(row.created_at, row.id))


@post("/service-accounts/{account_id:uuid}/disable", status_code=200, opt=needs(Role.ADMIN))
async def disable_service_account(
    account_id: FromPath[UUID], engine: NamedDependency[AsyncEngine], principal: NamedDependency[Principal]
) -> ServiceAccountRow:
    """For good: all its keys are revoked with it, on every gateway within a second."""
    async with engine.begin() as connection:
        account = await store.get(connection, account_id)
        require_seen(principal, "service account", account_id, account.organization_id, account.team_id)
        require(principal, Role.ADMIN, account.organization_id, account.team_id)
        return await store.disable(connection, account_id)


ROUTES = (create_service_account, list_service_accounts, disable_service_account)
