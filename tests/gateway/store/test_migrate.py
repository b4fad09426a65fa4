import asyncio
import os
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.config import Secret
from descant_gateway.store import migrate
from descant_gateway.store.api_tables import metadata
from descant_gateway.store.session import create_engine


def differences(connection: Connection) -> list[object]:
    def is_ours(name: str | None, kind: str, parents: object) -> bool:
        return not (kind == "table" and str(name).startswith("usage_ledger_"))

    context = MigrationContext.configure(connection, opts={"include_name": is_ours, "compare_server_default": False})
    return list(compare_metadata(context, metadata))


async def test_migrations_make_the_tables_that_the_metadata_describes(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_two_upgrades_at_once_make_one_schema(empty_postgres_url: str) -> None:
    environment = {**os.environ, "DESCANT_DATABASE_URL": empty_postgres_url}
    command = (sys.executable, "-m", "descant_gateway.store.migrate")
    started = [await asyncio.create_subprocess_exec(*command, env=environment) for _ in range(2)]
    async with asyncio.timeout(60):
        assert [await process.wait() for process in started] == [0, 0]
    engine = create_engine(Secret(empty_postgres_url))
    await migrate.check_schema(engine)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM organizations"))).scalar_one() == 1
    await engine.dispose()


async def test_check_schema_says_what_to_do(empty_postgres_url: str) -> None:
    engine = create_engine(Secret(empty_postgres_url))
    with pytest.raises(migrate.SchemaMismatch, match=r"no Descant schema yet: run `python -m .*migrate` first"):
        await migrate.check_schema(engine)
    await migrate.upgrade_database(Secret(empty_postgres_url))
    await migrate.check_schema(engine)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await migrate.check_schema(engine)  # newer, and it took nothing away
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE schema_compatibility SET oldest_gateway = '9999'"))
    with pytest.raises(migrate.SchemaMismatch, match="at schema revision 9999, this gateway needs"):
        await migrate.check_schema(engine)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(migrate.SchemaMismatch, match="at schema revision 0001, this gateway needs"):
        await migrate.check_schema(engine)
    await engine.dispose()


async def test_the_alembic_command_works_from_a_checkout(empty_postgres_url: str) -> None:
    environment = {**os.environ, "DESCANT_DATABASE_URL": empty_postgres_url}
    alembic = (sys.executable, "-m", "alembic", "-c", str(migrate.scripts_folder() / "alembic.ini"))
    for command in (("upgrade", "head"), ("check",), ("downgrade", "base"), ("upgrade", "head")):
        process = await asyncio.create_subprocess_exec(*alembic, *command, env=environment)
        async with asyncio.timeout(60):
            assert await process.wait() == 0, command
    engine = create_engine(Secret(empty_postgres_url))
    await migrate.check_schema(engine)
    await engine.dispose()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, "DESCANT_DATABASE_URL: missing"),
        ("mysql://x/y", "DESCANT_DATABASE_URL: must look like"),
        ("postgresql://postgres@127.0.0.1:1/x", "PostgreSQL cannot be reached"),
    ],
)
def test_the_command_says_what_is_wrong(
    url: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DESCANT_DATABASE_URL", raising=False)
    if url is not None:
        monkeypatch.setenv("DESCANT_DATABASE_URL", url)
    assert migrate.main() != 0
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed
