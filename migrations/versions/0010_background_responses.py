"""Responses that are made in the background: who makes one holds a lease on it."""

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column(
        "responses",
        sa.Column("lease_until", sa.DateTime(timezone=True), comment="while it is being made; null: it is done"),
    )


def downgrade() -> None:
    op.drop_column("responses", "lease_until")
