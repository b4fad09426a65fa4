"""The tables, as SQLAlchemy metadata. The migrations make them; queries in this folder are written against them.

Whatever changes a table of the catalogue also raises `catalogue_version` and notifies CATALOGUE_CHANNEL in the same
transaction: triggers of the first migration see to it, so no query can forget, not even one typed into psql.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    false,
    func,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

CATALOGUE_CHANNEL: Final = "descant_catalogue"
_ROLES: Final = "role IN ('owner', 'admin', 'member', 'viewer')"

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)


def _id() -> Column:  # type: ignore[type-arg]
    return Column("id", Uuid, primary_key=True, server_default=func.gen_random_uuid())


def _is_from_file() -> Column:  # type: ignore[type-arg]
    return Column(
        "is_from_file", Boolean, nullable=False, server_default=false(), comment="kept equal to the catalogue file"
    )


def _created_at() -> Column:  # type: ignore[type-arg]
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


organizations = Table(
    "organizations",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("allowed_models", ARRAY(Text), comment="null allows every model"),
    Column("allowed_adapters", ARRAY(Text), comment="null: adapters are as the models are"),
    _created_at(),
)

teams = Table(
    "teams",
    metadata,
    _id(),
    Column("organization_id", ForeignKey("organizations.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("requests_per_minute", BigInteger, CheckConstraint("requests_per_minute > 0", name="requests_per_minute")),
    Column("tokens_per_minute", BigInteger, CheckConstraint("tokens_per_minute > 0", name="tokens_per_minute")),
    Column("allowed_models", ARRAY(Text), comment="null allows every model"),
    Column("allowed_adapters", ARRAY(Text), comment="null: adapters are as the models are"),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("weight", SmallInteger, CheckConstraint("weight > 0", name="weight"), nullable=False, server_default="1"),
    Column(
        "allows_external",
        Boolean,
        nullable=False,
        server_default=false(),
        comment="its prompts may be sent to backends outside the house",
    ),
    Column(
        "prompt_log_days",
        SmallInteger,
        CheckConstraint("prompt_log_days > 0", name="prompt_log_days"),
        comment="how long its prompts are kept; null: never logged",
    ),
    Column(
        "response_cache_s",
        Integer,
        CheckConstraint("response_cache_s > 0", name="response_cache_s"),
        comment="how long replies are reused; null: never cached",
    ),
    _created_at(),
    UniqueConstraint("organization_id", "name"),
)

projects = Table(
    "projects",
    metadata,
    _id(),
    Column("team_id", ForeignKey("teams.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("allowed_models", ARRAY(Text), comment="null inherits the team's list"),
    Column("allowed_adapters", ARRAY(Text), comment="null: adapters are as the models are"),
    _created_at(),
    UniqueConstraint("team_id", "name"),
)

service_accounts = Table(
    "service_accounts",
    metadata,
    _id(),
    Column("organization_id", ForeignKey("organizations.id"), nullable=False),
    Column("team_id", ForeignKey("teams.id"), comment="null: the whole organization"),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("disabled_at", DateTime(timezone=True)),
    _created_at(),
    UniqueConstraint("organization_id", "name"),
    CheckConstraint(_ROLES, name="role"),
)

keys = Table(
    "keys",
    metadata,
    _id(),
    Column("public_id", Text, nullable=False, unique=True),
    Column("team_id", ForeignKey("teams.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("requests_per_minute", BigInteger, CheckConstraint("requests_per_minute > 0", name="requests_per_minute")),
    Column("tokens_per_minute", BigInteger, CheckConstraint("tokens_per_minute > 0", name="tokens_per_minute")),
    Column("allowed_models", ARRAY(Text), comment="null inherits the team's list"),
    Column("ip_ranges", ARRAY(Text), nullable=False, server_default="{}", comment="CIDR; empty allows every address"),
    Column("expires_at", DateTime(timezone=True)),
    Column("revoked_at", DateTime(timezone=True)),
    Column("project_id", ForeignKey("projects.id"), index=True),
    Column("service_account_id", ForeignKey("service_accounts.id"), index=True),
    Column(
        "role",
        Text,
        CheckConstraint(_ROLES, name="role"),
        comment="what the key may administer; null: nothing",
    ),
    Column("scopes", ARRAY(Text), comment="null: every endpoint of /v1"),
    Column("allowed_adapters", ARRAY(Text), comment="null: as the models are"),
    Column("created_by", Text, comment="person:<id>, key:<id>, or null: the admin key"),
    _created_at(),
)

key_secrets = Table(
    "key_secrets",
    metadata,
    _id(),
    Column("key_id", ForeignKey("keys.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("secret_hmac", LargeBinary, nullable=False, unique=True, comment="HMAC-SHA-256(pepper, secret)"),
    Column("not_after", DateTime(timezone=True), comment="null: valid as long as the key"),
    _created_at(),
)

backends = Table(
    "backends",
    metadata,
    Column("name", Text, primary_key=True),
    Column("base_url", Text, nullable=False),
    Column("sealed_api_key", LargeBinary, comment="encrypted, see sealing.py"),
    Column(
        "max_in_flight",
        Integer,
        CheckConstraint("max_in_flight > 0", name="max_in_flight"),
        comment="null: no bound, so nothing queues",
    ),
    Column(
        "protocol",
        Text,
        CheckConstraint("protocol IN ('openai', 'anthropic')", name="protocol"),
        nullable=False,
        server_default="openai",
    ),
    Column("is_external", Boolean, nullable=False, server_default=false(), comment="outside the house"),
    Column("api_key_env", Text, comment="the environment variable that holds its key"),
    _is_from_file(),
    _created_at(),
)

models = Table(
    "models",
    metadata,
    Column("name", Text, primary_key=True, comment="what clients say"),
    Column("upstream_name", Text, comment="what the backends call it; null for an alias"),
    Column("parent", ForeignKey("models.name"), index=True, comment="the base model, if this is an adapter"),
    Column("alias_of", ForeignKey("models.name"), index=True),
    Column("max_output_tokens", Integer, CheckConstraint("max_output_tokens > 0", name="max_output_tokens")),
    Column("policy", JSONB, comment="see routing_policy.RoutingPolicy"),
    _is_from_file(),
    _created_at(),
    CheckConstraint(
        "(alias_of IS NULL AND upstream_name IS NOT NULL AND max_output_tokens IS NOT NULL)"
        " OR (alias_of IS NOT NULL AND upstream_name IS NULL AND parent IS NULL AND max_output_tokens IS NULL)",
        name="alias",
    ),
)

model_backends = Table(
    "model_backends",
    metadata,
    Column("model", ForeignKey("models.name", ondelete="CASCADE"), primary_key=True),
    Column("backend", ForeignKey("backends.name"), primary_key=True, index=True),
    Column("position", SmallInteger, nullable=False),
    Column("weight", SmallInteger, CheckConstraint("weight > 0", name="weight"), nullable=False, server_default="1"),
)

limits = Table(
    "limits",
    metadata,
    _id(),
    Column("level", Text, nullable=False, comment="organization, team, project or key"),
    Column("owner_id", Uuid, nullable=False, comment="of that level"),
    Column("kind", Text, nullable=False, comment="see limits.LimitKind"),
    Column(
        "model",
        ForeignKey("models.name", ondelete="CASCADE"),
        index=True,
        comment="a model with its adapters, or one adapter; null: all together",
    ),
    Column(
        "capacity",
        BigInteger,
        CheckConstraint("capacity >= 0", name="capacity"),
        nullable=False,
        comment="requests, tokens or micro-dollars",
    ),
    Column("is_shadow", Boolean, nullable=False, server_default=false(), comment="counts, never refuses"),
    Column("warn_at", ARRAY(SmallInteger), nullable=False, server_default="{}", comment="percent used"),
    _created_at(),
    UniqueConstraint("owner_id", "kind", "model", postgresql_nulls_not_distinct=True),
)

prices = Table(
    "prices",
    metadata,
    Column("model", ForeignKey("models.name", ondelete="CASCADE"), primary_key=True),
    Column("input", BigInteger, CheckConstraint("input >= 0", name="input"), nullable=False),
    Column("cached", BigInteger, CheckConstraint("cached >= 0", name="cached"), nullable=False),
    Column("output", BigInteger, CheckConstraint("output >= 0", name="output"), nullable=False),
    comment="micro-dollars per million tokens",
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("organization_id", ForeignKey("organizations.id", ondelete="CASCADE"), primary_key=True),
    Column("url", Text, nullable=False),
    Column("sealed_secret", LargeBinary, nullable=False, comment="encrypted, see sealing.py"),
    comment="told when a limit passes one of its warning thresholds",
)

catalogue_changes = Table(
    "catalogue_changes",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("ids", ARRAY(Text), comment="null: too many to tell, load everything"),
)

catalogue_version = Table(
    "catalogue_version",
    metadata,
    Column("only_row", Boolean, CheckConstraint("only_row", name="only_row"), primary_key=True, server_default=true()),
    Column("version", BigInteger, nullable=False),
)

usage_ledger = Table(
    "usage_ledger",
    metadata,
    Column("charge_id", Uuid, primary_key=True),
    Column("day", Date, primary_key=True, comment="of created_at in UTC"),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("organization_id", Uuid, nullable=False),
    Column("team_id", Uuid, nullable=False),
    Column("key_id", Uuid, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("parent", Text),
    Column("backend", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("ttft_ms", BigInteger),
    Column("duration_ms", BigInteger, nullable=False),
    Column("cost_microdollars", BigInteger, nullable=False, server_default="0"),
    Column("served_model", Text, comment="null: the model that was asked for"),
    Column("project_id", Uuid),
    Column("alias_of", Text, comment="the model that an alias stood for"),
    Column("price_version", BigInteger, comment="null: it had no price"),
    Column("tags", JSONB, comment="names and values that the client gave"),
    # The day follows from created_at, so that one charge id always meets the same primary key.
    CheckConstraint("day = (created_at AT TIME ZONE 'UTC')::date", name="day"),
    Index("usage_ledger_created_at_idx", "created_at", postgresql_using="brin"),
    comment="append-only; no foreign keys: a charge outlives what it names",
    postgresql_partition_by="RANGE (day)",
)
