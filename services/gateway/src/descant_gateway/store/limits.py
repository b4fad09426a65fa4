"""The limits that organizations, teams, projects and keys have, one row each."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import Select, delete, null, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store import models, tables
from descant_gateway.store.errors import NotFound
from descant_gateway.store.rows import struct_of


class Place(Struct, frozen=True):
    """Where an owner of limits lies; an organization lies in itself, and in no team."""

    organization_id: UUID
    team_id: UUID | None


class NewLimit(Struct, frozen=True, kw_only=True):
    level: str
    owner_id: UUID
    kind: str
    model: str | None
    capacity: int
    is_shadow: bool
    warn_at: list[int]


class LimitRow(NewLimit, frozen=True, kw_only=True):
    id: UUID
    created_at: datetime


async def put(connection: AsyncConnection, limit: NewLimit) -> LimitRow:
    """Makes or changes the one limit of this owner, kind and model. Raises NotFound (owner), Invalid (model)."""
    await place_of(connection, limit.level, limit.owner_id)
    await models.require_known(connection, None if limit.model is None else [limit.model], field="model")
    fields = asdict(limit)
    changed = {name: fields[name] for name in ("capacity", "is_shadow", "warn_at")}
    statement = (
        upsert(tables.limits)
        .values(fields)
        .on_conflict_do_update(constraint="limits_owner_id_kind_model_key", set_=changed)
        .returning(tables.limits)
    )
    return struct_of(LimitRow, (await connection.execute(statement)).one())


async def get(connection: AsyncConnection, limit_id: UUID) -> LimitRow:
    """Raises NotFound."""
    row = (await connection.execute(select(tables.limits).where(tables.limits.c.id == limit_id))).one_or_none()
    if row is None:
        raise NotFound("limit", limit_id)
    return struct_of(LimitRow, row)


async def find(connection: AsyncConnection, owner_id: UUID | None) -> list[LimitRow]:
    """One owner's, or all."""
    query = select(tables.limits).order_by(tables.limits.c.created_at, tables.limits.c.id)
    if owner_id is not None:
        query = query.where(tables.limits.c.owner_id == owner_id)
    return [struct_of(LimitRow, row) for row in await connection.execute(query)]


async def remove(connection: AsyncConnection, limit_id: UUID) -> None:
    """Raises NotFound."""
    removed = await connection.execute(delete(tables.limits).where(tables.limits.c.id == limit_id))
    if removed.rowcount == 0:
        raise NotFound("limit", limit_id)


async def place_of(connection: AsyncConnection, level: str, owner_id: UUID) -> Place:
    """Raises NotFound."""
    row = (await connection.execute(_place_query(level, owner_id))).one_or_none()
    if row is None:
        raise NotFound(level, owner_id)
    return Place(row.organization_id, row.team_id)


def _place_query(level: str, owner_id: UUID) -> Select[Any]:
    teams = tables.teams
    columns = (teams.c.organization_id, teams.c.id.label("team_id"))
    match level:
        case "organization":
            organization = tables.organizations.c.id
            return select(organization.label("organization_id"), null().label("team_id")).where(
                organization == owner_id
            )
        case "team":
            return select(*columns).where(teams.c.id == owner_id)
        case "project":
            projects = tables.projects
            return select(*columns).join(projects, projects.c.team_id == teams.c.id).where(projects.c.id == owner_id)
        case _:
            keys = tables.keys
            return select(*columns).join(keys, keys.c.team_id == teams.c.id).where(keys.c.id == owner_id)
