"""Where organizations are told of limits that pass a warning threshold."""

from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.catalogue.snapshot import Webhook
from descant_gateway.sealing import Sealer
from descant_gateway.store import tables
from descant_gateway.store.errors import NotFound


async def put(connection: AsyncConnection, organization_id: UUID, webhook: Webhook, sealer: Sealer) -> None:
    """One an organization; the new one replaces the old. Raises NotFound (organization)."""
    known = tables.organizations.c.id
    if (await connection.execute(select(known).where(known == organization_id))).one_or_none() is None:
        raise NotFound("organization", organization_id)
    stored = {"url": webhook.url, "sealed_secret": sealer.seal(webhook.secret, name=_sealed_name(organization_id))}
    statement = upsert(tables.webhooks).values(organization_id=organization_id, **stored)
    await connection.execute(statement.on_conflict_do_update(index_elements=["organization_id"], set_=stored))


async def remove(connection: AsyncConnection, organization_id: UUID) -> None:
    """Raises NotFound."""
    table = tables.webhooks
    removed = await connection.execute(delete(table).where(table.c.organization_id == organization_id))
    if removed.rowcount == 0:
        raise NotFound("webhook of the organization", organization_id)


async def by_organization(connection: AsyncConnection, sealer: Sealer) -> dict[UUID, Webhook]:
    """Raises sealing.UnsealError."""
    rows = await connection.execute(select(tables.webhooks))
    return {
        row.organization_id: Webhook(row.url, sealer.unseal(row.sealed_secret, name=_sealed_name(row.organization_id)))
        for row in rows
    }


def _sealed_name(organization_id: UUID) -> str:
    return f"webhook of {organization_id.hex}"
