"""The tables of usage and cost beside the ledger itself: prices, sums by the hour, and how far those are."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Identity,
    Index,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from descant_gateway.store.identity_tables import metadata

__all__ = ["COUNTS", "DIMENSIONS", "metadata", "price_versions", "usage_hourly", "usage_retention", "usage_unrolled"]

DIMENSIONS: Final = (
    "organization_id", "team_id", "key_id", "project_id", "model", "parent", "alias_of", "outcome", "price_version",
    "tags",
)  # fmt: skip
COUNTS: Final = (
    "requests", "estimated_requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_microdollars"
)  # fmt: skip

price_versions = Table(
    "price_versions",
    metadata,
    Column("version", BigInteger, Identity(always=True), primary_key=True),
    Column("model", Text, nullable=False, comment="no foreign key: charges outlive models"),
    Column("valid_from", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("input", BigInteger),
    Column("cached", BigInteger),
    Column("output", BigInteger),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    UniqueConstraint("model", "valid_from"),
    CheckConstraint(
        "(input IS NULL AND cached IS NULL AND output IS NULL) OR (input >= 0 AND cached >= 0 AND output >= 0)",
        name="amounts",
    ),
    comment="micro-dollars per million tokens, append-only; without amounts: no price of its own from then on",
)

usage_hourly = Table(
    "usage_hourly",
    metadata,
    Column("hour", DateTime(timezone=True), nullable=False, comment="its beginning"),
    Column("organization_id", Uuid, nullable=False),
    Column("team_id", Uuid, nullable=False),
    Column("key_id", Uuid, nullable=False),
    Column("project_id", Uuid),
    Column("model", Text, nullable=False),
    Column("parent", Text),
    Column("alias_of", Text),
    Column("outcome", Text, nullable=False),
    Column("price_version", BigInteger),
    Column("tags", JSONB),
    *(Column(name, BigInteger, nullable=False) for name in COUNTS),
    Index("usage_hourly_hour_organization_id_idx", "hour", "organization_id"),
    comment="the ledger summed by the hour; several rows may have the same dimensions",
)

usage_unrolled = Table(
    "usage_unrolled",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("writer", Uuid, primary_key=True, comment="of the gateway process whose rows came"),
    comment="hours whose ledger rows are not all in usage_hourly: they are read from the ledger",
)

usage_retention = Table(
    "usage_retention",
    metadata,
    Column("only_row", Boolean, CheckConstraint("only_row", name="only_row"), primary_key=True, server_default=true()),
    Column("dropped_before", Date, nullable=False, comment="days before it are in usage_hourly only"),
)
