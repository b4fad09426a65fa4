"""The tables of those who administer: people and their sessions; and of what they did.

Triggers of the migrations write `audit_log` for every change of an audited table, in the same transaction: no query can
forget it, not even one typed into psql. `store.session.acting_as` says who the actor is.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from descant_gateway.store.tables import metadata

__all__ = ["audit_log", "idempotent_replies", "memberships", "metadata", "people", "sessions"]

ROLES: Final = "role IN ('owner', 'admin', 'member', 'viewer')"


def row_id() -> Column:  # type: ignore[type-arg]
    return Column("id", Uuid, primary_key=True, server_default=func.gen_random_uuid())


def created_at() -> Column:  # type: ignore[type-arg]
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


people = Table(
    "people",
    metadata,
    row_id(),
    Column("email", Text, nullable=False, unique=True, comment="lower case"),
    Column("name", Text, nullable=False),
    Column("password_hash", Text, comment="Argon2id; null: no password"),
    Column("oidc_issuer", Text),
    Column("oidc_subject", Text, comment="bound at the first sign-in"),
    Column("disabled_at", DateTime(timezone=True)),
    created_at(),
    UniqueConstraint("oidc_issuer", "oidc_subject"),
    CheckConstraint("email = lower(email)", name="email"),
    CheckConstraint("(oidc_issuer IS NULL) = (oidc_subject IS NULL)", name="oidc"),
)

memberships = Table(
    "memberships",
    metadata,
    row_id(),
    Column("person_id", ForeignKey("people.id", ondelete="CASCADE"), nullable=False),
    Column("organization_id", ForeignKey("organizations.id"), comment="null: the whole installation"),
    Column("team_id", ForeignKey("teams.id"), comment="null: the whole organization"),
    Column("role", Text, nullable=False),
    created_at(),
    UniqueConstraint("person_id", "organization_id", "team_id", postgresql_nulls_not_distinct=True),
    CheckConstraint(ROLES, name="role"),
    CheckConstraint("team_id IS NULL OR organization_id IS NOT NULL", name="level"),
)

sessions = Table(
    "sessions",
    metadata,
    row_id(),
    Column("person_id", ForeignKey("people.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("token_hash", LargeBinary, nullable=False, unique=True, comment="SHA-256 of a random token of 256 bits"),
    Column("address", Text, comment="where the person signed in from"),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    created_at(),
)

idempotent_replies = Table(
    "idempotent_replies",
    metadata,
    Column("actor", Text, primary_key=True),
    Column("idempotency_key", Text, primary_key=True),
    Column("request_hash", LargeBinary, nullable=False),
    Column("status", SmallInteger, comment="null: under way"),
    Column("sealed_body", LargeBinary, comment="may hold a new key's text, so it is encrypted"),
    created_at(),
    Index("idempotent_replies_created_at_idx", "created_at"),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("actor_kind", Text, nullable=False, comment="admin_key, key, person, or database: by hand"),
    Column("actor_id", Text),
    Column("actor_name", Text, nullable=False),
    Column("address", Text),
    Column("request", Text, comment="method and path"),
    Column("request_id", Text),
    Column("action", Text, nullable=False, comment="insert, update or delete"),
    Column("kind", Text, nullable=False, comment="the table"),
    Column("subject", Text, comment="which row"),
    Column("organization_id", Uuid),
    Column("team_id", Uuid),
    Column("changed", ARRAY(Text), comment="the columns that an update changed"),
    Column("before", JSONB(none_as_null=True)),
    Column("after", JSONB(none_as_null=True)),
    Index("audit_log_organization_id_id_idx", "organization_id", "id"),
    comment="append-only: a trigger refuses whatever else; secrets are redacted",
)
