"""Organizations, teams, keys, backends, models; the catalogue's version and its triggers; the ledger by day."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

CATALOGUE_TABLES = ("organizations", "teams", "keys", "key_secrets", "backends", "models", "model_backends")


def upgrade() -> None:
    create_organizations()
    create_keys()
    create_models()
    create_ledger()
    create_catalogue_version()
    op.execute("INSERT INTO organizations (name) VALUES ('default')")


def downgrade() -> None:
    for table in ("usage_ledger", *reversed(CATALOGUE_TABLES), "catalogue_version"):
        op.drop_table(table)
    op.execute("DROP FUNCTION descant_catalogue_changed()")


def create_organizations() -> None:
    op.create_table(
        "organizations",
        id_column(),
        sa.Column("name", sa.Text, nullable=False),
        created_at_column(),
        sa.PrimaryKeyConstraint("id", name="organizations_pkey"),
        sa.UniqueConstraint("name", name="organizations_name_key"),
    )
    op.create_table(
        "teams",
        id_column(),
        sa.Column("organization_id", sa.Uuid, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("allowed_models", ARRAY(sa.Text), comment="null allows every model"),
        created_at_column(),
        sa.PrimaryKeyConstraint("id", name="teams_pkey"),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name="teams_organization_id_fkey"),
        sa.UniqueConstraint("organization_id", "name", name="teams_organization_id_name_key"),
        *limit_checks("teams"),
    )


def create_keys() -> None:
    op.create_table(
        "keys",
        id_column(),
        sa.Column("public_id", sa.Text, nullable=False),
        sa.Column("team_id", sa.Uuid, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("allowed_models", ARRAY(sa.Text), comment="null inherits the team's list"),
        sa.Column(
            "ip_ranges", ARRAY(sa.Text), nullable=False, server_default="{}", comment="CIDR; empty allows every address"
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        created_at_column(),
        sa.PrimaryKeyConstraint("id", name="keys_pkey"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name="keys_team_id_fkey"),
        sa.UniqueConstraint("public_id", name="keys_public_id_key"),
        *limit_checks("keys"),
    )
    op.create_index("keys_team_id_idx", "keys", ["team_id"])
    op.create_table(
        "key_secrets",
        id_column(),
        sa.Column("key_id", sa.Uuid, nullable=False),
        sa.Column("secret_hmac", sa.LargeBinary, nullable=False, comment="HMAC-SHA-256(pepper, secret)"),
        sa.Column("not_after", sa.DateTime(timezone=True), comment="null: valid as long as the key"),
        created_at_column(),
        sa.PrimaryKeyConstraint("id", name="key_secrets_pkey"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="key_secrets_key_id_fkey", ondelete="CASCADE"),
        sa.UniqueConstraint("secret_hmac", name="key_secrets_secret_hmac_key"),
    )
    op.create_index("key_secrets_key_id_idx", "key_secrets", ["key_id"])


def create_models() -> None:
    op.create_table(
        "backends",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("base_url", sa.Text, nullable=False),
        sa.Column("sealed_api_key", sa.LargeBinary, comment="encrypted, see sealing.py"),
        created_at_column(),
        sa.PrimaryKeyConstraint("name", name="backends_pkey"),
    )
    op.create_table(
        "models",
        sa.Column("name", sa.Text, nullable=False, comment="what clients say"),
        sa.Column("upstream_name", sa.Text, comment="what the backends call it; null for an alias"),
        sa.Column("parent", sa.Text, comment="the base model, if this is an adapter"),
        sa.Column("alias_of", sa.Text),
        sa.Column("max_output_tokens", sa.Integer),
        created_at_column(),
        sa.PrimaryKeyConstraint("name", name="models_pkey"),
        sa.ForeignKeyConstraint(["parent"], ["models.name"], name="models_parent_fkey"),
        sa.ForeignKeyConstraint(["alias_of"], ["models.name"], name="models_alias_of_fkey"),
        sa.CheckConstraint("max_output_tokens > 0", name="models_max_output_tokens_check"),
        sa.CheckConstraint(
            "(alias_of IS NULL AND upstream_name IS NOT NULL AND max_output_tokens IS NOT NULL)"
            " OR (alias_of IS NOT NULL AND upstream_name IS NULL AND parent IS NULL AND max_output_tokens IS NULL)",
            name="models_alias_check",
        ),
    )
    op.create_index("models_parent_idx", "models", ["parent"])
    op.create_index("models_alias_of_idx", "models", ["alias_of"])
    op.create_table(
        "model_backends",
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("position", sa.SmallInteger, nullable=False),
        sa.PrimaryKeyConstraint("model", "backend", name="model_backends_pkey"),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="model_backends_model_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["backend"], ["backends.name"], name="model_backends_backend_fkey"),
    )
    op.create_index("model_backends_backend_idx", "model_backends", ["backend"])


def create_ledger() -> None:
    op.create_table(
        "usage_ledger",
        sa.Column("charge_id", sa.Uuid, nullable=False),
        sa.Column("day", sa.Date, nullable=False, comment="of created_at in UTC"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("organization_id", sa.Uuid, nullable=False),
        sa.Column("team_id", sa.Uuid, nullable=False),
        sa.Column("key_id", sa.Uuid, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("parent", sa.Text),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("ttft_ms", sa.BigInteger),
        sa.Column("duration_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("charge_id", "day", name="usage_ledger_pkey"),
        sa.CheckConstraint("day = (created_at AT TIME ZONE 'UTC')::date", name="usage_ledger_day_check"),
        comment="append-only; no foreign keys: a charge outlives what it names",
        postgresql_partition_by="RANGE (day)",
    )
    # Takes what no partition of its day takes, so that an insert never fails for the date's sake.
    op.execute("CREATE TABLE usage_ledger_default PARTITION OF usage_ledger DEFAULT")


def create_catalogue_version() -> None:
    op.create_table(
        "catalogue_version",
        sa.Column("only_row", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("only_row", name="catalogue_version_pkey"),
        sa.CheckConstraint("only_row", name="catalogue_version_only_row_check"),
    )
    op.execute("INSERT INTO catalogue_version (version) VALUES (1)")
    # The row lock makes changes follow one another, so versions are in the order of the commits.
    op.execute("""
        CREATE FUNCTION descant_catalogue_changed() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            UPDATE catalogue_version SET version = version + 1;
            NOTIFY descant_catalogue;
            RETURN NULL;
        END $$
    """)
    for table in CATALOGUE_TABLES:
        op.execute(f"""
            CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION descant_catalogue_changed()
        """)


def id_column() -> sa.Column:  # type: ignore[type-arg]
    return sa.Column("id", sa.Uuid, nullable=False, server_default=sa.func.gen_random_uuid())


def created_at_column() -> sa.Column:  # type: ignore[type-arg]
    return sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())


def limit_checks(table: str) -> list[sa.CheckConstraint]:
    columns = ("requests_per_minute", "tokens_per_minute")
    return [sa.CheckConstraint(f"{column} > 0", name=f"{table}_{column}_check") for column in columns]
