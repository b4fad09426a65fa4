"""What goes wrong with one batch or line, in the database or on the way there, is no other's trouble."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import DataError
from tests.gateway.batches.test_batches import Stage, begin, ended, lines, staged, until

from descant_gateway.batches import postponed, runner
from descant_gateway.batches.line import LineReply
from descant_gateway.batches.window import Window
from descant_gateway.config import StoredConfig
from descant_gateway.sealing import TEAM_KEY_LENGTH, TeamCipher
from descant_gateway.store import batch_work
from descant_gateway.store.batch_work import NewLine
from descant_gateway.store.vault import Vault, Vaults


@pytest.fixture
async def stage(postgres_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(postgres_url, valkey_url, tmp_path, stored=StoredConfig(batch_lease_s=1.5)) as stage:
        yield stage


async def test_a_batch_that_can_not_be_begun_waits_and_is_failed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postponed, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(runner, "POLL_S", 0.05)
    await stage.sql("ALTER TABLE batch_lines ADD CHECK (custom_id <> 'odd')")
    client, other = await stage.client(), await stage.client()
    odd = await begin(client, lines(1, custom_id="odd"))
    assert (await ended(other, (await begin(other, lines(1))).id)).status == "completed"
    failed = await ended(client, odd.id)
    assert failed.status == "failed"
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert failed.errors.data[0].code == "server_error"


async def test_a_batch_that_can_not_be_ended_waits_until_it_can(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postponed, "FIRST_PAUSE_S", 1.0)
    client, other = await stage.client(), await stage.client()
    stage.upstream.delay_s = 0.3
    odd = await begin(client, lines(1))
    await stage.sql(f"ALTER TABLE batches ADD CONSTRAINT odd CHECK (id <> '{odd.id}' OR status <> 'completed')")
    await until(client, odd.id, lambda it: it.request_counts is not None and it.request_counts.completed == 1)
    assert (await ended(other, (await begin(other, lines(1))).id)).status == "completed"
    assert (await client.batches.retrieve(odd.id)).status == "in_progress"
    await stage.sql("ALTER TABLE batches DROP CONSTRAINT odd")
    assert (await ended(client, odd.id)).status == "completed"


async def test_a_dropped_line_is_free_when_its_lease_ends(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its gateway runs other lines all the time."""
    monkeypatch.setattr(Window, "room", lambda self, num_lines, now, **seen: 4 - num_lines)
    may_end, tries, real = asyncio.Event(), 0, runner.serve_line

    async def serve(line: Any, *rest: Any) -> LineReply:
        nonlocal tries
        if line.custom_id == "c1":
            await may_end.wait()
        elif (tries := tries + 1) == 1:
            raise RuntimeError("a bug")
        return await real(line, *rest)

    monkeypatch.setattr(runner, "serve_line", serve)
    client = await stage.client()
    batch = await begin(client, lines(2))
    await until(client, batch.id, lambda it: it.request_counts is not None and it.request_counts.completed == 1)
    attempts = await stage.sql("SELECT attempt, owner IS NULL AS is_answered FROM batch_lines ORDER BY position")
    assert [tuple(row) for row in attempts] == [(2, True), (1, False)]  # and the other's lease was renewed
    may_end.set()
    assert (await ended(client, batch.id)).status == "completed"


async def test_a_line_is_put_back_through_an_outage(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real, real_serve = 0, batch_work.put_back, runner.serve_line

    async def put_back(*given: Any, **more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionResetError("PostgreSQL is away")
        await real(*given, **more)

    async def serve(line: Any, *rest: Any) -> LineReply:
        refused = LineReply(status=503, body=b"{}", retry_after_s=0.1, record=None)
        return await real_serve(line, *rest) if calls else refused

    monkeypatch.setattr(batch_work, "put_back", put_back)
    monkeypatch.setattr(runner, "serve_line", serve)
    client = await stage.client()
    assert (await ended(client, (await begin(client, lines(1))).id)).status == "completed"
    assert calls == 2


async def test_claimed_lines_are_put_back_if_their_team_s_key_can_not_be_read(
    postgres_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_away, real_claim, real_of = False, batch_work.claim, Vaults.of

    async def claim(*given: Any) -> Any:
        nonlocal is_away
        claimed = await real_claim(*given)
        is_away = claimed is not None and claimed.lines[0].attempt == 1
        return claimed

    async def of(self: Vaults, team_id: UUID) -> Vault:
        if is_away:
            raise ConnectionResetError("PostgreSQL is away")
        return await real_of(self, team_id)

    async with staged(postgres_url, valkey_url, tmp_path, stored=StoredConfig(batch_lease_s=3600)) as stage:
        client = await stage.client()
        monkeypatch.setattr(batch_work, "claim", claim)
        monkeypatch.setattr(Vaults, "of", of)
        monkeypatch.setattr(runner, "_NO_KEY_WAIT_S", 0.1)
        batch = await begin(client, lines(1))
        assert (await ended(client, batch.id)).status == "completed"


async def test_what_postgresql_refuses_again_and_again_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is run again, when its lease ends, instead of being held for ever."""
    calls, real = 0, batch_work.answer

    async def answer(*given: Any, **more: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls <= runner._MAX_REFUSALS:
            raise DataError("INSERT", None, ValueError("odd"))
        return await real(*given, **more)

    monkeypatch.setattr(batch_work, "answer", answer)
    monkeypatch.setattr(runner, "_RETRY_S", 0.01)
    client = await stage.client()
    assert (await ended(client, (await begin(client, lines(1))).id)).status == "completed"
    assert len(stage.upstream.received) == 2


class _Written:
    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def execute(self, statement: Any, rows: Any = None) -> None:
        if rows is not None:
            self.sizes.append(len(rows))


async def test_a_long_file_is_begun_by_pieces() -> None:
    written: Any = _Written()
    vault = Vault(TeamCipher(uuid4(), bytes(TEAM_KEY_LENGTH)), seals=True)
    await batch_work.begin(written, vault, "b", [NewLine(n, str(n), b"{}") for n in range(1200)])
    assert written.sizes == [500, 500, 200]
