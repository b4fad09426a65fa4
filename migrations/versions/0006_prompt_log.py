"""Prompts that a team wants logged, replies that it wants cached; which gateways may use a schema newer than theirs."""

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column(
        "teams",
        sa.Column("prompt_log_days", sa.SmallInteger, comment="how long its prompts are kept; null: never logged"),
    )
    op.create_check_constraint("teams_prompt_log_days_check", "teams", "prompt_log_days > 0")
    op.add_column(
        "teams", sa.Column("response_cache_s", sa.Integer, comment="how long replies are reused; null: never cached")
    )
    op.create_check_constraint("teams_response_cache_s_check", "teams", "response_cache_s > 0")
    op.create_table(
        "prompt_log_keys",
        sa.Column("team_id", sa.Uuid, nullable=False),
        sa.Column("sealed_key", sa.LargeBinary, nullable=False, comment="encrypted, see sealing.py"),
        sa.PrimaryKeyConstraint("team_id", name="prompt_log_keys_pkey"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name="prompt_log_keys_team_id_fkey", ondelete="CASCADE"),
    )
    op.create_table(
        "prompt_log",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("team_id", sa.Uuid, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("key_id", sa.Uuid, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("sealed_request", sa.LargeBinary, nullable=False, comment="AES-256-GCM by the team's key"),
        sa.PrimaryKeyConstraint("id", name="prompt_log_pkey"),
        comment="only of teams that switched it on",
    )
    op.create_index("prompt_log_team_id_id_idx", "prompt_log", ["team_id", "id"])
    op.create_table(
        "schema_compatibility",
        sa.Column("only_row", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column(
            "oldest_gateway", sa.Text, nullable=False, comment="the revision of the oldest that may use this schema"
        ),
        sa.PrimaryKeyConstraint("only_row", name="schema_compatibility_pkey"),
        sa.CheckConstraint("only_row", name="schema_compatibility_only_row_check"),
        comment="a migration that takes something away raises it",
    )
    op.execute("INSERT INTO schema_compatibility (oldest_gateway) VALUES ('0006')")


def downgrade() -> None:
    for table in ("schema_compatibility", "prompt_log", "prompt_log_keys"):
        op.drop_table(table)
    op.drop_column("teams", "response_cache_s")
    op.drop_column("teams", "prompt_log_days")
