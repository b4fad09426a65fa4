"""Organizations: what teams belong to, and what all their teams may use at most."""

from datetime import datetime
from uuid import UUID

from msgspec import UNSET, Struct, UnsetType
from sqlalchemy import or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.identity.roles import Reach
from descant_gateway.store import models
from descant_gateway.store.errors import AlreadyExists, NotFound
from descant_gateway.store.pages import Page, paged
from descant_gateway.store.rows import struct_of
from descant_gateway.store.tables import organizations, teams


class OrganizationRow(Struct, frozen=True, kw_only=True):
    id: UUID
    name: str
    allowed_models: list[str] | None
    allowed_adapters: list[str] | None
    created_at: datetime


class OrganizationChange(Struct, frozen=True, kw_only=True):
    """What is UNSET stays; None allows everything."""

    allowed_models: list[str] | UnsetType | None = UNSET
    allowed_adapters: list[str] | UnsetType | None = UNSET


async def create(connection: AsyncConnection, name: str, allowed: OrganizationChange) -> OrganizationRow:
    """Raises AlreadyExists, Invalid."""
    values = await _checked(connection, allowed)
    statement = upsert(organizations).values(name=name, **values).on_conflict_do_nothing().returning(organizations)
    created = (await connection.execute(statement)).one_or_none()
    if created is None:
        raise AlreadyExists("organization", name)
    return struct_of(OrganizationRow, created)


async def change(connection: AsyncConnection, name: str, change: OrganizationChange) -> OrganizationRow:
    """Raises NotFound, Invalid."""
    found = await get(connection, name)
    values = await _checked(connection, change)
    if not values:
        return found
    statement = update(organizations).where(organizations.c.id == found.id).values(values).returning(organizations)
    return struct_of(OrganizationRow, (await connection.execute(statement)).one())


async def get(connection: AsyncConnection, name: str) -> OrganizationRow:
    """By name or id. Raises NotFound."""
    try:
        is_named = organizations.c.id == UUID(name)
    except ValueError:
        is_named = organizations.c.name == name
    row = (await connection.execute(select(organizations).where(is_named))).one_or_none()
    if row is None:
        raise NotFound("organization", name)
    return struct_of(OrganizationRow, row)


async def find(connection: AsyncConnection, page: Page, reach: Reach) -> list[OrganizationRow]:
    """Those within reach, or with a team that is. One row more than the page's size, if there are more."""
    query = select(organizations)
    if not reach.everything:
        of_teams = select(teams.c.organization_id).where(teams.c.id.in_(reach.team_ids))
        query = query.where(or_(organizations.c.id.in_(reach.organization_ids), organizations.c.id.in_(of_teams)))
    return [struct_of(OrganizationRow, row) for row in await connection.execute(paged(query, organizations, page))]


async def _checked(connection: AsyncConnection, change: OrganizationChange) -> dict[str, list[str] | None]:
    values = {}
    for field in ("allowed_models", "allowed_adapters"):
        names: list[str] | UnsetType | None = getattr(change, field)
        if names is not UNSET:
            await models.require_known(connection, names, field=field)
            values[field] = names
    return values
