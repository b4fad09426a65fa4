"""Keys and their secrets. A secret's text never comes here, only its HMAC."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any
from uuid import UUID

from msgspec.structs import asdict, replace
from sqlalchemy import Row, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.identity.delegation import KeyRights
from descant_gateway.identity.roles import EVERYTHING, Reach, Role
from descant_gateway.identity.scopes import Scope
from descant_gateway.store import models, organizations, projects, service_accounts, teams
from descant_gateway.store.errors import Invalid, NotFound
from descant_gateway.store.pages import Page, paged
from descant_gateway.store.reach import within
from descant_gateway.store.rows import struct_of
from descant_gateway.store.tables import key_secrets, keys
from descant_gateway.store.tables import limits as limit_table
from descant_gateway.store.tables import teams as team_table

RIGHTS = KeyRights.__struct_fields__


class KeyRow(KeyRights, frozen=True, kw_only=True):
    id: UUID
    public_id: str
    organization_id: UUID
    team_id: UUID
    project_id: UUID | None
    service_account_id: UUID | None
    name: str
    created_by: str | None
    """person:<id> or key:<public id>; None: the admin key."""
    revoked_at: datetime | None
    created_at: datetime


class NewKey(KeyRights, frozen=True, kw_only=True):
    team_id: UUID
    name: str
    project_id: UUID | None = None
    service_account_id: UUID | None = None
    created_by: str | None = None


async def create(connection: AsyncConnection, key: NewKey, *, public_id: str, secret_hmac: bytes) -> KeyRow:
    """Raises NotFound (team, project, service account), Invalid."""
    await _require_parents(connection, key)
    await _require_sound(connection, key, key.team_id, key.project_id)
    values = asdict(key) | {"public_id": public_id, "ip_ranges": networks(key.ip_ranges)}
    created = (await connection.execute(insert(keys).values(values).returning(keys.c.id))).scalar_one()
    await connection.execute(insert(key_secrets).values(key_id=created, secret_hmac=secret_hmac))
    return await get(connection, str(created))


async def copy_limits(connection: AsyncConnection, source: UUID, target: UUID) -> None:
    """Gives the target key every limit that the source key has."""
    table = limit_table.c
    names = ["level", "kind", "model", "capacity", "is_shadow", "warn_at"]
    copied = select(literal(target), *(table[name] for name in names)).where(table.owner_id == source)
    await connection.execute(insert(limit_table).from_select(["owner_id", *names], copied))


async def get(connection: AsyncConnection, key: str) -> KeyRow:
    """By id or by public id. Raises NotFound."""
    row = (await connection.execute(_query().where(_is_named(key)))).one_or_none()
    if row is None:
        raise NotFound("key", key)
    return _key_row(row)


async def find(
    connection: AsyncConnection, page: Page, *, reach: Reach = EVERYTHING, team_id: UUID | None = None
) -> list[KeyRow]:
    """One row more than the page's size, if there are more."""
    query = _query().where(within(reach, team_table.c.organization_id, keys.c.team_id))
    if team_id is not None:
        query = query.where(keys.c.team_id == team_id)
    return [_key_row(row) for row in await connection.execute(paged(query, keys, page))]


async def change(connection: AsyncConnection, found: KeyRow, changed: KeyRow) -> KeyRow:
    """From `found` to `changed`, whose name and rights may differ. Raises Invalid."""
    if found.revoked_at is not None:
        raise Invalid("This key was revoked, which is for good. Create another.", field="key")
    await _require_sound(connection, changed, found.team_id, found.project_id)
    values = {name: getattr(changed, name) for name in ("name", *RIGHTS)}
    values["ip_ranges"] = networks(changed.ip_ranges)
    await connection.execute(update(keys).where(keys.c.id == found.id).values(values))
    return await get(connection, str(found.id))


async def revoke(connection: AsyncConnection, key: str) -> KeyRow:
    """For good; revoking twice keeps the first moment. Raises NotFound."""
    statement = update(keys).where(_is_named(key)).values(revoked_at=func.coalesce(keys.c.revoked_at, func.now()))
    await connection.execute(statement)
    return await get(connection, key)


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


def networks(ip_ranges: list[str]) -> list[str]:
    """In their one spelling. Raises Invalid."""
    try:
        return [str(ip_network(text)) for text in ip_ranges]
    except ValueError as error:
        raise Invalid(f"ip_ranges: {error}; write 10.0.0.0/8 or 2001:db8::/32.", field="ip_ranges") from None


async def _require_parents(connection: AsyncConnection, key: NewKey) -> None:
    team = await teams.get(connection, key.team_id)
    if key.project_id is not None and (await projects.get(connection, key.project_id)).team_id != team.id:
        raise Invalid("The project is another team's.", field="project_id")
    if key.service_account_id is not None:
        account = await service_accounts.get(connection, key.service_account_id)
        if account.organization_id != team.organization_id or account.team_id not in (None, team.id):
            raise Invalid("The service account is not of this team or its organization.", field="service_account_id")
        if account.disabled_at is not None:
            raise Invalid("The service account is disabled.", field="service_account_id")


async def _require_sound(
    connection: AsyncConnection, rights: KeyRights, team_id: UUID, project_id: UUID | None
) -> None:
    """The lists name models that are there and that every level above allows; the rest makes sense by itself."""
    team = await teams.get(connection, team_id)
    above: list[Any] = [await organizations.get(connection, str(team.organization_id)), team]
    if project_id is not None:
        above.append(await projects.get(connection, project_id))
    for field in ("allowed_models", "allowed_adapters"):
        names: list[str] | None = getattr(rights, field)
        await models.require_known(connection, names, field=field)
        for level in above:
            _require_narrower(field, names, getattr(level, field), level.name)
    _require_scopes(rights)
    if rights.expires_at is not None and rights.expires_at <= datetime.now(UTC):
        raise Invalid(f"expires_at is in the past: {rights.expires_at.isoformat()}.", field="expires_at")


def _require_scopes(rights: KeyRights) -> None:
    unknown = sorted(set(rights.scopes or ()) - set(Scope))
    if unknown:
        raise Invalid(f"There is no scope {', '.join(unknown)}; there are {', '.join(Scope)}.", field="scopes")
    if (rights.role is not None) != (Scope.ADMIN in (rights.scopes or ())):
        raise Invalid("A key that administers needs both a role and the scope 'admin'.", field="scopes")


def _require_narrower(field: str, names: list[str] | None, above: list[str] | None, owner: str) -> None:
    wider = [] if names is None or above is None else sorted(set(names) - set(above))
    if wider:
        kind = field.removeprefix("allowed_")
        message = f"A key can only narrow the {kind} of those above it; {owner!r} may not use {', '.join(wider)}."
        raise Invalid(message, field=field)


def _query() -> Any:
    return select(keys, team_table.c.organization_id).join(team_table, team_table.c.id == keys.c.team_id)


def _is_named(key: str) -> Any:
    try:
        return keys.c.id == UUID(key)
    except ValueError:
        return keys.c.public_id == key


def _key_row(row: Row[Any]) -> KeyRow:
    return replace(struct_of(KeyRow, row), role=None if row.role is None else Role(row.role))
