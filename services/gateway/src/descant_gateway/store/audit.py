"""The audit log, newest first. Triggers write it, nothing changes it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.identity.roles import Reach
from descant_gateway.store.identity_tables import audit_log
from descant_gateway.store.reach import within
from descant_gateway.store.rows import struct_of

Json = dict[str, Any]


class AuditEntry(Struct, frozen=True, kw_only=True):
    """One row that changed. What is secret shows as ***."""

    id: int
    at: datetime
    actor_kind: str
    """admin_key, person or key; nobody: signing in; database: by hand."""
    actor_id: str | None
    actor_name: str
    address: str | None
    request: str | None
    request_id: str | None
    action: str
    kind: str
    subject: str | None
    organization_id: UUID | None
    team_id: UUID | None
    changed: list[str] | None
    before: Json | None
    after: Json | None


class AuditFilter(Struct, frozen=True, kw_only=True):
    reach: Reach
    kind: str | None = None
    subject: str | None = None
    actor_id: str | None = None
    before_id: int | None = None
    """Where the page starts: with the entry before this one."""


async def find(connection: AsyncConnection, wanted: AuditFilter, size: int) -> list[AuditEntry]:
    """At most `size` entries and one more, if there are more."""
    table = audit_log.c
    query = select(audit_log).where(within(wanted.reach, table.organization_id, table.team_id))
    for name in ("kind", "subject", "actor_id"):
        if (value := getattr(wanted, name)) is not None:
            query = query.where(table[name] == value)
    if wanted.before_id is not None:
        query = query.where(table.id < wanted.before_id)
    rows = await connection.execute(query.order_by(table.id.desc()).limit(size + 1))
    return [struct_of(AuditEntry, row) for row in rows]
