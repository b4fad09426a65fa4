"""Organizations and their teams."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import UNSET, Struct, UnsetType
from sqlalchemy import Row, Select, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store import models
from descant_gateway.store.errors import AlreadyExists, NotFound
from descant_gateway.store.pages import Page, paged
from descant_gateway.store.tables import organizations, teams


class TeamRow(Struct, frozen=True, kw_only=True):
    id: UUID
    organization: str
    name: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    allowed_models: list[str] | None
    created_at: datetime


class NewTeam(Struct, frozen=True, kw_only=True):
    name: str
    organization: str = "default"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    allowed_models: list[str] | None = None
    """None allows every model."""


class TeamChange(Struct, frozen=True, kw_only=True):
    """What is UNSET stays; None lifts a limit."""

    requests_per_minute: int | UnsetType | None = UNSET
    tokens_per_minute: int | UnsetType | None = UNSET
    allowed_models: list[str] | UnsetType | None = UNSET


async def create_organization(connection: AsyncConnection, name: str) -> UUID:
    """Raises AlreadyExists."""
    statement = upsert(organizations).values(name=name).on_conflict_do_nothing().returning(organizations.c.id)
    created: UUID | None = (await connection.execute(statement)).scalar_one_or_none()
    if created is None:
        raise AlreadyExists("organization", name)
    return created


async def organization_names(connection: AsyncConnection) -> list[str]:
    return list((await connection.execute(select(organizations.c.name).order_by(organizations.c.name))).scalars())


async def create(connection: AsyncConnection, team: NewTeam) -> TeamRow:
    """Raises NotFound (organization), AlreadyExists, Invalid (allowed_models)."""
    await models.require_known(connection, team.allowed_models, field="allowed_models")
    statement = (
        upsert(teams)
        .values(
            organization_id=await _organization_id(connection, team.organization),
            name=team.name,
            requests_per_minute=team.requests_per_minute,
            tokens_per_minute=team.tokens_per_minute,
            allowed_models=team.allowed_models,
        )
        .on_conflict_do_nothing()
        .returning(teams.c.id)
    )
    created = (await connection.execute(statement)).scalar_one_or_none()
    if created is None:
        raise AlreadyExists("team", team.name)
    return await get(connection, created)


async def get(connection: AsyncConnection, team_id: UUID) -> TeamRow:
    """Raises NotFound."""
    row = (await connection.execute(_query().where(teams.c.id == team_id))).one_or_none()
    if row is None:
        raise NotFound("team", team_id)
    return _team_row(row)


async def find(connection: AsyncConnection, page: Page, *, name: str | None = None) -> list[TeamRow]:
    """One row more than the page's size, if there are more. Names are unique within an organization only."""
    query = _query() if name is None else _query().where(teams.c.name == name)
    return [_team_row(row) for row in await connection.execute(paged(query, teams, page))]


async def change(connection: AsyncConnection, team_id: UUID, change: TeamChange) -> TeamRow:
    """Raises NotFound, Invalid (allowed_models)."""
    if change.allowed_models is not UNSET:
        await models.require_known(connection, change.allowed_models, field="allowed_models")
    fields = ("requests_per_minute", "tokens_per_minute", "allowed_models")
    values = {field: value for field in fields if (value := getattr(change, field)) is not UNSET}
    if values:
        await connection.execute(update(teams).where(teams.c.id == team_id).values(values))
    return await get(connection, team_id)


async def _organization_id(connection: AsyncConnection, name: str) -> UUID:
    found: UUID | None = (
        await connection.execute(select(organizations.c.id).where(organizations.c.name == name))
    ).scalar_one_or_none()
    if found is None:
        raise NotFound("organization", name)
    return found


def _query() -> Select[Any]:
    return select(teams, organizations.c.name.label("organization")).join(organizations)


def _team_row(row: Row[Any]) -> TeamRow:
    return TeamRow(
        id=row.id,
        organization=row.organization,
        name=row.name,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        allowed_models=row.allowed_models,
        created_at=row.created_at,
    )
