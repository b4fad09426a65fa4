"""What the gateway knows of the organization, as one immutable snapshot: the request path reads this and no database.

`store.catalogue.load` makes a snapshot from PostgreSQL; `CatalogueFeed` swaps it when something changed.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Final
from uuid import UUID

from msgspec import Struct, field

from descant_gateway.catalogue.routing_policy import NO_POLICY, RoutingPolicy


class RateLimits(Struct, frozen=True):
    """None means unlimited at this level; every level on the path applies."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class LimitRule(Struct, frozen=True, kw_only=True):
    """One limit of an organization, team, project or key."""

    kind: str
    """A `limits.limit.LimitKind`: which of the things that are counted, over which time."""
    capacity: int
    """Requests, tokens or micro-dollars."""
    model: str | None = None
    """Only what goes to this adapter, or to this model and its adapters; None: everything together."""
    is_shadow: bool = False
    """Counts and reports, never refuses."""
    warn_at: tuple[int, ...] = ()
    """Percent used, rising."""


class Price(Struct, frozen=True):
    """Micro-dollars per million tokens: one version of a model's price."""

    input: int
    cached: int
    """Of the input, what the prefix cache had."""
    output: int
    version: int | None = None
    """What a charge names; None for no price at all."""
    valid_from: float = 0.0
    """Seconds since 1970."""
    is_withdrawn: bool = False
    """From then on the model has no price of its own."""

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
        """Micro-dollars, rounded up. `cached_tokens` are part of `prompt_tokens`."""
        cached = min(cached_tokens, prompt_tokens)
        total = (prompt_tokens - cached) * self.input + cached * self.cached + completion_tokens * self.output
        return -(-total // 1_000_000)


FREE: Final = Price(0, 0, 0)


class Webhook(Struct, frozen=True):
    """Where an organization is told that a limit passed a warning threshold."""

    url: str
    secret: str
    """Signs what is sent."""


class AllowList(Struct, frozen=True):
    """What one level lets those below it use. Every level on a key's path must allow a model: a list only narrows."""

    models: frozenset[str] | None = None
    """None allows every model."""
    adapters: frozenset[str] | None = None
    """Where given, it decides about adapters in place of `models`; empty: base models only."""

    def allows(self, model: "ModelRoute") -> bool:
        names = self.models if self.adapters is None or model.parent is None else self.adapters
        return names is None or model.name in names


ALLOWS_ALL: Final = AllowList()


class Organization(Struct, frozen=True, kw_only=True):
    id: UUID
    name: str
    allowed: AllowList = ALLOWS_ALL


class Project(Struct, frozen=True, kw_only=True):
    """A part of a team, with a list of its own."""

    id: UUID
    team_id: UUID
    name: str
    allowed: AllowList = ALLOWS_ALL


class Team(Struct, frozen=True, kw_only=True):
    id: UUID
    organization_id: UUID
    name: str
    limits: RateLimits = RateLimits()
    allowed: AllowList = ALLOWS_ALL
    priority: int = 0
    """While backends are saturated, the higher number goes first."""
    weight: int = 1
    """Among teams of one priority, each gets tokens in proportion to its weight."""
    allows_external: bool = False
    """Its prompts may be sent to backends outside the house."""
    prompt_log_days: int | None = None
    """How long its prompts are kept; None: they are never logged."""
    response_cache_s: int | None = None
    """How long whole replies are used again; None: never."""


class EndingSecret(Struct, frozen=True):
    """A secret that was rotated: valid beside the new one until `not_after`."""

    secret_hmac: bytes
    not_after: datetime


class Key(Struct, frozen=True, kw_only=True):
    """A key without its secrets: HMAC-SHA-256(pepper, secret) of each."""

    id: UUID
    public_id: str
    team_id: UUID
    name: str
    secret_hmacs: tuple[bytes, ...]
    """Those that are valid as long as the key is."""
    ending_secrets: tuple[EndingSecret, ...] = ()
    project_id: UUID | None = None
    scopes: frozenset[str] | None = None
    """The endpoints that it opens, see `scopes`; None: all of /v1."""
    limits: RateLimits = RateLimits()
    allowed: AllowList = ALLOWS_ALL
    ip_ranges: tuple[IPv4Network | IPv6Network, ...] = ()
    """Empty allows every address."""
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class Protocol(StrEnum):
    """What a backend speaks."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    """The Messages API; the gateway translates."""


class Backend(Struct, frozen=True, kw_only=True):
    """One upstream."""

    name: str
    base_url: str
    """Up to and without /v1, no trailing slash. Comes from configuration only, never from a request."""
    api_key: str | None = None
    max_in_flight: int | None = None
    """Requests that it takes at once; more wait in the gateway. None: no bound."""
    protocol: Protocol = Protocol.OPENAI
    is_external: bool = False
    """Outside the house: gets the requests only of teams whose data may leave it."""


class ModelRoute(Struct, frozen=True, kw_only=True):
    """A model id that clients may say: where it is served and under which name there."""

    name: str
    upstream_name: str
    """What the backend calls it; differs from `name` for an alias."""
    target: str | None = None
    """The model that an alias stands for: its limits and its price hold."""
    parent: str | None = None
    """The base model, if this is an adapter."""
    backends: tuple[str, ...]
    weights: tuple[int, ...] = ()
    """Each backend's share, in the order of `backends`; empty: equal shares."""
    policy: RoutingPolicy = NO_POLICY
    max_output_tokens: int = 4096
    """Reserved against token limits when the request names no max_tokens."""


class Catalogue(Struct, frozen=True, kw_only=True):
    version: int
    organizations: Mapping[UUID, Organization] = field(default_factory=dict)
    projects: Mapping[UUID, Project] = field(default_factory=dict)
    teams: Mapping[UUID, Team] = field(default_factory=dict)
    keys: Mapping[str, Key] = field(default_factory=dict)
    """By public id."""
    models: Mapping[str, ModelRoute] = field(default_factory=dict)
    backends: Mapping[str, Backend] = field(default_factory=dict)
    limits: Mapping[UUID, tuple[LimitRule, ...]] = field(default_factory=dict)
    """By the id of the organization, team, project or key whose they are."""
    prices: Mapping[str, tuple[Price, ...]] = field(default_factory=dict)
    """By model name, the latest version first, those to come too; `price_of` knows which one holds."""
    webhooks: Mapping[UUID, Webhook] = field(default_factory=dict)
    """By organization."""

    def price_of(self, model: ModelRoute, now: float) -> Price:
        """At `now` (seconds since 1970): the model's own, else its base model's; without any it is free."""
        return self._own_price(model.target or model.name, now) or self._own_price(model.parent or "", now) or FREE

    def _own_price(self, name: str, now: float) -> Price | None:
        for price in self.prices.get(name, ()):
            if price.valid_from <= now:
                return None if price.is_withdrawn else price
        return None
