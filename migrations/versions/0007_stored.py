"""What clients leave with the gateway: stored responses, files, batches and their lines."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None

STATUSES = ("validating", "failed", "in_progress", "completed", "expired", "cancelling", "cancelled")
TIMES = ("in_progress", "completed", "failed", "expired", "cancelling", "cancelled")


def upgrade() -> None:
    create_responses()
    create_files()
    create_batches()
    create_batch_lines()


def downgrade() -> None:
    for table in ("batch_lines", "batches", "file_chunks", "files", "responses"):
        op.drop_table(table)


def team_id() -> sa.Column[Any]:
    return sa.Column("team_id", sa.Uuid, sa.ForeignKey("teams.id", ondelete="CASCADE"), nullable=False)


def moment(name: str, *, default: bool = False, required: bool = True) -> sa.Column[Any]:
    default_value = sa.func.now() if default else None
    return sa.Column(name, sa.DateTime(timezone=True), nullable=not required, server_default=default_value)


def create_responses() -> None:
    op.create_table(
        "responses",
        sa.Column("id", sa.Text, primary_key=True),
        team_id(),
        sa.Column("previous_id", sa.Text, comment="the response that this one goes on from"),
        sa.Column("input", sa.LargeBinary, nullable=False, comment="JSON: its own input items"),
        sa.Column("body", sa.LargeBinary, nullable=False, comment="JSON: the response"),
        moment("created_at", default=True),
        moment("expires_at"),
    )
    op.create_index("responses_team_id_idx", "responses", ["team_id"])
    op.create_index("responses_expires_at_idx", "responses", ["expires_at"])


def create_files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Text, primary_key=True),
        team_id(),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        moment("created_at", default=True),
        moment("expires_at"),
    )
    op.create_index("files_team_id_created_at_idx", "files", ["team_id", "created_at"])
    op.create_index("files_expires_at_idx", "files", ["expires_at"])
    op.create_table(
        "file_chunks",
        sa.Column("file_id", sa.Text, sa.ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )


def create_batches() -> None:
    allowed = ", ".join(f"'{status}'" for status in STATUSES)
    op.create_table(
        "batches",
        sa.Column("id", sa.Text, primary_key=True),
        team_id(),
        sa.Column("key_public_id", sa.Text, nullable=False, comment="whose limits hold and who is charged"),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("input_file_id", sa.Text, nullable=False),
        sa.Column("output_file_id", sa.Text),
        sa.Column("error_file_id", sa.Text),
        sa.Column("status", sa.Text, nullable=False, server_default="validating"),
        sa.Column("completion_window", sa.Text, nullable=False),
        sa.Column("errors", JSONB),
        sa.Column("labels", JSONB, comment="the client's metadata"),
        sa.Column("num_lines", sa.Integer, nullable=False, server_default="0"),
        sa.Column("num_completed", sa.Integer, nullable=False, server_default="0", comment="once it has ended"),
        sa.Column("num_failed", sa.Integer, nullable=False, server_default="0", comment="once it has ended"),
        sa.Column(
            "next_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.now(),
            comment="whose turn it is",
        ),
        moment("created_at", default=True),
        moment("expires_at"),
        *(moment(f"{name}_at", required=False) for name in TIMES),
        sa.CheckConstraint(f"status IN ({allowed})", name="batches_status_check"),
    )
    op.create_index("batches_team_id_created_at_idx", "batches", ["team_id", "created_at"])
    op.create_index("batches_expires_at_idx", "batches", ["expires_at"])
    working = sa.text("status IN ('validating', 'in_progress', 'cancelling')")
    op.create_index("batches_next_at_idx", "batches", ["next_at"], postgresql_where=working)


def create_batch_lines() -> None:
    op.create_table(
        "batch_lines",
        sa.Column("batch_id", sa.Text, sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("custom_id", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False, comment="JSON: the request"),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0", comment="only the latest may answer"),
        sa.Column("num_failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("owner", sa.Uuid, comment="the gateway process that runs it"),
        sa.Column(
            "free_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.now(),
            comment="from when on it may be claimed: the lease's end, or when to try again; null: answered",
        ),
        sa.Column("result", sa.LargeBinary, comment="JSON: its line of the output or error file"),
        sa.Column("is_failed", sa.Boolean),
    )
    is_open = sa.text("free_at IS NOT NULL")
    op.create_index("batch_lines_open_idx", "batch_lines", ["batch_id", "free_at"], postgresql_where=is_open)
