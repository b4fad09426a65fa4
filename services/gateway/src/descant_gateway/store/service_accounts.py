"""Service accounts: what machines act as. Its keys have at most its role; disabling it revokes them all."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Row, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.identity.roles import Reach, Role
from descant_gateway.store.errors import AlreadyExists, NotFound
from descant_gateway.store.pages import Page, paged
from descant_gateway.store.reach import within
from descant_gateway.store.rows import struct_of
from descant_gateway.store.tables import keys, service_accounts


class ServiceAccountRow(Struct, frozen=True, kw_only=True):
    id: UUID
    organization_id: UUID
    team_id: UUID | None
    """None: over all of the organization."""
    name: str
    role: Role
    disabled_at: datetime | None
    created_at: datetime


async def create(
    connection: AsyncConnection, name: str, role: Role, organization_id: UUID, team_id: UUID | None
) -> ServiceAccountRow:
    """Raises AlreadyExists."""
    values = {"name": name, "role": role.value, "organization_id": organization_id, "team_id": team_id}
    statement = upsert(service_accounts).values(values).on_conflict_do_nothing().returning(service_accounts)
    created = (await connection.execute(statement)).one_or_none()
    if created is None:
        raise AlreadyExists("service account", name)
    return _row(created)


async def get(connection: AsyncConnection, account_id: UUID) -> ServiceAccountRow:
    """Raises NotFound."""
    query = select(service_accounts).where(service_accounts.c.id == account_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound("service account", account_id)
    return _row(row)


async def find(connection: AsyncConnection, page: Page, reach: Reach) -> list[ServiceAccountRow]:
    """One row more than the page's size, if there are more."""
    table = service_accounts.c
    query = select(service_accounts).where(within(reach, table.organization_id, table.team_id))
    return [_row(row) for row in await connection.execute(paged(query, service_accounts, page))]


async def disable(connection: AsyncConnection, account_id: UUID) -> ServiceAccountRow:
    """For good, and all its keys with it. Raises NotFound."""
    await get(connection, account_id)
    now = func.now()
    of_account = keys.c.service_account_id == account_id
    await connection.execute(update(keys).where(of_account, keys.c.revoked_at.is_(None)).values(revoked_at=now))
    table = service_accounts.c
    still = update(service_accounts).where(table.id == account_id, table.disabled_at.is_(None))
    await connection.execute(still.values(disabled_at=now))
    return await get(connection, account_id)


def _row(row: Row[Any]) -> ServiceAccountRow:
    return replace(struct_of(ServiceAccountRow, row), role=Role(row.role))
