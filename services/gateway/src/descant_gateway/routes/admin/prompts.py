"""/admin/v1/teams/{team}/prompts: what a team had logged. Every reading is in the audit log."""

from datetime import datetime
from uuid import UUID

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.identity.roles import Level, Principal, Role
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.administration import require
from descant_gateway.routes.admin.audit import before_id
from descant_gateway.routes.admin.fields import Listing, page_of
from descant_gateway.routes.admin.teams import seen_team
from descant_gateway.sealing import Sealer
from descant_gateway.store import prompts as store
from descant_gateway.store.team_keys import TeamKeys


class LoggedPrompt(Struct, frozen=True, kw_only=True):
    id: int
    at: datetime
    key_id: UUID
    request_id: str
    model: str
    request: str
    """The body that the client sent, as JSON."""


@get("/teams/{team_id:uuid}/prompts", opt=needs(Role.OWNER, Level.ORGANIZATION))
async def show_prompts(
    team_id: FromPath[UUID],
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    sealer: NamedDependency[Sealer],
    limit: FromQuery[int | None] = None,
    after: FromQuery[str | None] = None,
) -> Listing[LoggedPrompt]:
    """Newest first. Owners of the organization only."""
    size = page_of(limit, None).size
    async with engine.begin() as connection:
        team = await seen_team(connection, principal, team_id)
        require(principal, Role.OWNER, team.organization_id)
        found = await store.find(connection, team_id, before_id(after), size)
        await store.record_reading(connection, team_id, min(size, len(found)))
    if not found:
        return Listing([], None)
    cipher = await TeamKeys(engine, sealer).of(team_id)
    prompts = [
        LoggedPrompt(
            id=each.id,
            at=each.at,
            key_id=each.key_id,
            request_id=each.request_id,
            model=each.model,
            request=cipher.unseal(each.sealed_request, name=each.request_id).decode(),
        )
        for each in found[:size]
    ]
    return Listing(prompts, str(prompts[-1].id) if len(found) > size else None)


ROUTES = (show_prompts,)
