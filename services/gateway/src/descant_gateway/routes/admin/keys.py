"""/admin/v1/keys: issued once in full, then known by their public id only."""

from datetime import timedelta
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from litestar import get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, Meta, Struct, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.identity.delegation import narrowed
from descant_gateway.identity.keys import KeyIssuer
from descant_gateway.identity.roles import ActorKind, Principal, Role
from descant_gateway.identity.scopes import Scope
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.administration import require, require_seen
from descant_gateway.routes.admin.fields import Limit, Listing, Moment, Name, Names, listing, page_of, utc
from descant_gateway.routes.admin.teams import seen_team
from descant_gateway.storable import StorableText
from descant_gateway.store import keys as store
from descant_gateway.store import service_accounts
from descant_gateway.store.keys import KeyRow, NewKey
from descant_gateway.store.pages import Cursor

DEFAULT_GRACE_S: Final = 24 * 3600
MAX_GRACE_S: Final = 90 * 24 * 3600

IpRanges = Annotated[list[StorableText], Meta(max_length=1000)]


class KeyCreation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    team_id: UUID
    name: Name
    project_id: UUID | None = None
    service_account_id: UUID | None = None
    """The key then is that account's: its role is at most the account's, and it ends with it."""
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    allowed_models: Names | None = None
    """Null inherits the team's list; a list can only narrow it."""
    allowed_adapters: Names | None = None
    """Where given, it decides about adapters in place of `allowed_models`; empty: base models only."""
    scopes: list[Scope] | None = None
    """The endpoints that it opens; null: all of /v1."""
    role: Role | None = None
    """What it may administer; needs the scope `admin`."""
    ip_ranges: IpRanges = []
    """Such as 10.0.0.0/8; empty allows every address."""
    expires_at: Moment | None = None


class KeyPatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is not given stays; null lifts. A key's team, project and role never change: make another."""

    name: Name | UnsetType = UNSET
    requests_per_minute: Limit | UnsetType | None = UNSET
    tokens_per_minute: Limit | UnsetType | None = UNSET
    allowed_models: Names | UnsetType | None = UNSET
    allowed_adapters: Names | UnsetType | None = UNSET
    scopes: list[Scope] | UnsetType | None = UNSET
    ip_ranges: IpRanges | UnsetType = UNSET
    expires_at: Moment | UnsetType | None = UNSET


class KeyRotation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    grace_s: Annotated[int, Meta(ge=0, le=MAX_GRACE_S)] = DEFAULT_GRACE_S
    """How long the present secret works beside the new one."""


class IssuedKey(KeyRow, frozen=True, kw_only=True):
    """A key with its text, which nobody can be told again."""

    api_key: str


@post("/keys", opt=needs(Role.MEMBER))
async def create_key(
    data: JSONBody[KeyCreation],
    engine: NamedDependency[AsyncEngine],
    issuer: NamedDependency[KeyIssuer],
    principal: NamedDependency[Principal],
) -> IssuedKey:
    """What a key creates never exceeds it: what is left open becomes the creator's own."""
    wanted = NewKey(**_as_stored(data), created_by=_creator(principal))
    issued = issuer.issue()
    async with engine.begin() as connection:
        await _require_may_create(connection, principal, wanted)
        creator = await _own_key(connection, principal)
        row = await store.create(
            connection,
            wanted if creator is None else narrowed(wanted, creator),
            public_id=issued.key.public_id,
            secret_hmac=issued.secret_hmac,
        )
        if creator is not None:
            await store.copy_limits(connection, creator.id, row.id)
    return _issued_key(row, issued.key.text)


@get("/keys", opt=needs(Role.VIEWER))
async def list_keys(
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    team_id: FromQuery[UUID | None] = None,
    limit: FromQuery[int | None] = None,
    after: FromQuery[str | None] = None,
) -> Listing[KeyRow]:
    page = page_of(limit, after)
    async with engine.begin() as connection:
        rows = await store.find(connection, page, reach=principal.reach(), team_id=team_id)
    return listing(rows, page, lambda row: Cursor(row.created_at, row.id))


@get("/keys/{key:str}", opt=needs(Role.VIEWER))
async def show_key(
    key: FromPath[str], engine: NamedDependency[AsyncEngine], principal: NamedDependency[Principal]
) -> KeyRow:
    """By id or public id, as everywhere below /keys."""
    async with engine.begin() as connection:
        return await _seen_key(connection, principal, key)


@patch("/keys/{key:str}", opt=needs(Role.ADMIN))
async def change_key(
    key: FromPath[str],
    data: JSONBody[KeyPatch],
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
) -> KeyRow:
    """A key may change others, and itself, only to what it could create."""
    given = _as_stored(data)
    async with engine.begin() as connection:
        found = await _seen_key(connection, principal, key)
        require(principal, Role.ADMIN, found.organization_id, found.team_id)
        await _require_covers(connection, principal, found)
        changed = msgspec.structs.replace(found, **given)
        creator = await _own_key(connection, principal)
        return await store.change(connection, found, changed if creator is None else narrowed(changed, creator))


@post("/keys/{key:str}/revoke", status_code=200, opt=needs(Role.MEMBER))
async def revoke_key(
    key: FromPath[str], engine: NamedDependency[AsyncEngine], principal: NamedDependency[Principal]
) -> KeyRow:
    """For good, within a second on every gateway. Revoking twice is revoking once."""
    async with engine.begin() as connection:
        found = await _seen_key(connection, principal, key)
        _require_own(principal, found)
        return await store.revoke(connection, key)


@post("/keys/{key:str}/rotate", status_code=200, opt=needs(Role.MEMBER))
async def rotate_key(
    key: FromPath[str],
    data: JSONBody[KeyRotation],
    engine: NamedDependency[AsyncEngine],
    issuer: NamedDependency[KeyIssuer],
    principal: NamedDependency[Principal],
) -> IssuedKey:
    """A new secret under the same public id; limits, name and history stay.

    Whoever rotates a key holds it, so it must not exceed them.
    """
    async with engine.begin() as connection:
        found = await _seen_key(connection, principal, key)
        _require_own(principal, found)
        await _require_covers(connection, principal, found)
        creator = await _own_key(connection, principal)
        if creator is not None and creator.id != found.id:
            narrowed(found, creator)
        issued = issuer.issue(found.public_id)
        row = await store.rotate(connection, key, secret_hmac=issued.secret_hmac, grace=timedelta(seconds=data.grace_s))
    return _issued_key(row, issued.key.text)


def _as_stored(data: KeyCreation | KeyPatch) -> dict[str, Any]:
    """The fields that were given. Raises Invalid, ApiError."""
    given = {name: value for name, value in msgspec.structs.asdict(data).items() if value is not UNSET}
    if "ip_ranges" in given:
        given["ip_ranges"] = store.networks(given["ip_ranges"])
    if given.get("expires_at") is not None:
        given["expires_at"] = utc(given["expires_at"], "expires_at")
    return given


async def _require_may_create(connection: AsyncConnection, principal: Principal, wanted: NewKey) -> None:
    """In a team that the principal makes keys for, with no more of a role than its own."""
    team = await seen_team(connection, principal, wanted.team_id)
    require(principal, Role.MEMBER, team.organization_id, team.id)
    await _require_role(connection, principal, wanted.role, wanted.service_account_id, team.organization_id, team.id)


async def _require_covers(connection: AsyncConnection, principal: Principal, key: KeyRow) -> None:
    await _require_role(connection, principal, key.role, key.service_account_id, key.organization_id, key.team_id)


async def _require_role(
    connection: AsyncConnection,
    principal: Principal,
    role: Role | None,
    account_id: UUID | None,
    organization_id: UUID,
    team_id: UUID,
) -> None:
    """The principal has the key's role where the key has it; and administers its service account, if it is of one."""
    if account_id is not None:
        account = await service_accounts.get(connection, account_id)
        require(principal, Role.ADMIN, account.organization_id, account.team_id)
        if role is not None:
            require(principal, role, account.organization_id, account.team_id)
    elif role is not None:
        require(principal, role, organization_id, team_id)


async def _own_key(connection: AsyncConnection, principal: Principal) -> KeyRow | None:
    """The key that asks; None where it is no key that does."""
    is_key = principal.actor.kind is ActorKind.KEY
    return await store.get(connection, principal.actor.id) if is_key else None


async def _seen_key(connection: AsyncConnection, principal: Principal, key: str) -> KeyRow:
    found = await store.get(connection, key)
    require_seen(principal, "key", key, found.organization_id, found.team_id)
    return found


def _require_own(principal: Principal, key: KeyRow) -> None:
    """Members have their own keys in hand, administrators everybody's."""
    is_own = key.created_by is not None and key.created_by == _creator(principal)
    require(principal, Role.MEMBER if is_own else Role.ADMIN, key.organization_id, key.team_id)


def _creator(principal: Principal) -> str | None:
    return None if principal.actor.kind is ActorKind.ADMIN_KEY else principal.actor.reference


def _issued_key(row: KeyRow, text: str) -> IssuedKey:
    return IssuedKey(**msgspec.structs.asdict(row), api_key=text)


ROUTES = (create_key, list_keys, show_key, change_key, revoke_key, rotate_key)
