"""Prices with versions, who and what a charge was for, sums by the hour, and what makes the ledger append-only."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None

NEW_COLUMNS = ("project_id", "alias_of", "price_version", "tags")
COUNTS = (
    "requests", "estimated_requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_microdollars"
)  # fmt: skip


def upgrade() -> None:
    extend_ledger()
    create_price_versions()
    create_hourly_sums()


def downgrade() -> None:
    for table in ("usage_retention", "usage_unrolled", "usage_hourly", "price_versions"):
        op.drop_table(table)
    op.execute("DROP FUNCTION descant_price_has_begun()")
    op.execute("DROP TRIGGER append_only ON usage_ledger")
    op.drop_index("usage_ledger_created_at_idx", "usage_ledger")
    for column in reversed(NEW_COLUMNS):
        op.drop_column("usage_ledger", column)


def extend_ledger() -> None:
    op.add_column("usage_ledger", sa.Column("project_id", sa.Uuid))
    op.add_column("usage_ledger", sa.Column("alias_of", sa.Text, comment="the model that an alias stood for"))
    op.add_column("usage_ledger", sa.Column("price_version", sa.BigInteger, comment="null: it had no price"))
    op.add_column("usage_ledger", sa.Column("tags", JSONB, comment="names and values that the client gave"))
    op.create_index("usage_ledger_created_at_idx", "usage_ledger", ["created_at"], postgresql_using="brin")
    # On the parent alone: rows move from the default partition into their day's, and whole days are dropped.
    op.execute("""
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON usage_ledger
        FOR EACH STATEMENT EXECUTE FUNCTION descant_append_only()
    """)


def create_price_versions() -> None:
    op.create_table(
        "price_versions",
        sa.Column("version", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("model", sa.Text, nullable=False, comment="no foreign key: charges outlive models"),
        sa.Column("valid_from", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        *(sa.Column(name, sa.BigInteger) for name in ("input", "cached", "output")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("version", name="price_versions_pkey"),
        sa.UniqueConstraint("model", "valid_from", name="price_versions_model_valid_from_key"),
        sa.CheckConstraint(
            "(input IS NULL AND cached IS NULL AND output IS NULL) OR (input >= 0 AND cached >= 0 AND output >= 0)",
            name="price_versions_amounts_check",
        ),
        comment="micro-dollars per million tokens, append-only; without amounts: no price of its own from then on",
    )
    op.execute("""
        INSERT INTO price_versions (model, valid_from, input, cached, output)
        SELECT model, '1970-01-01Z', input, cached, output FROM prices ORDER BY model
    """)
    op.execute("""
        CREATE FUNCTION descant_price_has_begun() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'UPDATE' OR OLD.valid_from <= now() THEN
                RAISE EXCEPTION 'price_versions is append-only' USING ERRCODE = 'insufficient_privilege';
            END IF;
            RETURN OLD;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON price_versions
        FOR EACH ROW EXECUTE FUNCTION descant_price_has_begun()
    """)
    for event, rows in (("INSERT", "NEW TABLE AS new_rows"), ("DELETE", "OLD TABLE AS old_rows")):
        op.execute(f"""
            CREATE TRIGGER catalogue_{event.lower()} AFTER {event} ON price_versions REFERENCING {rows}
            FOR EACH STATEMENT EXECUTE FUNCTION descant_catalogue_rows_changed('prices', 'model')
        """)
    op.execute("""
        CREATE TRIGGER audited AFTER INSERT OR DELETE ON price_versions
        FOR EACH ROW EXECUTE FUNCTION descant_audit('model')
    """)


def create_hourly_sums() -> None:
    op.create_table(
        "usage_hourly",
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False, comment="its beginning"),
        *(sa.Column(name, sa.Uuid, nullable=False) for name in ("organization_id", "team_id", "key_id")),
        sa.Column("project_id", sa.Uuid),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("parent", sa.Text),
        sa.Column("alias_of", sa.Text),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("price_version", sa.BigInteger),
        sa.Column("tags", JSONB),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in COUNTS),
        comment="the ledger summed by the hour; several rows may have the same dimensions",
    )
    op.create_index("usage_hourly_hour_organization_id_idx", "usage_hourly", ["hour", "organization_id"])
    op.create_table(
        "usage_unrolled",
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("writer", sa.Uuid, nullable=False, comment="of the gateway process whose rows came"),
        sa.PrimaryKeyConstraint("hour", "writer", name="usage_unrolled_pkey"),
        comment="hours whose ledger rows are not all in usage_hourly: they are read from the ledger",
    )
    op.create_table(
        "usage_retention",
        sa.Column("only_row", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("dropped_before", sa.Date, nullable=False, comment="days before it are in usage_hourly only"),
        sa.PrimaryKeyConstraint("only_row", name="usage_retention_pkey"),
        sa.CheckConstraint("only_row", name="usage_retention_only_row_check"),
    )
    op.execute("INSERT INTO usage_retention (dropped_before) VALUES ('1970-01-01')")
    op.execute("""
        INSERT INTO usage_unrolled (hour, writer)
        SELECT DISTINCT date_trunc('hour', created_at, 'UTC'), '00000000-0000-0000-0000-000000000000'::uuid
        FROM usage_ledger
    """)
