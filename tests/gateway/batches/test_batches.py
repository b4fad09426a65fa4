"""Files and batches: OpenAI's own client, a whole gateway on PostgreSQL and Valkey, a backend on a socket."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from openai.types import Batch
from tests.gateway.gateway_under_test import config_for_tests, database, serving
from tests.gateway.scripted_upstream import Script, ScriptedUpstream
from tests.gateway.upstream import running

from descant_gateway.app import open_app
from descant_gateway.config import CatalogueConfig, LedgerConfig, Secret, StoredConfig
from descant_gateway.store import batch_endings
from descant_gateway.store.session import create_engine

ADMIN = {"authorization": f"Bearer {'a' * 32}"}
CHAT = "/v1/chat/completions"
PATIENCE_S = 20.0


class Stage:
    """Some gateways on one database, one backend."""

    def __init__(self, urls: list[str], database_url: str, upstream: ScriptedUpstream) -> None:
        self.urls = urls
        self.database_url = database_url
        self.upstream = upstream
        self._clients: list[AsyncOpenAI] = []

    async def admin(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=f"{self.urls[0]}/admin/v1", headers=ADMIN, timeout=10) as client:
            reply = await client.request(method, path, json=body)
            return reply.raise_for_status().json()

    async def client(self, **team: Any) -> AsyncOpenAI:
        """Of a new team."""
        made = await self.admin("POST", "/teams", {"name": uuid4().hex} | team)
        issued = await self.admin("POST", "/keys", {"team_id": made["id"], "name": "k"})
        client = AsyncOpenAI(base_url=f"{self.urls[0]}/v1", api_key=issued["api_key"], max_retries=0, timeout=10)
        self._clients.append(client)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    if [model.id async for model in client.models.list()]:
                        return client
                except Exception:
                    await asyncio.sleep(0.02)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()

    async def ledger(self) -> list[asyncpg.Record]:
        return await self.sql("SELECT * FROM usage_ledger")

    async def sql(self, statement: str, *values: Any) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.database_url, timeout=10)
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()


@asynccontextmanager
async def staged(
    postgres_url: str, valkey_url: str, folder: Path, num_gateways: int = 1, **parts: Any
) -> AsyncIterator[Stage]:
    async with running(ScriptedUpstream()) as upstream:
        config = config_for_tests(
            valkey_url, database=database(postgres_url), catalogue=CatalogueConfig(poll_s=0.2), **parts
        )
        async with _serving_all(config, folder, num_gateways) as urls:
            stage = Stage(urls, postgres_url, upstream)
            await stage.admin("PUT", "/backends", {"name": "engine-0", "base_url": upstream.url})
            await stage.admin("PUT", "/models", {"name": "m", "backends": ["engine-0"]})
            yield stage
            await stage.close()


@asynccontextmanager
async def _serving_all(config: Any, folder: Path, count: int) -> AsyncIterator[list[str]]:
    if not count:
        yield []
        return
    own = replace(config, ledger=LedgerConfig(spool_dir=folder / str(count)))
    async with open_app(own) as app, serving(app) as url, _serving_all(config, folder, count - 1) as others:
        yield [url, *others]


@pytest.fixture
async def stage(postgres_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(postgres_url, valkey_url, tmp_path) as stage:
        yield stage


def lines(count: int, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
    return [{"custom_id": f"c{n}", "method": "POST", "url": CHAT, "body": body} | fields for n in range(count)]


async def upload(client: AsyncOpenAI, rows: list[dict[str, Any]]) -> str:
    content = "\n".join(json.dumps(row) for row in rows).encode()
    return (await client.files.create(file=("in.jsonl", content), purpose="batch")).id


async def begin(client: AsyncOpenAI, rows: list[dict[str, Any]], **fields: Any) -> Batch:
    given = {"endpoint": CHAT, "completion_window": "24h", "input_file_id": await upload(client, rows)} | fields
    return await client.batches.create(**given)


async def until(client: AsyncOpenAI, batch_id: str, is_reached: Callable[[Batch], bool]) -> Batch:
    async with asyncio.timeout(PATIENCE_S):
        while not is_reached(batch := await client.batches.retrieve(batch_id)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return batch


async def ended(client: AsyncOpenAI, batch_id: str) -> Batch:
    return await until(client, batch_id, lambda batch: batch.status in ("completed", "failed", "expired", "cancelled"))


async def results(client: AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in (await client.files.content(file_id)).text.splitlines()]


async def test_files_come_back_as_they_were(stage: Stage) -> None:
    client, other = await stage.client(), await stage.client()
    content = b'{"a": 1}\n' * 300_000  # several chunks
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.object) == (len(content), "in.jsonl", "batch", "file")
    assert (await client.files.content(file.id)).content == content
    small = await client.files.create(
        file=("b.jsonl", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert small.expires_at == small.created_at + 3600
    assert [each.id async for each in client.files.list(limit=1)] == [small.id, file.id]
    assert [each.id async for each in client.files.list(limit=1, order="asc")] == [file.id, small.id]
    assert (await client.files.retrieve(file.id)) == file
    for refused in (other.files.retrieve(file.id), other.files.delete(file.id), other.files.content(file.id)):
        with pytest.raises(NotFoundError):
            await refused
    assert [each.id async for each in other.files.list()] == []
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(NotFoundError):
        await client.files.retrieve(file.id)
    assert len(await stage.sql("SELECT FROM file_chunks WHERE file_id = $1", file.id)) == 0


async def test_what_is_no_upload_is_refused(stage: Stage) -> None:
    client = await stage.client()
    with pytest.raises(BadRequestError, match="purpose"):
        await client.files.create(file=b"x", purpose="fine-tune")
    with pytest.raises(BadRequestError, match="field 'file'"):
        await client.post("/files", body={"purpose": "batch"}, cast_to=object)
    with pytest.raises(BadRequestError, match="expires_after"):
        await client.files.create(file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 5})


@pytest.mark.parametrize(
    ("path", "options", "param"),
    [
        ("/files", {"order": "sideways"}, "order"),
        ("/files", {"limit": "many"}, "limit"),
        ("/files", {"limit": 0}, "limit"),
        ("/batches", {"limit": "many"}, "limit"),
        ("/batches", {"limit": 101}, "limit"),
    ],
)
async def test_an_odd_option_of_a_list_is_named(stage: Stage, path: str, options: dict[str, Any], param: str) -> None:
    client = await stage.client()
    with pytest.raises(BadRequestError) as refused:
        await client.get(path, options={"params": options}, cast_to=object)
    assert refused.value.param == param
    assert f"`{param}`" in refused.value.message


async def test_every_line_is_answered_once_and_booked_once(stage: Stage) -> None:
    client = await stage.client()
    batch = await begin(client, lines(40), metadata={"job": "nightly"})
    assert (batch.status, batch.metadata, batch.object) == ("validating", {"job": "nightly"}, "batch")
    done = await ended(client, batch.id)
    assert done.status == "completed"
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (40, 40, 0)
    booked = await stage.ledger()
    assert done.usage is not None
    assert done.usage.input_tokens == sum(row["prompt_tokens"] for row in booked) > 0
    assert done.usage.output_tokens == sum(row["completion_tokens"] for row in booked) > 0
    assert done.usage.input_tokens_details.cached_tokens == sum(row["cached_tokens"] for row in booked)
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens
    assert done.error_file_id is None
    rows = await results(client, done.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"c{n}" for n in range(40)]
    assert all(row["error"] is None and row["response"]["status_code"] == 200 for row in rows)
    assert rows[0]["response"]["body"]["choices"][0]["message"]["content"] == "Hello there"
    ledger = await stage.ledger()
    assert Counter(row["request_id"] for row in ledger) == Counter(row["response"]["request_id"] for row in rows)
    assert sum(row["completion_tokens"] for row in ledger) == sum(
        row["response"]["body"]["usage"]["completion_tokens"] for row in rows
    )
    assert {row["endpoint"] for row in ledger} == {CHAT}
    assert await stage.sql("SELECT FROM batch_lines") == []
    assert [each.id async for each in client.batches.list()] == [batch.id]


async def test_refused_lines_are_in_the_error_file(stage: Stage) -> None:
    client = await stage.client()
    rows = lines(3)
    rows[1] = rows[1] | {"body": rows[1]["body"] | {"model": "unknown"}}
    done = await ended(client, (await begin(client, rows)).id)
    assert done.request_counts is not None
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 2, 1)
    assert [row["custom_id"] for row in await results(client, done.output_file_id)] == ["c0", "c2"]
    (failed,) = await results(client, done.error_file_id)
    assert failed["custom_id"] == "c1"
    assert failed["response"]["status_code"] == 404
    assert failed["response"]["body"]["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("rows", "code", "line"),
    [
        ([*lines(1), *lines(1)], "duplicate_custom_id", 2),
        (lines(1, url="/v1/embeddings"), "mismatched_url", 1),
        (lines(1, method="GET"), "invalid_method", 1),
        (lines(1, body={"messages": []}), "missing_required_parameter", 1),
        (lines(1, body={"model": "m", "stream": True}), "invalid_request", 1),
        ([{"custom_id": "x"}], "invalid_json_line", 1),
        ([], "empty_file", None),
    ],
)
async def test_a_file_with_a_fault_does_not_run(stage: Stage, rows: list[Any], code: str, line: int | None) -> None:
    client = await stage.client()
    failed = await ended(client, (await begin(client, rows)).id)
    assert failed.status == "failed"
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert (failed.errors.data[0].code, failed.errors.data[0].line) == (code, line)
    assert stage.upstream.received == []


async def test_what_is_no_batch_is_refused(stage: Stage) -> None:
    client, other = await stage.client(), await stage.client()
    with pytest.raises(BadRequestError, match="are not run here"):
        await begin(client, lines(1), endpoint="/v1/images/generations")
    with pytest.raises(BadRequestError, match="completion_window"):
        await begin(client, lines(1), completion_window="1h")
    with pytest.raises(NotFoundError) as refused:
        await begin(other, lines(1), input_file_id=await upload(client, lines(1)))
    assert refused.value.param == "input_file_id"
    with pytest.raises(NotFoundError):
        await client.batches.retrieve("batch_unknown")


async def test_a_batch_waits_for_its_team_s_limits(stage: Stage) -> None:
    client = await stage.client(requests_per_minute=4)
    batch = await begin(client, lines(6))
    paused = await until(
        client, batch.id, lambda it: it.request_counts is not None and it.request_counts.completed >= 4
    )
    assert paused.status == "in_progress"
    assert len(stage.upstream.received) == 4
    await stage.sql("UPDATE batches SET expires_at = now() WHERE id = $1", batch.id)
    done = await ended(client, batch.id)
    assert done.status == "expired"
    assert len(await results(client, done.output_file_id)) == 4
    assert {row["error"]["code"] for row in await results(client, done.error_file_id)} == {"batch_expired"}


async def test_a_batch_can_be_cancelled(stage: Stage) -> None:
    client = await stage.client()
    stage.upstream.delay_s = 0.2
    batch = await begin(client, lines(100))
    await until(client, batch.id, lambda it: it.request_counts is not None and it.request_counts.completed > 0)
    assert (await client.batches.cancel(batch.id)).status == "cancelling"
    done = await ended(client, batch.id)
    assert done.status == "cancelled"
    answered = await results(client, done.output_file_id)
    rest = await results(client, done.error_file_id)
    assert len(answered) + len(rest) == 100
    assert 0 < len(answered) < 100
    assert {row["error"]["code"] for row in rest} == {"batch_cancelled"}
    assert len(await stage.ledger()) == len(answered)
    with pytest.raises(BadRequestError, match="cancelled"):
        await client.batches.cancel(batch.id)


async def test_backends_that_fail_are_tried_again(stage: Stage) -> None:
    client = await stage.client()
    stage.upstream.status = 500
    batch = await begin(client, lines(4))
    async with asyncio.timeout(PATIENCE_S):
        while not stage.upstream.received:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    stage.upstream.status = 200
    done = await ended(client, batch.id)
    assert done.request_counts is not None
    assert (done.status, done.request_counts.completed) == ("completed", 4)
    assert len(await stage.ledger()) == 4


async def test_gateways_share_the_work_and_a_dead_one_s_lines_are_run_again(
    postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with staged(
        postgres_url, valkey_url, tmp_path, num_gateways=2, stored=StoredConfig(batch_concurrency=4)
    ) as stage:
        client = await stage.client()
        stage.upstream.delay_s = 0.15
        batch = await begin(client, lines(60))
        await until(client, batch.id, lambda it: it.request_counts is not None and it.request_counts.completed > 0)
        claimed = "SELECT DISTINCT owner FROM batch_lines WHERE owner IS NOT NULL"
        async with asyncio.timeout(PATIENCE_S):
            while len(await stage.sql(claimed)) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        # As if somebody had claimed some, answered nothing, and died.
        await stage.sql(
            "UPDATE batch_lines SET attempt = attempt + 1, owner = gen_random_uuid(),"
            " free_at = now() + interval '0.5 s'"
            " WHERE batch_id = $1 AND free_at IS NOT NULL AND position > 30",
            batch.id,
        )
        done = await ended(client, batch.id)
        assert done.status == "completed"
        rows = await results(client, done.output_file_id)
        assert [row["custom_id"] for row in rows] == [f"c{n}" for n in range(60)]
        assert Counter(Counter(row["request_id"] for row in await stage.ledger()).values()) == {1: 60}
        assert len(stage.upstream.received) >= 60


async def test_a_revoked_key_s_batch_ends_with_errors(stage: Stage) -> None:
    client = await stage.client(requests_per_minute=1)
    batch = await begin(client, lines(3))
    await until(client, batch.id, lambda it: it.request_counts is not None and it.request_counts.completed == 1)
    await stage.sql("UPDATE keys SET revoked_at = now()")
    await stage.sql("UPDATE batches SET next_at = now()")
    watcher = await stage.sql("SELECT count(*) FROM batch_lines WHERE free_at IS NOT NULL")
    assert watcher[0][0] == 2
    async with asyncio.timeout(PATIENCE_S):
        while (await stage.sql("SELECT status FROM batches"))[0]["status"] != "completed":
            await stage.sql("UPDATE batch_lines SET free_at = now() WHERE free_at IS NOT NULL AND owner IS NULL")
            await stage.sql("UPDATE batches SET next_at = now() WHERE status = 'in_progress'")
            await asyncio.sleep(0.1)
    assert len(stage.upstream.received) == 1
    assert (await stage.sql("SELECT num_failed FROM batches"))[0]["num_failed"] == 2


async def test_what_was_kept_long_enough_is_removed(stage: Stage) -> None:
    client = await stage.client()
    file_id = await upload(client, lines(1))
    await stage.sql("UPDATE files SET expires_at = now()")
    engine = create_engine(Secret(stage.database_url))
    async with engine.begin() as connection:
        await batch_endings.sweep(connection, timedelta(days=1))
    await engine.dispose()
    with pytest.raises(NotFoundError):
        await client.files.retrieve(file_id)


async def everything_stored(stage: Stage) -> str:
    """Every row of every table, as whoever reads the database's disk or a copy of it sees it."""
    tables = await stage.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert {"file_chunks", "batch_lines", "responses", "usage_ledger", "audit_log"} <= {name for (name,) in tables}
    rows = [row for (name,) in tables for row in await stage.sql(f"SELECT * FROM {name}")]
    return " ".join(str(tuple(row)) for row in rows)


async def test_what_clients_leave_is_sealed_in_the_database(stage: Stage) -> None:
    """The file, its lines while they wait, the answers, the file of them, and a stored response."""
    client = await stage.client()
    stage.upstream.script = Script(content="CANARY-ANSWER")
    asked = {"model": "m", "messages": [{"role": "user", "content": "CANARY-PROMPT"}]}
    batch = await begin(client, lines(3, body=asked))
    await until(client, batch.id, lambda it: it.status != "validating")
    assert "CANARY" not in await everything_stored(stage)
    batch = await ended(client, batch.id)
    stored = await client.responses.create(model="m", input="CANARY-PROMPT")
    assert "CANARY" not in await everything_stored(stage)
    assert all("CANARY-ANSWER" in json.dumps(row) for row in await results(client, batch.output_file_id))
    assert "CANARY-PROMPT" in (await client.files.content(batch.input_file_id)).text
    assert (await client.responses.retrieve(stored.id)).output_text == "CANARY-ANSWER"


async def test_what_was_stored_before_it_was_sealed_is_still_there(
    postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """A batch begun by gateways that sealed nothing, and ended by one that does."""
    async with staged(postgres_url, valkey_url, tmp_path / "old", stored=StoredConfig(sealed=False)) as before:
        client = await before.client()
        plain = await client.responses.create(model="m", input="CANARY-OLD")
        file_id = await upload(client, lines(2))
        await before.sql("UPDATE backends SET base_url = 'http://127.0.0.1:1'")
        batch = await client.batches.create(endpoint=CHAT, completion_window="24h", input_file_id=file_id)
        await until(client, batch.id, lambda it: it.status == "in_progress")
        assert "CANARY-OLD" in await everything_stored(before)
        key = client.api_key
    async with staged(postgres_url, valkey_url, tmp_path / "new") as after:
        client = AsyncOpenAI(base_url=f"{after.urls[0]}/v1", api_key=key, max_retries=0)
        assert (await ended(client, batch.id)).status == "completed"
        goes_on = await client.responses.create(model="m", input="Sure?", previous_response_id=plain.id)
        assert goes_on.previous_response_id == plain.id
        assert '"custom_id": "c1"' in (await client.files.content(file_id)).text
        assert "CANARY-OLD" in str(await client.responses.input_items.list(plain.id))
        await client.close()
