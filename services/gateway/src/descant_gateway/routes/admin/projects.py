"""/admin/v1/projects: parts of a team, each with keys and a list of models of its own."""

from uuid import UUID

from litestar import delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, Struct, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.identity.roles import Principal, Role
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.administration import require, require_seen
from descant_gateway.routes.admin.fields import Listing, Name, Names, listing, page_of
from descant_gateway.routes.admin.teams import seen_team
from descant_gateway.store import projects as store
from descant_gateway.store.pages import Cursor
from descant_gateway.store.projects import ProjectChange, ProjectRow


class ProjectCreation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    team_id: UUID
    name: Name
    allowed_models: Names | None = None
    """Null inherits the team's list; a list can only narrow it."""
    allowed_adapters: Names | None = None


class ProjectPatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is not given stays; null inherits the team's list."""

    allowed_models: Names | UnsetType | None = UNSET
    allowed_adapters: Names | UnsetType | None = UNSET


@post("/projects", opt=needs(Role.ADMIN))
async def create_project(
    data: JSONBody[ProjectCreation], engine: NamedDependency[AsyncEngine], principal: NamedDependency[Principal]
) -> ProjectRow:
    lists = ProjectChange(allowed_models=data.allowed_models, allowed_adapters=data.allowed_adapters)
    async with engine.begin() as connection:
        team = await seen_team(connection, principal, data.team_id)
        require(principal, Role.ADMIN, team.organization_id, team.id)
        return await store.create(connection, team.id, data.name, lists)


@get("/projects", opt=needs(Role.VIEWER))
async def list_projects(
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    team_id: FromQuery[UUID | None] = None,
    limit: FromQuery[int | None] = None,
    after: FromQuery[str | None] = None,
) -> Listing[ProjectRow]:
    page = page_of(limit, after)
    async with engine.begin() as connection:
        rows = await store.find(connection, page, reach=principal.reach(), team_id=team_id)
    return listing(rows, page, lambda row: Cursor(row.created_at, row.id))


@patch("/projects/{project_id:uuid}", opt=needs(Role.ADMIN))
async def change_project(
    project_id: FromPath[UUID],
    data: JSONBody[ProjectPatch],
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
) -> ProjectRow:
    change = ProjectChange(allowed_models=data.allowed_models, allowed_adapters=data.allowed_adapters)
    async with engine.begin() as connection:
        return await store.change(connection, await _own_project(connection, principal, project_id), change)


@delete("/projects/{project_id:uuid}", opt=needs(Role.ADMIN))
async def delete_project(
    project_id: FromPath[UUID], engine: NamedDependency[AsyncEngine], principal: NamedDependency[Principal]
) -> None:
    async with engine.begin() as connection:
        await store.remove(connection, await _own_project(connection, principal, project_id))


async def _own_project(connection: AsyncConnection, principal: Principal, project_id: UUID) -> ProjectRow:
    project = await store.get(connection, project_id)
    require_seen(principal, "project", project_id, project.organization_id, project.team_id)
    require(principal, Role.ADMIN, project.organization_id, project.team_id)
    return project


ROUTES = (create_project, list_projects, change_project, delete_project)
