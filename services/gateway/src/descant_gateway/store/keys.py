"""Keys and their secrets. A secret's text never comes here, only its HMAC."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Row, Select, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store import models, teams
from descant_gateway.store.errors import Invalid, NotFound
from descant_gateway.store.pages import Page, paged
from descant_gateway.store.tables import key_secrets, keys


class KeyRow(Struct, frozen=True, kw_only=True):
    id: UUID
    public_id: str
    team_id: UUID
    name: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    allowed_models: list[str] | None
    ip_ranges: list[str]
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


class NewKey(Struct, frozen=True, kw_only=True):
    team_id: UUID
    name: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    allowed_models: list[str] | None = None
    """None inherits the team's list; a list may only narrow it."""
    ip_ranges: list[str] = []
    """CIDR or single addresses; empty allows every address."""
    expires_at: datetime | None = None


async def create(connection: AsyncConnection, key: NewKey, *, public_id: str, secret_hmac: bytes) -> KeyRow:
    """Raises NotFound (team), Invalid."""
    team = await teams.get(connection, key.team_id)
    await models.require_known(connection, key.allowed_models, field="allowed_models")
    _require_narrower(key.allowed_models, team)
    _require_future(key.expires_at)
    statement = (
        insert(keys)
        .values(
            public_id=public_id,
            team_id=key.team_id,
            name=key.name,
            requests_per_minute=key.requests_per_minute,
            tokens_per_minute=key.tokens_per_minute,
            allowed_models=key.allowed_models,
            ip_ranges=_networks(key.ip_ranges),
            expires_at=key.expires_at,
        )
        .returning(keys)
    )
    created = _key_row((await connection.execute(statement)).one())
    await connection.execute(insert(key_secrets).values(key_id=created.id, secret_hmac=secret_hmac))
    return created


async def get(connection: AsyncConnection, key: str) -> KeyRow:
    """By id or by public id. Raises NotFound."""
    row = (await connection.execute(select(keys).where(_is_named(key)))).one_or_none()
    if row is None:
        raise NotFound("key", key)
    return _key_row(row)


async def find(connection: AsyncConnection, page: Page, *, team_id: UUID | None = None) -> list[KeyRow]:
    """One row more than the page's size, if there are more."""
    query: Select[Any] = select(keys)
    if team_id is not None:
        query = query.where(keys.c.team_id == team_id)
    return [_key_row(row) for row in await connection.execute(paged(query, keys, page))]


async def revoke(connection: AsyncConnection, key: str) -> KeyRow:
    """For good; revoking twice keeps the first moment. Raises NotFound."""
    statement = update(keys).where(_is_named(key)).values(revoked_at=func.coalesce(keys.c.revoked_at, func.now()))
    row = (await connection.execute(statement.returning(keys))).one_or_none()
    if row is None:
        raise NotFound("key", key)
    return _key_row(row)


async def rotate(connection: AsyncConnection, key: str, *, secret_hmac: bytes, grace: timedelta) -> KeyRow:
    """A new secret; the present ones stay valid for `grace`, never longer than they were. Raises NotFound, Invalid."""
    found = await get(connection, key)
    if found.revoked_at is not None:
        raise Invalid("This key was revoked, which is for good. Create another.", field="key")
    ends = datetime.now(UTC) + grace
    secrets = key_secrets.c
    # least() passes over null, and null here means no end.
    shortened = func.least(secrets.not_after, ends)
    await connection.execute(update(key_secrets).where(secrets.key_id == found.id).values(not_after=shortened))
    await connection.execute(insert(key_secrets).values(key_id=found.id, secret_hmac=secret_hmac))
    return found


def _is_named(key: str) -> Any:
    try:
        return keys.c.id == UUID(key)
    except ValueError:
        return keys.c.public_id == key


def _require_narrower(allowed_models: list[str] | None, team: teams.TeamRow) -> None:
    if allowed_models is None or team.allowed_models is None:
        return
    wider = sorted(set(allowed_models) - set(team.allowed_models))
    if wider:
        names = ", ".join(wider)
        message = f"A key can only narrow its team's models; team {team.name!r} may not use {names}."
        raise Invalid(message, field="allowed_models")


def _require_future(expires_at: datetime | None) -> None:
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise Invalid(f"expires_at is in the past: {expires_at.isoformat()}.", field="expires_at")


def _networks(ip_ranges: list[str]) -> list[str]:
    try:
        return [str(ip_network(text)) for text in ip_ranges]
    except ValueError as error:
        raise Invalid(f"ip_ranges: {error}; write 10.0.0.0/8 or 2001:db8::/32.", field="ip_ranges") from None


def _key_row(row: Row[Any]) -> KeyRow:
    return KeyRow(
        id=row.id,
        public_id=row.public_id,
        team_id=row.team_id,
        name=row.name,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        allowed_models=row.allowed_models,
        ip_ranges=row.ip_ranges,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        created_at=row.created_at,
    )
