"""/admin/v1/teams: their limits and the models that they may use."""

from uuid import UUID

from litestar import get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, Struct, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.identity.roles import Level, Principal, Role
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.administration import require, require_seen
from descant_gateway.routes.admin.fields import Days, Limit, Listing, Name, Names, Seconds, listing, page_of
from descant_gateway.store import organizations
from descant_gateway.store import teams as store
from descant_gateway.store.pages import Cursor
from descant_gateway.store.teams import NewTeam, TeamChange, TeamRow


class TeamCreation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A limit or list that is null, or not given, does not limit."""

    name: Name
    organization: Name = "default"
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    allowed_models: Names | None = None
    allowed_adapters: Names | None = None


class TeamPatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is not given stays; null lifts the limit."""

    requests_per_minute: Limit | UnsetType | None = UNSET
    tokens_per_minute: Limit | UnsetType | None = UNSET
    allowed_models: Names | UnsetType | None = UNSET
    allowed_adapters: Names | UnsetType | None = UNSET
    allows_external: bool | UnsetType = UNSET
    """Its prompts may be sent to backends outside the house; a new team's may not."""
    prompt_log_days: Days | UnsetType | None = UNSET
    """Log its prompts, encrypted, for so long; null: never, and what was logged is deleted. A new team's are not."""
    response_cache_s: Seconds | UnsetType | None = UNSET
    """Use whole replies again for so long, where they would be the same; null: never. A new team's are not."""


@post("/teams", opt=needs(Role.ADMIN, Level.ORGANIZATION))
async def create_team(
    data: JSONBody[TeamCreation], engine: NamedDependency[AsyncEngine], principal: NamedDependency[Principal]
) -> TeamRow:
    team = NewTeam(
        name=data.name,
        organization=data.organization,
        requests_per_minute=data.requests_per_minute,
        tokens_per_minute=data.tokens_per_minute,
        allowed_models=data.allowed_models,
        allowed_adapters=data.allowed_adapters,
    )
    async with engine.begin() as connection:
        organization = await organizations.get(connection, data.organization)
        require(principal, Role.ADMIN, organization.id)
        return await store.create(connection, team)


@get("/teams", opt=needs(Role.VIEWER))
async def list_teams(
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    name: FromQuery[str | None] = None,
    limit: FromQuery[int | None] = None,
    after: FromQuery[str | None] = None,
) -> Listing[TeamRow]:
    page = page_of(limit, after)
    async with engine.begin() as connection:
        rows = await store.find(connection, page, reach=principal.reach(), name=name)
    return listing(rows, page, lambda row: Cursor(row.created_at, row.id))


@get("/teams/{team_id:uuid}", opt=needs(Role.VIEWER))
async def show_team(
    team_id: FromPath[UUID], engine: NamedDependency[AsyncEngine], principal: NamedDependency[Principal]
) -> TeamRow:
    async with engine.begin() as connection:
        return await seen_team(connection, principal, team_id)


@patch("/teams/{team_id:uuid}", opt=needs(Role.ADMIN, Level.ORGANIZATION))
async def change_team(
    team_id: FromPath[UUID],
    data: JSONBody[TeamPatch],
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
) -> TeamRow:
    """What limits a team is its organization's to say, not its own."""
    change = TeamChange(
        requests_per_minute=data.requests_per_minute,
        tokens_per_minute=data.tokens_per_minute,
        allowed_models=data.allowed_models,
        allowed_adapters=data.allowed_adapters,
        allows_external=data.allows_external,
        prompt_log_days=data.prompt_log_days,
        response_cache_s=data.response_cache_s,
    )
    async with engine.begin() as connection:
        team = await seen_team(connection, principal, team_id)
        require(principal, Role.ADMIN, team.organization_id)
        return await store.change(connection, team_id, change)


async def seen_team(connection: AsyncConnection, principal: Principal, team_id: UUID) -> TeamRow:
    """Raises NotFound for a team that is not there, or not for this principal to see."""
    team = await store.get(connection, team_id)
    require_seen(principal, "team", team_id, team.organization_id, team_id)
    return team


ROUTES = (create_team, list_teams, show_team, change_team)
