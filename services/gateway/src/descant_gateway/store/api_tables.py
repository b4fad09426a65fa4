"""What clients leave with the gateway: stored responses, files, batches. All of it belongs to one team, and ends."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from descant_gateway.store.prompt_tables import metadata

__all__ = ["batch_lines", "batches", "file_chunks", "files", "metadata", "responses"]


def _team_id() -> Column:  # type: ignore[type-arg]
    return Column("team_id", ForeignKey("teams.id", ondelete="CASCADE"), nullable=False)


def _time(name: str) -> Column:  # type: ignore[type-arg]
    return Column(name, DateTime(timezone=True))


def _created_at() -> Column:  # type: ignore[type-arg]
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


def _expires_at() -> Column:  # type: ignore[type-arg]
    return Column("expires_at", DateTime(timezone=True), nullable=False, index=True)


def _token_counts() -> list[Column]:  # type: ignore[type-arg]
    names = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    return [Column(name, BigInteger, nullable=False, server_default="0") for name in names]


responses = Table(
    "responses",
    metadata,
    Column("id", Text, primary_key=True),
    _team_id(),
    Column("previous_id", Text, comment="the response that this one goes on from"),
    Column("input", LargeBinary, nullable=False, comment="JSON: its own input items"),
    Column("body", LargeBinary, nullable=False, comment="JSON: the response"),
    Column("lease_until", DateTime(timezone=True), comment="while it is being made; null: it is done"),
    _created_at(),
    _expires_at(),
    Index(None, "team_id"),
)

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    _team_id(),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    _created_at(),
    _expires_at(),
    Index(None, "team_id", "created_at"),
)

file_chunks = Table(
    "file_chunks",
    metadata,
    Column("file_id", ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Text, primary_key=True),
    _team_id(),
    Column("key_public_id", Text, nullable=False, comment="whose limits hold and who is charged"),
    Column("endpoint", Text, nullable=False),
    Column("input_file_id", Text, nullable=False),
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    Column(
        "status",
        Text,
        CheckConstraint(
            "status IN ('validating', 'failed', 'in_progress', 'completed', 'expired', 'cancelling', 'cancelled')",
            name="status",
        ),
        nullable=False,
        server_default="validating",
    ),
    Column("completion_window", Text, nullable=False),
    Column("errors", JSONB),
    Column("labels", JSONB, comment="the client's metadata"),
    Column("num_lines", Integer, nullable=False, server_default="0"),
    Column("num_completed", Integer, nullable=False, server_default="0", comment="once it has ended"),
    Column("num_failed", Integer, nullable=False, server_default="0", comment="once it has ended"),
    *_token_counts(),
    Column("next_at", DateTime(timezone=True), nullable=False, server_default=func.now(), comment="whose turn it is"),
    _created_at(),
    _expires_at(),
    *(_time(f"{name}_at") for name in ("in_progress", "completed", "failed", "expired", "cancelling", "cancelled")),
    Index(None, "team_id", "created_at"),
    Index(
        "batches_next_at_idx",
        "next_at",
        postgresql_where=text("status IN ('validating', 'in_progress', 'cancelling')"),
    ),
)

batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch_id", ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("custom_id", Text, nullable=False),
    Column("body", LargeBinary, nullable=False, comment="JSON: the request"),
    Column("attempt", Integer, nullable=False, server_default="0", comment="only the latest may answer"),
    Column("num_failures", Integer, nullable=False, server_default="0"),
    Column("owner", Uuid, comment="the gateway process that runs it"),
    Column(
        "free_at",
        DateTime(timezone=True),
        server_default=func.now(),
        comment="from when on it may be claimed: the lease's end, or when to try again; null: answered",
    ),
    Column("result", LargeBinary, comment="JSON: its line of the output or error file"),
    Column("is_failed", Boolean),
    *_token_counts(),
    Index("batch_lines_open_idx", "batch_id", "free_at", postgresql_where=text("free_at IS NOT NULL")),
)
