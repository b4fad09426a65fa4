"""What a batch's requests have come to: of each line while it runs, of the batch once it has ended."""

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | None = None
depends_on: str | None = None

TABLES = ("batches", "batch_lines")
COUNTS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


def upgrade() -> None:
    for table in TABLES:
        for name in COUNTS:
            op.add_column(table, sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    for table in TABLES:
        for name in COUNTS:
            op.drop_column(table, name)
