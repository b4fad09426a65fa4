"""Protocols and places of backends, weights, how a model is routed, which team's data may leave the house."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

MANAGED = ("backends", "models")


def upgrade() -> None:
    op.add_column(
        "teams",
        sa.Column(
            "allows_external",
            sa.Boolean,
            nullable=False,
            server_default=sa.false(),
            comment="its prompts may be sent to backends outside the house",
        ),
    )
    op.add_column("backends", sa.Column("protocol", sa.Text, nullable=False, server_default="openai"))
    op.create_check_constraint("backends_protocol_check", "backends", "protocol IN ('openai', 'anthropic')")
    op.add_column(
        "backends",
        sa.Column("is_external", sa.Boolean, nullable=False, server_default=sa.false(), comment="outside the house"),
    )
    op.add_column("backends", sa.Column("api_key_env", sa.Text, comment="the environment variable that holds its key"))
    op.add_column("models", sa.Column("policy", JSONB, comment="see routing_policy.RoutingPolicy"))
    for table in MANAGED:
        op.add_column(
            table,
            sa.Column(
                "is_from_file",
                sa.Boolean,
                nullable=False,
                server_default=sa.false(),
                comment="kept equal to the catalogue file",
            ),
        )
    op.add_column("model_backends", sa.Column("weight", sa.SmallInteger, nullable=False, server_default="1"))
    op.create_check_constraint("model_backends_weight_check", "model_backends", "weight > 0")
    op.add_column("usage_ledger", sa.Column("served_model", sa.Text, comment="null: the model that was asked for"))


def downgrade() -> None:
    op.drop_column("usage_ledger", "served_model")
    op.drop_column("model_backends", "weight")
    for table in MANAGED:
        op.drop_column(table, "is_from_file")
    op.drop_column("models", "policy")
    for column in ("api_key_env", "is_external", "protocol"):
        op.drop_column("backends", column)
    op.drop_column("teams", "allows_external")
