"""What every admin route works with: who asks, and a connection whose changes the audit log puts down to them."""

from typing import Any, Final
from uuid import UUID, uuid4

from litestar import Request
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.identity.roles import Principal, Role
from descant_gateway.routes.access import client_address
from descant_gateway.store import organizations, teams
from descant_gateway.store.errors import NotFound
from descant_gateway.store.session import ActingAs, acting_as
from descant_wire.errors import permission_denied

AnyRequest = Request[Any, Any, Any]
MAX_REQUEST_ID: Final = 128


def audited(engine: AsyncEngine, request: AnyRequest) -> AsyncEngine:
    """The engine as the request's principal uses it. A request without one (signing in) names nobody."""
    principal: Principal | None = request.state.get("principal")
    actor = None if principal is None else principal.actor
    return acting_as(
        engine,
        ActingAs(
            kind=actor.kind if actor else "nobody",
            id=actor.id if actor else "",
            name=actor.name if actor else "nobody yet",
            address=client_address(request),
            request=f"{request.method} {request.url.path}",
            request_id=request.headers.get("x-request-id", "")[:MAX_REQUEST_ID] or f"req_{uuid4().hex}",
        ),
    )


def require(principal: Principal, role: Role, organization_id: UUID | None, team_id: UUID | None = None) -> None:
    """403 unless the principal has the role over that team, organization (no team) or installation (neither)."""
    if not principal.may(role, organization_id, team_id):
        over = "this team" if team_id else "this organization" if organization_id else "the installation"
        raise permission_denied(f"This needs the role {role!s} (or a higher one) over {over}.")


def require_seen(principal: Principal, kind: str, name: object, organization_id: UUID, team_id: UUID | None) -> None:
    """404 for a thing that the principal may not even see, in the words that a thing that is not there gets."""
    if not principal.may(Role.VIEWER, organization_id, team_id):
        raise NotFound(kind, name)


class Place(Struct, frozen=True):
    """Where a role holds: the installation (both ids None), an organization, or a team of it."""

    organization_id: UUID | None = None
    team_id: UUID | None = None


async def require_place(
    connection: AsyncConnection, principal: Principal, organization: str | None, team_id: UUID | None, *, granting: Role
) -> Place:
    """Where the principal may give this role: it administers the place, and has the role itself.

    A team decides about its organization; without either it is the installation. Raises NotFound, 403.
    """
    place = await _place(connection, organization, team_id)
    require(principal, Role.ADMIN, place.organization_id, place.team_id)
    require(principal, granting, place.organization_id, place.team_id)
    return place


async def _place(connection: AsyncConnection, organization: str | None, team_id: UUID | None) -> Place:
    if team_id is not None:
        return Place((await teams.get(connection, team_id)).organization_id, team_id)
    return Place() if organization is None else Place((await organizations.get(connection, organization)).id)
