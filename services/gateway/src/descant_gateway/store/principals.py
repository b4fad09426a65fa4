"""Who somebody is to the admin API, read from PostgreSQL at each call: what is revoked is so at once."""

from datetime import datetime
from ipaddress import ip_network
from typing import Any
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.identity.authenticate import IpRanges
from descant_gateway.identity.roles import Actor, ActorKind, Grant, Principal, Role
from descant_gateway.store.identity_tables import memberships, people, sessions
from descant_gateway.store.tables import key_secrets, keys, service_accounts, teams


class AdminKey(Struct, frozen=True, kw_only=True):
    """A key as the admin API sees it: nothing of it is checked yet."""

    secret_hmacs: tuple[bytes, ...]
    """Those that are valid now."""
    scopes: frozenset[str]
    ip_ranges: IpRanges
    expires_at: datetime | None
    revoked_at: datetime | None
    principal: Principal
    """Without a grant where the key has no role, or its service account is disabled."""


class SignedIn(Struct, frozen=True):
    session_id: UUID
    principal: Principal


async def by_key(connection: AsyncConnection, public_id: str) -> AdminKey | None:
    account = service_accounts.c
    query = (
        select(
            keys,
            teams.c.organization_id,
            account.role.label("account_role"),
            account.team_id.label("account_team_id"),
            account.disabled_at.label("account_disabled_at"),
        )
        .join(teams, teams.c.id == keys.c.team_id)
        .outerjoin(service_accounts, account.id == keys.c.service_account_id)
        .where(keys.c.public_id == public_id)
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return None
    valid = (key_secrets.c.not_after.is_(None)) | (key_secrets.c.not_after > func.now())
    hmacs = await connection.execute(select(key_secrets.c.secret_hmac).where(key_secrets.c.key_id == row.id, valid))
    return AdminKey(
        secret_hmacs=tuple(hmacs.scalars()),
        scopes=frozenset(row.scopes or ()),
        ip_ranges=tuple(ip_network(text) for text in row.ip_ranges),
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        principal=Principal(Actor(ActorKind.KEY, row.public_id, row.name), _grants_of_key(row)),
    )


async def by_session(connection: AsyncConnection, token_hash: bytes) -> SignedIn | None:
    """None for a session that ended, and for a person who was disabled."""
    query = (
        select(sessions.c.id.label("session_id"), people.c.id, people.c.name, people.c.email)
        .join(people)
        .where(sessions.c.token_hash == token_hash, sessions.c.expires_at > func.now(), people.c.disabled_at.is_(None))
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return None
    actor = Actor(ActorKind.PERSON, str(row.id), f"{row.name} <{row.email}>")
    return SignedIn(row.session_id, Principal(actor, await _grants_of_person(connection, row.id)))


async def _grants_of_person(connection: AsyncConnection, person_id: UUID) -> tuple[Grant, ...]:
    rows = await connection.execute(select(memberships).where(memberships.c.person_id == person_id))
    return tuple(Grant(Role(row.role), row.organization_id, row.team_id) for row in rows)


def _grants_of_key(row: Row[Any]) -> tuple[Grant, ...]:
    """The key's role over its team. One of a service account: at most that one's role, over what that one reaches."""
    if row.role is None or row.account_disabled_at is not None:
        return ()
    role = Role(row.role)
    if row.account_role is None:
        return (Grant(role, row.organization_id, row.team_id),)
    held = role if Role(row.account_role).covers(role) else Role(row.account_role)
    return (Grant(held, row.organization_id, row.account_team_id),)
