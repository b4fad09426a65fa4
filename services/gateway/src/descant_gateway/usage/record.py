"""The usage ledger: one row a request, append-only, written in batches off the request path."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import msgspec
from msgspec import Struct


class Outcome(StrEnum):
    COMPLETED = "completed"
    CLIENT_LEFT = "client_left"
    """The client went away; charged for what was generated until then."""
    UPSTREAM_FAILED = "upstream_failed"
    REFUSED = "refused"
    """The backend answered with a 4xx: nothing was generated."""
    INTERRUPTED = "interrupted"
    """The gateway died while it served it: what it came to is not known, and nothing is charged."""


class UsageRecord(Struct, frozen=True, kw_only=True):
    """`charge_id` is unique: writing a record twice is writing it once."""

    charge_id: UUID
    created_at: datetime
    """When it was admitted: the moment whose price holds and whose budgets it counts in."""
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
    price_version: int | None = None
    """Which version of the price list that was; None: it had no price."""
    project_id: UUID | None = None
    alias_of: str | None = None
    """The model that `model` stood for, where it is an alias."""
    tags: Mapping[str, str] | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(UsageRecord)


def encode_line(record: UsageRecord) -> bytes:
    """One line of JSON, without its newline: so it lies in the journal and the spool, and so PostgreSQL gets it."""
    return _encoder.encode(record)


def decode_line(line: bytes) -> UsageRecord:
    """Raises msgspec.DecodeError."""
    return _decoder.decode(line)
