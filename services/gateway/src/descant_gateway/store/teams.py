"""Teams of organizations."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import UNSET, Struct, UnsetType
from sqlalchemy import Select, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.identity.roles import EVERYTHING, Reach
from descant_gateway.store import models, organizations
from descant_gateway.store.errors import AlreadyExists, NotFound
from descant_gateway.store.pages import Page, paged
from descant_gateway.store.reach import within
from descant_gateway.store.rows import struct_of
from descant_gateway.store.tables import organizations as organization_table
from descant_gateway.store.tables import teams


class TeamRow(Struct, frozen=True, kw_only=True):
    id: UUID
    organization_id: UUID
    organization: str
    name: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    allowed_models: list[str] | None
    allowed_adapters: list[str] | None
    allows_external: bool
    """Its prompts may be sent to backends outside the house."""
    prompt_log_days: int | None
    """How long its prompts are kept, encrypted; None: they are never logged."""
    response_cache_s: int | None
    """How long whole replies are used again; None: never."""
    created_at: datetime


class NewTeam(Struct, frozen=True, kw_only=True):
    name: str
    organization: str = "default"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    allowed_models: list[str] | None = None
    """None allows every model."""
    allowed_adapters: list[str] | None = None
    """None: adapters are as the models are."""


class TeamChange(Struct, frozen=True, kw_only=True):
    """What is UNSET stays; None lifts a limit."""

    requests_per_minute: int | UnsetType | None = UNSET
    tokens_per_minute: int | UnsetType | None = UNSET
    allowed_models: list[str] | UnsetType | None = UNSET
    allowed_adapters: list[str] | UnsetType | None = UNSET
    allows_external: bool | UnsetType = UNSET
    prompt_log_days: int | UnsetType | None = UNSET
    response_cache_s: int | UnsetType | None = UNSET


async def create(connection: AsyncConnection, team: NewTeam) -> TeamRow:
    """Raises NotFound (organization), AlreadyExists, Invalid (allowed_models)."""
    await models.require_known(connection, team.allowed_models, field="allowed_models")
    await models.require_known(connection, team.allowed_adapters, field="allowed_adapters")
    statement = (
        upsert(teams)
        .values(
            organization_id=(await organizations.get(connection, team.organization)).id,
            name=team.name,
            requests_per_minute=team.requests_per_minute,
            tokens_per_minute=team.tokens_per_minute,
            allowed_models=team.allowed_models,
            allowed_adapters=team.allowed_adapters,
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
    return struct_of(TeamRow, row)


async def find(
    connection: AsyncConnection, page: Page, *, reach: Reach = EVERYTHING, name: str | None = None
) -> list[TeamRow]:
    """One row more than the page's size, if there are more. Names are unique within an organization only."""
    query = _query().where(within(reach, teams.c.organization_id, teams.c.id))
    if name is not None:
        query = query.where(teams.c.name == name)
    return [struct_of(TeamRow, row) for row in await connection.execute(paged(query, teams, page))]


async def change(connection: AsyncConnection, team_id: UUID, change: TeamChange) -> TeamRow:
    """Raises NotFound, Invalid (allowed_models)."""
    for field in ("allowed_models", "allowed_adapters"):
        names: list[str] | UnsetType | None = getattr(change, field)
        if names is not UNSET:
            await models.require_known(connection, names, field=field)
    fields = TeamChange.__struct_fields__
    values = {field: value for field in fields if (value := getattr(change, field)) is not UNSET}
    if values:
        await connection.execute(update(teams).where(teams.c.id == team_id).values(values))
    return await get(connection, team_id)


def _query() -> Select[Any]:
    return select(teams, organization_table.c.name.label("organization")).join(organization_table)
