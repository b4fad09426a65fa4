"""Projects: parts of a team that keys can belong to, with lists of models that only narrow the team's."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import UNSET, Struct, UnsetType
from sqlalchemy import Select, delete, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.identity.roles import EVERYTHING, Reach
from descant_gateway.store import models, teams
from descant_gateway.store.errors import AlreadyExists, InUse, Invalid, NotFound
from descant_gateway.store.pages import Page, paged
from descant_gateway.store.reach import within
from descant_gateway.store.rows import struct_of
from descant_gateway.store.tables import keys, projects
from descant_gateway.store.tables import teams as team_table


class ProjectRow(Struct, frozen=True, kw_only=True):
    id: UUID
    organization_id: UUID
    team_id: UUID
    name: str
    allowed_models: list[str] | None
    allowed_adapters: list[str] | None
    created_at: datetime


class ProjectChange(Struct, frozen=True, kw_only=True):
    """What is UNSET stays; None inherits the team's list."""

    allowed_models: list[str] | UnsetType | None = UNSET
    allowed_adapters: list[str] | UnsetType | None = UNSET


async def create(connection: AsyncConnection, team_id: UUID, name: str, lists: ProjectChange) -> ProjectRow:
    """Raises NotFound (team), AlreadyExists, Invalid."""
    values = await _checked(connection, team_id, lists)
    statement = upsert(projects).values(team_id=team_id, name=name, **values).on_conflict_do_nothing()
    created = (await connection.execute(statement.returning(projects.c.id))).scalar_one_or_none()
    if created is None:
        raise AlreadyExists("project", name)
    return await get(connection, created)


async def get(connection: AsyncConnection, project_id: UUID) -> ProjectRow:
    """Raises NotFound."""
    row = (await connection.execute(_query().where(projects.c.id == project_id))).one_or_none()
    if row is None:
        raise NotFound("project", project_id)
    return struct_of(ProjectRow, row)


async def find(
    connection: AsyncConnection, page: Page, *, reach: Reach = EVERYTHING, team_id: UUID | None = None
) -> list[ProjectRow]:
    """One row more than the page's size, if there are more."""
    query = _query().where(within(reach, team_table.c.organization_id, projects.c.team_id))
    if team_id is not None:
        query = query.where(projects.c.team_id == team_id)
    return [struct_of(ProjectRow, row) for row in await connection.execute(paged(query, projects, page))]


async def change(connection: AsyncConnection, found: ProjectRow, change: ProjectChange) -> ProjectRow:
    """Raises Invalid."""
    values = await _checked(connection, found.team_id, change)
    if values:
        await connection.execute(update(projects).where(projects.c.id == found.id).values(values))
    return await get(connection, found.id)


async def remove(connection: AsyncConnection, found: ProjectRow) -> None:
    """Raises InUse while keys belong to it, revoked ones too: usage is told by them."""
    query = select(keys.c.public_id).where(keys.c.project_id == found.id).limit(1)
    if (await connection.execute(query)).one_or_none() is not None:
        raise InUse(f"Project {found.name!r} has keys, and what they used is booked under it.")
    await connection.execute(delete(projects).where(projects.c.id == found.id))


async def _checked(connection: AsyncConnection, team_id: UUID, change: ProjectChange) -> dict[str, list[str] | None]:
    team = await teams.get(connection, team_id)
    values: dict[str, list[str] | None] = {}
    for field in ProjectChange.__struct_fields__:
        names: list[str] | UnsetType | None = getattr(change, field)
        if names is UNSET:
            continue
        await models.require_known(connection, names, field=field)
        above: list[str] | None = getattr(team, field)
        wider = [] if names is None or above is None else sorted(set(names) - set(above))
        if wider:
            raise Invalid(f"A project can only narrow its team's list, which lacks {', '.join(wider)}.", field=field)
        values[field] = names
    return values


def _query() -> Select[Any]:
    return select(projects, team_table.c.organization_id).join(team_table)
