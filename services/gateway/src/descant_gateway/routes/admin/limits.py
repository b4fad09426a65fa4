"""/admin/v1/limits, webhooks, fair-shares: what organizations, teams, projects and keys may use, and for what.

Whoever sets a limit stands above its owner: nobody raises their own.
"""

import secrets
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

from litestar import delete, get, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Meta, Struct
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.catalogue.snapshot import Webhook
from descant_gateway.egress.address import normal_base_url
from descant_gateway.egress.connections import Refusal
from descant_gateway.identity.roles import ActorKind, Level, Principal, Role
from descant_gateway.limits.limit import LimitKind
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.administration import require
from descant_gateway.routes.admin.fields import Listing, Name
from descant_gateway.sealing import Sealer
from descant_gateway.store import fair_shares, teams, webhooks
from descant_gateway.store import limits as store
from descant_gateway.store.limits import LimitRow, NewLimit
from descant_wire.errors import invalid_request, permission_denied

Capacity = Annotated[int, Meta(ge=0, le=10**15)]
Percent = Annotated[int, Meta(ge=1, le=100)]


class Owner(StrEnum):
    ORGANIZATION = "organization"
    TEAM = "team"
    PROJECT = "project"
    KEY = "key"


class LimitSetting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The one limit of this owner, kind and model: set again it is changed."""

    level: Owner
    owner_id: UUID
    kind: LimitKind
    capacity: Capacity
    """Requests, tokens or micro-dollars; 0 lets nothing through."""
    model: Name | None = None
    """Counts only this adapter, or this model and its adapters; null: everything together."""
    is_shadow: bool = False
    """Counts and reports, never refuses."""
    warn_at: Annotated[list[Percent], Meta(max_length=10)] = []
    """Percent used at which the organization's webhook is told, once each period."""


class WebhookSetting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: Annotated[str, Meta(min_length=1, max_length=2000)]


class IssuedWebhook(Struct, frozen=True, kw_only=True):
    """The secret signs what is sent; it is shown this once."""

    url: str
    secret: str


class FairShareSetting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    """While backends are saturated, the higher number goes first."""
    weight: Annotated[int, Meta(ge=1, le=1000)] = 1
    """Among teams of one priority, each gets tokens in proportion to its weight."""


class CapacitySetting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    backend: Name
    max_in_flight: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    """Requests that it takes at once, from all gateways together; more wait. Null: no bound."""


@put("/limits", opt=needs(Role.ADMIN))
async def put_limit(
    data: JSONBody[LimitSetting], engine: NamedDependency[AsyncEngine], principal: NamedDependency[Principal]
) -> LimitRow:
    limit = NewLimit(
        level=data.level,
        owner_id=data.owner_id,
        kind=data.kind,
        model=data.model,
        capacity=data.capacity,
        is_shadow=data.is_shadow,
        warn_at=sorted(set(data.warn_at)),
    )
    async with engine.begin() as connection:
        await _require_above(connection, principal, data.level, data.owner_id)
        return await store.put(connection, limit)


@get("/limits", opt=needs(Role.VIEWER))
async def list_limits(
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    level: FromQuery[Owner | None] = None,
    owner_id: FromQuery[UUID | None] = None,
) -> Listing[LimitRow]:
    """One owner's, by `level` and `owner_id`; all of them for those who see the whole installation."""
    async with engine.begin() as connection:
        if level is None or owner_id is None:
            require(principal, Role.VIEWER, None)
            return Listing(await store.find(connection, owner_id))
        place = await store.place_of(connection, level, owner_id)
        require(principal, Role.VIEWER, place.organization_id, place.team_id)
        return Listing(await store.find(connection, owner_id))


@delete("/limits/{limit_id:uuid}", opt=needs(Role.ADMIN))
async def delete_limit(
    limit_id: FromPath[UUID], engine: NamedDependency[AsyncEngine], principal: NamedDependency[Principal]
) -> None:
    async with engine.begin() as connection:
        limit = await store.get(connection, limit_id)
        await _require_above(connection, principal, Owner(limit.level), limit.owner_id)
        await store.remove(connection, limit_id)


@put("/webhooks/{organization_id:uuid}", opt=needs(Role.ADMIN, Level.ORGANIZATION))
async def put_webhook(
    organization_id: FromPath[UUID],
    data: JSONBody[WebhookSetting],
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    sealer: NamedDependency[Sealer],
    webhook_refusal: NamedDependency[Refusal],
) -> IssuedWebhook:
    """A new secret each time.

    What a name means is looked at when a warning is sent, not here: nobody is told which names the house knows.
    """
    require(principal, Role.ADMIN, organization_id)
    webhook = Webhook(checked_webhook_url(data.url, webhook_refusal), secrets.token_urlsafe(32))
    async with engine.begin() as connection:
        await webhooks.put(connection, organization_id, webhook, sealer)
    return IssuedWebhook(url=webhook.url, secret=webhook.secret)


@delete("/webhooks/{organization_id:uuid}", opt=needs(Role.ADMIN, Level.ORGANIZATION))
async def delete_webhook(
    organization_id: FromPath[UUID], engine: NamedDependency[AsyncEngine], principal: NamedDependency[Principal]
) -> None:
    require(principal, Role.ADMIN, organization_id)
    async with engine.begin() as connection:
        await webhooks.remove(connection, organization_id)


@put("/fair-shares/{team_id:uuid}", opt=needs(Role.ADMIN, Level.ORGANIZATION))
async def put_fair_share(
    team_id: FromPath[UUID],
    data: JSONBody[FairShareSetting],
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
) -> FairShareSetting:
    async with engine.begin() as connection:
        require(principal, Role.ADMIN, (await teams.get(connection, team_id)).organization_id)
        await fair_shares.put_team(connection, team_id, priority=data.priority, weight=data.weight)
    return data


@put("/capacities", opt=needs(Role.ADMIN, Level.INSTALLATION))
async def put_capacity(data: JSONBody[CapacitySetting], engine: NamedDependency[AsyncEngine]) -> CapacitySetting:
    async with engine.begin() as connection:
        await fair_shares.put_backend(connection, data.backend, data.max_in_flight)
    return data


async def _require_above(connection: AsyncConnection, principal: Principal, level: Owner, owner_id: UUID) -> None:
    """403 for who does not administer what the owner lies in. Raises NotFound."""
    if principal.actor.kind is ActorKind.KEY and level is Owner.KEY:
        raise permission_denied("A key changes no limits of keys: it could lift its own, or its children's.")
    place = await store.place_of(connection, level, owner_id)
    match level:
        case Owner.ORGANIZATION:
            require(principal, Role.ADMIN, None)
        case Owner.TEAM:
            require(principal, Role.ADMIN, place.organization_id)
        case _:
            require(principal, Role.ADMIN, place.organization_id, place.team_id)


def checked_webhook_url(text: str, refusal: Refusal) -> str:
    """Raises ApiError for what is no plain http address, or one of the house that is not opened to webhooks."""
    try:
        normal_base_url(text)
    except ValueError as error:
        raise invalid_request(f"url {error}.", param="url") from None
    if reason := refusal(urlsplit(text).hostname or ""):
        message = f"url is {reason}. An operator can open its network with DESCANT_WEBHOOK_NETWORKS."
        raise invalid_request(message, param="url")
    return text


ROUTES = (
    put_limit,
    list_limits,
    delete_limit,
    put_webhook,
    delete_webhook,
    put_fair_share,
    put_capacity,
)
