"""The usage ledger: one row a request, append-only, written in batches off the request path."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from msgspec import Struct


class Outcome(StrEnum):
    COMPLETED = "completed"
    CLIENT_LEFT = "client_left"
    """The client went away; charged for what was generated until then."""
    UPSTREAM_FAILED = "upstream_failed"
    REFUSED = "refused"
    """The backend answered with a 4xx: nothing was generated."""


class UsageRecord(Struct, frozen=True, kw_only=True):
    """`charge_id` is unique: writing a record twice is writing it once."""

    charge_id: UUID
    created_at: datetime
    organization_id: UUID
    team_id: UUID
    key_id: UUID
    request_id: str
    model: str
    """What the client asked for."""
    parent: str | None
    """The base model, where `model` is an adapter."""
    served_model: str | None = None
    """The model that answered in its place: of an alias, a canary or a fallback; None: the same."""
    backend: str
    endpoint: str
    stream: bool
    outcome: Outcome
    status: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    estimated: bool
    """True if the backend gave no usage, so the numbers are our own count."""
    ttft_ms: int | None
    duration_ms: int
    cost_microdollars: int = 0
    """At the price that held when it was admitted. Zero in records that were spooled before there were prices."""
