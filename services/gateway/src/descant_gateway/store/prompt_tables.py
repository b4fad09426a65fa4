"""The tables of logged prompts, and of which gateways may use this schema."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    Table,
    Text,
    Uuid,
    true,
)

from descant_gateway.store.usage_tables import metadata as metadata

prompt_log_keys = Table(
    "prompt_log_keys",
    metadata,
    Column("team_id", ForeignKey("teams.id", ondelete="CASCADE"), primary_key=True),
    Column("sealed_key", LargeBinary, nullable=False, comment="encrypted, see sealing.py"),
)

prompt_log = Table(
    "prompt_log",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("team_id", Uuid, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("key_id", Uuid, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("sealed_request", LargeBinary, nullable=False, comment="AES-256-GCM by the team's key"),
    Index("prompt_log_team_id_id_idx", "team_id", "id"),
    comment="only of teams that switched it on",
)

schema_compatibility = Table(
    "schema_compatibility",
    metadata,
    Column("only_row", Boolean, CheckConstraint("only_row", name="only_row"), primary_key=True, server_default=true()),
    Column("oldest_gateway", Text, nullable=False, comment="the revision of the oldest that may use this schema"),
    comment="a migration that takes something away raises it",
)
