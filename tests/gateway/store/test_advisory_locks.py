"""Who waits for whom in the database is decided on purpose, not by two equal numbers."""

import re
from datetime import date
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.store import advisory_locks, ledger, prompts, rollups

ENV = Path(__file__).parents[3] / "migrations" / "env.py"


def test_every_lock_has_a_number_of_its_own() -> None:
    numbers = [number for name, number in vars(advisory_locks).items() if name.isupper()]
    assert len(set(numbers)) == len(numbers) >= 4


def test_the_migrations_lock_by_the_number_that_is_listed() -> None:
    (literal,) = re.findall(r"^MIGRATION_LOCK = (\w+)$", ENV.read_text(), re.MULTILINE)
    assert int(literal, 0) == advisory_locks.MIGRATION


async def test_whoever_makes_partitions_keeps_nobody_from_other_upkeep(engine: AsyncEngine) -> None:
    async with engine.begin() as making, engine.begin() as beside:
        await ledger.ensure_partitions(making, date(2026, 11, 21), days=1)
        assert await prompts.drop_old(beside) == 0
        assert await rollups.become_the_one(beside)
