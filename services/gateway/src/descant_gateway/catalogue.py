"""What the gateway knows of the organization, as one immutable snapshot: the request path reads this and no database.

`store.catalogue.load` makes a snapshot from PostgreSQL; `CatalogueFeed` swaps it when something changed.
"""

from collections.abc import Mapping
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from uuid import UUID

from msgspec import Struct, field


class RateLimits(Struct, frozen=True):
    """None means unlimited at this level; every level on the path applies."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class Team(Struct, frozen=True, kw_only=True):
    id: UUID
    organization_id: UUID
    name: str
    limits: RateLimits = RateLimits()
    allowed_models: frozenset[str] | None = None
    """None allows every model."""


class Key(Struct, frozen=True, kw_only=True):
    """A key without its secret: `secret_hmacs` holds HMAC-SHA-256(pepper, secret), one for each valid secret."""

    id: UUID
    public_id: str
    team_id: UUID
    name: str
    secret_hmacs: tuple[bytes, ...]
    limits: RateLimits = RateLimits()
    allowed_models: frozenset[str] | None = None
    """None inherits the team's list; a list can only narrow it."""
    ip_ranges: tuple[IPv4Network | IPv6Network, ...] = ()
    """Empty allows every address."""
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class Backend(Struct, frozen=True, kw_only=True):
    """One upstream that speaks the OpenAI API."""

    name: str
    base_url: str
    """Up to and without /v1, no trailing slash. Comes from configuration only, never from a request."""
    api_key: str | None = None


class ModelRoute(Struct, frozen=True, kw_only=True):
    """A model id that clients may say: where it is served and under which name there."""

    name: str
    upstream_name: str
    """What the backend calls it; differs from `name` for an alias."""
    parent: str | None = None
    """The base model, if this is an adapter."""
    backends: tuple[str, ...]
    max_output_tokens: int = 4096
    """Reserved against token limits when the request names no max_tokens."""


class Catalogue(Struct, frozen=True, kw_only=True):
    version: int
    teams: Mapping[UUID, Team] = field(default_factory=dict)
    keys: Mapping[str, Key] = field(default_factory=dict)
    """By public id."""
    models: Mapping[str, ModelRoute] = field(default_factory=dict)
    backends: Mapping[str, Backend] = field(default_factory=dict)
