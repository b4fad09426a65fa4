"""/admin/v1/keys: issued once in full, then known by their public id only."""

from datetime import datetime, timedelta
from typing import Annotated, Final
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Meta, Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.keys import KeyIssuer
from descant_gateway.routes.admin.fields import Limit, Listing, Name, Names, listing, page_of
from descant_gateway.store import keys as store
from descant_gateway.store.keys import KeyRow, NewKey
from descant_gateway.store.pages import Cursor

DEFAULT_GRACE_S: Final = 24 * 3600
MAX_GRACE_S: Final = 90 * 24 * 3600


class KeyCreation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    team_id: UUID
    name: Name
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    allowed_models: Names | None = None
    """Null inherits the team's list; a list can only narrow it."""
    ip_ranges: Annotated[list[str], Meta(max_length=1000)] = []
    """Such as 10.0.0.0/8; empty allows every address."""
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None


class KeyRotation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    grace_s: Annotated[int, Meta(ge=0, le=MAX_GRACE_S)] = DEFAULT_GRACE_S
    """How long the present secret works beside the new one."""


class IssuedKey(KeyRow, frozen=True, kw_only=True):
    """A key with its text, which nobody can be told again."""

    api_key: str


@post("/keys")
async def create_key(
    data: JSONBody[KeyCreation], engine: NamedDependency[AsyncEngine], issuer: NamedDependency[KeyIssuer]
) -> IssuedKey:
    new_key = NewKey(
        team_id=data.team_id,
        name=data.name,
        requests_per_minute=data.requests_per_minute,
        tokens_per_minute=data.tokens_per_minute,
        allowed_models=data.allowed_models,
        ip_ranges=data.ip_ranges,
        expires_at=data.expires_at,
    )
    issued = issuer.issue()
    async with engine.begin() as connection:
        row = await store.create(connection, new_key, public_id=issued.key.public_id, secret_hmac=issued.secret_hmac)
    return _issued_key(row, issued.key.text)


@get("/keys")
async def list_keys(
    engine: NamedDependency[AsyncEngine],
    team_id: FromQuery[UUID | None] = None,
    limit: FromQuery[int | None] = None,
    after: FromQuery[str | None] = None,
) -> Listing[KeyRow]:
    page = page_of(limit, after)
    async with engine.begin() as connection:
        rows = await store.find(connection, page, team_id=team_id)
    return listing(rows, page, lambda row: Cursor(row.created_at, row.id))


@get("/keys/{key:str}")
async def show_key(key: FromPath[str], engine: NamedDependency[AsyncEngine]) -> KeyRow:
    """By id or public id, as everywhere below /keys."""
    async with engine.begin() as connection:
        return await store.get(connection, key)


@post("/keys/{key:str}/revoke", status_code=200)
async def revoke_key(key: FromPath[str], engine: NamedDependency[AsyncEngine]) -> KeyRow:
    """For good, within a second on every gateway. Revoking twice is revoking once."""
    async with engine.begin() as connection:
        return await store.revoke(connection, key)


@post("/keys/{key:str}/rotate", status_code=200)
async def rotate_key(
    key: FromPath[str],
    data: JSONBody[KeyRotation],
    engine: NamedDependency[AsyncEngine],
    issuer: NamedDependency[KeyIssuer],
) -> IssuedKey:
    """A new secret under the same public id; limits, name and history stay."""
    async with engine.begin() as connection:
        public_id = (await store.get(connection, key)).public_id
        issued = issuer.issue(public_id)
        row = await store.rotate(connection, key, secret_hmac=issued.secret_hmac, grace=timedelta(seconds=data.grace_s))
    return _issued_key(row, issued.key.text)


def _issued_key(row: KeyRow, text: str) -> IssuedKey:
    return IssuedKey(**msgspec.structs.asdict(row), api_key=text)


ROUTES = (create_key, list_keys, show_key, revoke_key, rotate_key)
