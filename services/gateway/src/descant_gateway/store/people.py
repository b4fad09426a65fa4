"""People, what they may administer, and their sessions. A session's token never comes here, only its hash."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Row, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.identity.oidc import Identity
from descant_gateway.identity.roles import Reach, Role
from descant_gateway.store.errors import AlreadyExists, NotFound
from descant_gateway.store.identity_tables import memberships, people, sessions
from descant_gateway.store.pages import Page, paged
from descant_gateway.store.reach import within


class Membership(Struct, frozen=True, kw_only=True):
    id: UUID
    role: Role
    organization_id: UUID | None
    """None: the whole installation."""
    team_id: UUID | None
    """None: the whole organization."""


class PersonRow(Struct, frozen=True, kw_only=True):
    id: UUID
    email: str
    name: str
    has_password: bool
    oidc_issuer: str | None
    """Where the person signs in; bound at the first sign-in."""
    disabled_at: datetime | None
    created_at: datetime


async def create(connection: AsyncConnection, email: str, name: str, password_hash: str | None) -> PersonRow:
    """Raises AlreadyExists."""
    values = {"email": email.lower(), "name": name, "password_hash": password_hash}
    statement = upsert(people).values(values).on_conflict_do_nothing().returning(people)
    created = (await connection.execute(statement)).one_or_none()
    if created is None:
        raise AlreadyExists("person", email)
    return _row(created)


async def get(connection: AsyncConnection, person: str) -> PersonRow:
    """By id or e-mail address. Raises NotFound."""
    try:
        is_named = people.c.id == UUID(person)
    except ValueError:
        is_named = people.c.email == person.lower()
    row = (await connection.execute(select(people).where(is_named))).one_or_none()
    if row is None:
        raise NotFound("person", person)
    return _row(row)


async def find(connection: AsyncConnection, page: Page, reach: Reach) -> list[PersonRow]:
    """Those with a role within reach. One row more than the page's size, if there are more."""
    query = select(people)
    if not reach.everything:
        table = memberships.c
        query = query.where(
            people.c.id.in_(select(table.person_id).where(within(reach, table.organization_id, table.team_id)))
        )
    return [_row(row) for row in await connection.execute(paged(query, people, page))]


async def password_hash(connection: AsyncConnection, email: str) -> tuple[UUID, str | None] | None:
    """None for somebody who is not there, or disabled."""
    query = select(people.c.id, people.c.password_hash)
    row = (
        await connection.execute(query.where(people.c.email == email.lower(), people.c.disabled_at.is_(None)))
    ).one_or_none()
    return None if row is None else (row.id, row.password_hash)


async def set_password(connection: AsyncConnection, person_id: UUID, password_hash: str) -> None:
    """Ends every session: whoever learned the old password is out."""
    await connection.execute(update(people).where(people.c.id == person_id).values(password_hash=password_hash))
    await end_sessions(connection, person_id)


async def disable(connection: AsyncConnection, person_id: UUID) -> PersonRow:
    """And ends every session. Raises NotFound."""
    values = {"disabled_at": func.coalesce(people.c.disabled_at, func.now())}
    await connection.execute(update(people).where(people.c.id == person_id).values(values))
    await end_sessions(connection, person_id)
    return await get(connection, str(person_id))


async def recognize(connection: AsyncConnection, identity: Identity) -> UUID | None:
    """Whose identity this is: bound to it already, or invited under its verified address and bound now.

    None for a stranger, and for somebody disabled.
    """
    table = people.c
    enabled = table.disabled_at.is_(None)
    bound = select(table.id).where(
        table.oidc_issuer == identity.issuer, table.oidc_subject == identity.subject, enabled
    )
    found: UUID | None = (await connection.execute(bound)).scalar_one_or_none()
    if found is not None or identity.email is None:
        return found
    invited = update(people).where(table.email == identity.email, table.oidc_subject.is_(None), enabled)
    values = {"oidc_issuer": identity.issuer, "oidc_subject": identity.subject}
    first: UUID | None = (await connection.execute(invited.values(values).returning(table.id))).scalar_one_or_none()
    return first


async def start_session(
    connection: AsyncConnection, person_id: UUID, token_hash: bytes, *, address: str | None, expires_at: datetime
) -> None:
    """Forgets sessions that have ended, too."""
    await connection.execute(delete(sessions).where(sessions.c.expires_at < func.now()))
    values = {"person_id": person_id, "token_hash": token_hash, "address": address, "expires_at": expires_at}
    await connection.execute(sessions.insert().values(values))


async def end_session(connection: AsyncConnection, token_hash: bytes) -> None:
    await connection.execute(delete(sessions).where(sessions.c.token_hash == token_hash))


async def end_sessions(connection: AsyncConnection, person_id: UUID) -> None:
    await connection.execute(delete(sessions).where(sessions.c.person_id == person_id))


async def memberships_of(connection: AsyncConnection, person_id: UUID) -> list[Membership]:
    query = select(memberships).where(memberships.c.person_id == person_id).order_by(memberships.c.created_at)
    return [_membership(row) for row in await connection.execute(query)]


async def membership(connection: AsyncConnection, person_id: UUID, membership_id: UUID) -> Membership:
    """Raises NotFound."""
    table = memberships.c
    query = select(memberships).where(table.person_id == person_id, table.id == membership_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound("membership", membership_id)
    return _membership(row)


async def put_membership(
    connection: AsyncConnection, person_id: UUID, role: Role, organization_id: UUID | None, team_id: UUID | None
) -> Membership:
    """One role a place: a new one replaces the old."""
    place = {"person_id": person_id, "organization_id": organization_id, "team_id": team_id}
    statement = upsert(memberships).values(**place, role=role.value)
    statement = statement.on_conflict_do_update(index_elements=list(place), set_={"role": role.value})
    return _membership((await connection.execute(statement.returning(memberships))).one())


async def remove_membership(connection: AsyncConnection, membership_id: UUID) -> None:
    await connection.execute(delete(memberships).where(memberships.c.id == membership_id))


def _membership(row: Row[Any]) -> Membership:
    return Membership(id=row.id, role=Role(row.role), organization_id=row.organization_id, team_id=row.team_id)


def _row(row: Row[Any]) -> PersonRow:
    return PersonRow(
        id=row.id,
        email=row.email,
        name=row.name,
        has_password=row.password_hash is not None,
        oidc_issuer=row.oidc_issuer,
        disabled_at=row.disabled_at,
        created_at=row.created_at,
    )
