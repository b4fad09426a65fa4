"""How Alembic reaches the gateway's database: every upgrade is one transaction under an advisory lock.

The connection comes from `descant_gateway.store.migrate`; with the alembic command, DESCANT_DATABASE_URL says where.
"""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection, text

from descant_gateway.config import Secret
from descant_gateway.store.api_tables import metadata
from descant_gateway.store.session import create_engine

MIGRATION_LOCK = 0x6465_7363_616E_7401
"""Any number that nobody else locks in this database."""


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, include_name=is_ours)
    with context.begin_transaction():
        # Two replicas that start at once: the second waits here, then finds nothing left to do.
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        context.run_migrations()


def is_ours(name: str | None, kind: str, parents: object) -> bool:
    """Partitions of the ledger come and go by date; the metadata doesn't list them."""
    return not (kind == "table" and name is not None and name.startswith("usage_ledger_"))


async def run_from_command_line() -> None:
    engine = create_engine(Secret(os.environ["DESCANT_DATABASE_URL"]))
    async with engine.connect() as connection:
        await connection.run_sync(run)
    await engine.dispose()


given = context.config.attributes.get("connection")
if given is None:
    asyncio.run(run_from_command_line())
else:
    run(given)
