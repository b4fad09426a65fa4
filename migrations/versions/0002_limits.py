"""Limits of every kind at every level, prices, webhooks for warnings, fair shares, and what a charge cost."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

CATALOGUE_TABLES = ("limits", "prices", "webhooks")


def upgrade() -> None:
    create_limits()
    create_prices()
    create_webhooks()
    op.add_column("teams", sa.Column("priority", sa.SmallInteger, nullable=False, server_default="0"))
    op.add_column("teams", sa.Column("weight", sa.SmallInteger, nullable=False, server_default="1"))
    op.create_check_constraint("teams_weight_check", "teams", "weight > 0")
    op.add_column("backends", sa.Column("max_in_flight", sa.Integer, comment="null: no bound, so nothing queues"))
    op.create_check_constraint("backends_max_in_flight_check", "backends", "max_in_flight > 0")
    op.add_column("usage_ledger", sa.Column("cost_microdollars", sa.BigInteger, nullable=False, server_default="0"))
    for table in CATALOGUE_TABLES:
        op.execute(f"""
            CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION descant_catalogue_changed()
        """)


def downgrade() -> None:
    op.drop_column("usage_ledger", "cost_microdollars")
    op.drop_column("backends", "max_in_flight")
    op.drop_column("teams", "weight")
    op.drop_column("teams", "priority")
    for table in reversed(CATALOGUE_TABLES):
        op.drop_table(table)


def create_limits() -> None:
    op.create_table(
        "limits",
        sa.Column("id", sa.Uuid, nullable=False, server_default=sa.func.gen_random_uuid()),
        sa.Column("level", sa.Text, nullable=False, comment="organization, team, project or key"),
        sa.Column("owner_id", sa.Uuid, nullable=False, comment="of that level"),
        sa.Column("kind", sa.Text, nullable=False, comment="see limits.LimitKind"),
        sa.Column("model", sa.Text, comment="a model with its adapters, or one adapter; null: all together"),
        sa.Column("capacity", sa.BigInteger, nullable=False, comment="requests, tokens or micro-dollars"),
        sa.Column("is_shadow", sa.Boolean, nullable=False, server_default=sa.false(), comment="counts, never refuses"),
        sa.Column("warn_at", ARRAY(sa.SmallInteger), nullable=False, server_default="{}", comment="percent used"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("id", name="limits_pkey"),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="limits_model_fkey", ondelete="CASCADE"),
        sa.UniqueConstraint(
            "owner_id", "kind", "model", name="limits_owner_id_kind_model_key", postgresql_nulls_not_distinct=True
        ),
        sa.CheckConstraint("capacity >= 0", name="limits_capacity_check"),
    )
    op.create_index("limits_model_idx", "limits", ["model"])


def create_prices() -> None:
    columns = ("input", "cached", "output")
    op.create_table(
        "prices",
        sa.Column("model", sa.Text, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in columns),
        sa.PrimaryKeyConstraint("model", name="prices_pkey"),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="prices_model_fkey", ondelete="CASCADE"),
        *(sa.CheckConstraint(f"{name} >= 0", name=f"prices_{name}_check") for name in columns),
        comment="micro-dollars per million tokens",
    )


def create_webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("organization_id", sa.Uuid, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("sealed_secret", sa.LargeBinary, nullable=False, comment="encrypted, see sealing.py"),
        sa.PrimaryKeyConstraint("organization_id", name="webhooks_pkey"),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="webhooks_organization_id_fkey", ondelete="CASCADE"
        ),
        comment="told when a limit passes one of its warning thresholds",
    )
