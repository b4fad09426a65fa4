"""Bring the database to the schema that this gateway needs, or refuse to start on another.

`python -m descant_gateway.store.migrate` upgrades the database of DESCANT_DATABASE_URL (or DESCANT_DATABASE_URL_FILE).
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.config import ConfigError, Secret, database_url
from descant_gateway.store.prompt_tables import schema_compatibility
from descant_gateway.store.session import create_engine, is_outage

COMMAND: Final = "python -m descant_gateway.store.migrate"


class SchemaMismatch(Exception):
    """The database is not at the revision that this gateway was written for."""


def upgrade(url: str) -> None:
    """To the newest revision; does nothing if it is there. Runs may overlap: an advisory lock orders them."""
    asyncio.run(upgrade_database(Secret(url)))


async def upgrade_database(url: Secret) -> None:
    """`upgrade` for a caller that has an event loop."""
    engine = create_engine(url, pool_size=1)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_upgrade_to_head)
            await connection.commit()
    finally:
        await engine.dispose()


async def check_schema(engine: AsyncEngine) -> None:
    """Raises SchemaMismatch with one line that says what to do.

    A newer schema is accepted while it has all that this gateway knows, so that replicas of two releases can serve side
    by side. The schema itself says so: a migration that takes something away raises `schema_compatibility`.
    """
    needed = needed_revision()
    async with engine.connect() as connection:
        found = await found_revision(connection)
        if found == needed or (found is not None and await _still_serves(connection, needed, found)):
            return
    if found is None:
        raise SchemaMismatch(f"The database has no Descant schema yet: run `{COMMAND}` first.")
    raise SchemaMismatch(
        f"The database is at schema revision {found}, this gateway needs {needed}: "
        f"run `{COMMAND}` of the newer of the two releases, and use that release's gateway."
    )


def needed_revision() -> str:
    """The revision that this gateway was written for."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


async def found_revision(connection: AsyncConnection) -> str | None:
    """The database's; None for one without a schema."""
    return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())


async def _still_serves(connection: AsyncConnection, needed: str, found: str) -> bool:
    """Revisions are numbered: their order is that of their names."""
    if found <= needed or not await connection.run_sync(lambda sync: inspect(sync).has_table("schema_compatibility")):
        return False
    oldest: str = (await connection.execute(select(schema_compatibility.c.oldest_gateway))).scalar_one()
    return oldest <= needed


def scripts_folder() -> Path:
    """The migrations, inside an installed wheel or in a source checkout."""
    installed = Path(__file__).parents[1] / "_migrations"
    return installed if installed.is_dir() else Path(__file__).parents[5] / "migrations"


def _upgrade_to_head(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts_folder()).replace("%", "%%"))
    return config


def main() -> int:
    try:
        upgrade(database_url(os.environ).reveal())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        if not is_outage(error):
            raise
        print(f"PostgreSQL cannot be reached: {error}", file=sys.stderr)
        return 1
    print("The database is up to date.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
