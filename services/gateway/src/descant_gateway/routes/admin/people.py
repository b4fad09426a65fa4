"""/admin/v1/people: who may sign in, and the roles they have."""

from typing import Annotated
from uuid import UUID

from litestar import delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Meta, Struct
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.catalogue.entries import END
from descant_gateway.identity.passwords import MAX_LENGTH, MIN_LENGTH, Passwords
from descant_gateway.identity.roles import ActorKind, Level, Principal, Role
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.administration import require, require_place
from descant_gateway.routes.admin.fields import Listing, Name, listing, page_of
from descant_gateway.store import people as store
from descant_gateway.store.errors import NotFound
from descant_gateway.store.pages import Cursor
from descant_gateway.store.people import Membership, PersonRow

Email = Annotated[str, Meta(pattern=r"^[^@\s\x00]{1,64}@[^@\s\x00]{1,190}" + END, description="An e-mail address")]
Password = Annotated[str, Meta(min_length=MIN_LENGTH, max_length=MAX_LENGTH)]


class PersonCreation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    email: Email
    name: Name
    password: Password | None = None
    """Null: the person signs in with the provider, under this address, once it is verified there."""


class PasswordChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    password: Password


class MembershipSetting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Role
    organization: Name | None = None
    """Name or id; null, without a team: the whole installation."""
    team_id: UUID | None = None
    """Null: the whole organization."""


class Person(PersonRow, frozen=True, kw_only=True):
    memberships: list[Membership]


@post("/people", opt=needs(Role.ADMIN, Level.ORGANIZATION))
async def create_person(
    data: JSONBody[PersonCreation], engine: NamedDependency[AsyncEngine], passwords: NamedDependency[Passwords]
) -> PersonRow:
    """Without a role the person can sign in and see nothing."""
    hashed = None if data.password is None else await passwords.hash(data.password)
    async with engine.begin() as connection:
        return await store.create(connection, data.email, data.name, hashed)


@get("/people", opt=needs(Role.ADMIN))
async def list_people(
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    limit: FromQuery[int | None] = None,
    after: FromQuery[str | None] = None,
) -> Listing[PersonRow]:
    """Those with a role in what the principal administers."""
    page = page_of(limit, after)
    async with engine.begin() as connection:
        rows = await store.find(connection, page, principal.reach(Role.ADMIN))
    return listing(rows, page, lambda row: Cursor(row.created_at, row.id))


@get("/people/{person:str}", opt=needs(Role.ADMIN))
async def show_person(
    person: FromPath[str], engine: NamedDependency[AsyncEngine], principal: NamedDependency[Principal]
) -> Person:
    """By id or e-mail address; with the roles that the principal may see."""
    async with engine.begin() as connection:
        found = await store.get(connection, person)
        held = await store.memberships_of(connection, found.id)
    shown = [it for it in held if principal.may(Role.ADMIN, it.organization_id, it.team_id)]
    if not shown and not principal.may(Role.ADMIN, None):
        raise NotFound("person", person)
    return Person(**{name: getattr(found, name) for name in PersonRow.__struct_fields__}, memberships=shown)


@put("/people/{person:str}/password", opt=needs(Role.VIEWER), status_code=204)
async def change_password(
    person: FromPath[str],
    data: JSONBody[PasswordChange],
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    passwords: NamedDependency[Passwords],
) -> None:
    """One's own, or anybody's for an administrator of the installation. Ends all sessions of the person."""
    async with engine.begin() as connection:
        found = await _own_or_all(connection, principal, person)
    hashed = await passwords.hash(data.password)
    async with engine.begin() as connection:
        await store.set_password(connection, found.id, hashed)


@post("/people/{person:str}/disable", status_code=200, opt=needs(Role.ADMIN, Level.INSTALLATION))
async def disable_person(
    person: FromPath[str], engine: NamedDependency[AsyncEngine], principal: NamedDependency[Principal]
) -> PersonRow:
    """Ends every session. An owner of the installation is disabled by another only."""
    async with engine.begin() as connection:
        found = await store.get(connection, person)
        await _require_no_more_than(connection, principal, found.id)
        return await store.disable(connection, found.id)


@post("/people/{person:str}/memberships", opt=needs(Role.ADMIN))
async def put_membership(
    person: FromPath[str],
    data: JSONBody[MembershipSetting],
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
) -> Membership:
    """Gives a role of at most one's own; one that the person has there already is replaced."""
    async with engine.begin() as connection:
        found = await store.get(connection, person)
        place = await require_place(connection, principal, data.organization, data.team_id, granting=data.role)
        held = await store.memberships_of(connection, found.id)
        for it in held:
            if (it.organization_id, it.team_id) == (place.organization_id, place.team_id):
                require(principal, it.role, it.organization_id, it.team_id)
        return await store.put_membership(connection, found.id, data.role, place.organization_id, place.team_id)


@delete("/people/{person:str}/memberships/{membership_id:uuid}", opt=needs(Role.ADMIN))
async def delete_membership(
    person: FromPath[str],
    membership_id: FromPath[UUID],
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
) -> None:
    async with engine.begin() as connection:
        found = await store.get(connection, person)
        held = await store.membership(connection, found.id, membership_id)
        require(principal, Role.ADMIN, held.organization_id, held.team_id)
        require(principal, held.role, held.organization_id, held.team_id)
        await store.remove_membership(connection, membership_id)


async def _own_or_all(connection: AsyncConnection, principal: Principal, person: str) -> PersonRow:
    """Before the 403, so that nobody learns from a 404 who is there."""
    actor = principal.actor
    if actor.kind is not ActorKind.PERSON or person != actor.id:
        require(principal, Role.ADMIN, None)
    found = await store.get(connection, person)
    if str(found.id) != actor.id:
        await _require_no_more_than(connection, principal, found.id)
    return found


async def _require_no_more_than(connection: AsyncConnection, principal: Principal, person_id: UUID) -> None:
    """Whoever takes over or shuts out a person must have every role that the person has."""
    for it in await store.memberships_of(connection, person_id):
        require(principal, it.role, it.organization_id, it.team_id)


ROUTES = (
    create_person,
    list_people,
    show_person,
    change_password,
    disable_person,
    put_membership,
    delete_membership,
)
