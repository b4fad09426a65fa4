"""What the gateway opens to keep its books, as one: it writes, and tells in the metrics whether usage is safe."""

import os
from pathlib import Path
from uuid import uuid4

from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.gateway_under_test import config_for_tests, database

from descant_gateway.catalogue.snapshot import Catalogue
from descant_gateway.config import LedgerConfig
from descant_gateway.ledger.books import open_books, show_books

from .test_journal import charge, encode_line, opened


async def test_charges_of_a_killed_gateway_reach_the_ledger_and_the_metrics_say_so(
    engine: AsyncEngine, postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    dead = opened(tmp_path)
    begun, ended = charge(uuid4().int), charge(uuid4().int, completion_tokens=5)
    dead.begin(begun.charge_id, encode_line(begun))
    dead.end(ended.charge_id, encode_line(ended))
    dead.close(is_all_stored=False)
    parts = {"database": database(postgres_url), "ledger": LedgerConfig(spool_dir=tmp_path)}
    config = config_for_tests(valkey_url, **parts)
    registry = CollectorRegistry()
    async with open_books(config, engine, lambda: Catalogue(version=1)) as books:
        show_books(books, registry)
        books.ledger.append(charge(uuid4().int))
        await books.ledger.flush()
        page = generate_latest(registry).decode()
    for line in (
        "descant_gateway_ledger_pending 0.0",
        "descant_gateway_ledger_journalling 1.0",
        "descant_gateway_ledger_recovered 2.0",
        "descant_gateway_ledger_lost 0.0",
        'descant_gateway_limit_drift{counted="tokens"} 0.0',
        'descant_gateway_limit_drift{counted="microdollars"} 0.0',
    ):
        assert line in page
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT completion_tokens FROM usage_ledger ORDER BY 1"))
        assert list(rows.scalars()) == [0, 0, 5]
    assert os.listdir(tmp_path) == []
