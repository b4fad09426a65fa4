"""The process: how it starts, ends and dies, and what it says when it can't start."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.gateway_process import create_world, environment, free_port, gateway_process, wait_until_ready
from tests.gateway.gateway_under_test import PEPPER, bearer, eventually
from tests.gateway.upstream import Upstream

from descant_gateway.ledger.writer import LedgerWriter

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "CANARY-PROMPT"}]}


async def begun_stream(client: httpx.AsyncClient, upstream: Upstream) -> tuple[str, asyncio.Task[httpx.Response]]:
    """A new key, and a stream of its that is under way."""
    key = await create_world(client, upstream)
    await asyncio.sleep(0.5)
    task = asyncio.create_task(client.post(CHAT, json=BODY | {"stream": True}, headers=bearer(key)))
    await eventually(lambda: upstream.num_tokens_sent > 2)
    return key, task


async def test_sigterm_lets_the_stream_end_and_flushes_the_ledger(
    upstream: Upstream, engine: AsyncEngine, postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    upstream.num_tokens, upstream.delay_s = 10, 0.1
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with gateway_process(environment(postgres_url, valkey_url, tmp_path), "--port", str(port)) as process:
        await wait_until_ready(url, process)
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            key, task = await begun_stream(client, upstream)
            process.send_signal(signal.SIGTERM)
            reply = await task
        assert reply.content == upstream.stream_bytes(with_usage=False)
        out, err = await asyncio.to_thread(process.communicate, timeout=10)
        assert process.returncode == 0, err
    async with engine.connect() as connection:
        rows = (await connection.exec_driver_sql("SELECT outcome, completion_tokens FROM usage_ledger")).all()
    assert [tuple(row) for row in rows] == [("completed", 10)]
    lines = [json.loads(line) for line in out.splitlines()]
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["model"], line["status"], line["completion_tokens"], line["level"]) == ("m", 200, 10, "info")
    assert {"request_id", "key_id", "team_id", "parent", "backend", "ttft_ms", "duration_ms", "timestamp"} <= set(line)
    for secret in ("CANARY-PROMPT", key, key[20:], PEPPER, "a" * 32):
        assert secret.encode() not in out + err


async def test_a_stream_that_outlives_the_grace_is_cut_and_booked(
    upstream: Upstream, engine: AsyncEngine, postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    upstream.num_tokens, upstream.delay_s = 1000, 0.05
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = environment(postgres_url, valkey_url, tmp_path) | {"DESCANT_SHUTDOWN_GRACE_S": "1"}
    with gateway_process(env, "--port", str(port)) as process:
        await wait_until_ready(url, process)
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            _, task = await begun_stream(client, upstream)
            process.send_signal(signal.SIGTERM)
            await asyncio.gather(task, return_exceptions=True)
        _, err = await asyncio.to_thread(process.communicate, timeout=10)
        assert process.returncode == 0, err
    await eventually(lambda: upstream.num_running == 0)
    async with engine.connect() as connection:
        rows = (await connection.exec_driver_sql("SELECT completion_tokens, estimated FROM usage_ledger")).all()
    ((completion_tokens, estimated),) = rows
    assert 2 < completion_tokens <= upstream.num_tokens_sent
    assert estimated


async def test_a_gateway_killed_with_a_stream_open_loses_no_charge(
    upstream: Upstream, engine: AsyncEngine, postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """What ended a moment before is booked as it was, what ran as interrupted and for nothing, by the next gateway."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = environment(postgres_url, valkey_url, tmp_path)
    with gateway_process(env, "--port", str(port)) as process:
        await wait_until_ready(url, process)
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            key = await create_world(client, upstream)
            await asyncio.sleep(0.5)
            upstream.num_tokens = 7
            tagged = bearer(key) | {"x-descant-tags": "app=search"}
            for _ in range(5):
                assert (await client.post(CHAT, json=BODY, headers=tagged)).status_code == 200
            upstream.num_tokens, upstream.delay_s, num_sent = 1000, 0.05, upstream.num_tokens_sent
            task = asyncio.create_task(client.post(CHAT, json=BODY | {"stream": True}, headers=tagged))
            await eventually(lambda: upstream.num_tokens_sent > num_sent + 2)
            process.kill()
            await asyncio.gather(task, return_exceptions=True)
    assert any(name.endswith(".journal") for name in os.listdir(tmp_path))
    writer = LedgerWriter(engine, tmp_path)
    await writer.start()
    assert writer.num_recovered >= 1
    await eventually(lambda: not writer.is_spooling)
    await writer.close()
    async with engine.connect() as connection:
        rows = (await connection.exec_driver_sql("SELECT outcome, completion_tokens, tags FROM usage_ledger")).all()
    assert sorted((row.outcome, row.completion_tokens) for row in rows) == [*[("completed", 7)] * 5, ("interrupted", 0)]
    assert all(row.tags == {"app": "search"} for row in rows)


def failed_start(env: dict[str, str], *args: str) -> str:
    """What it says when it can't start; one line, no traceback."""
    command = [sys.executable, "-m", "descant_gateway", *args]
    finished = subprocess.run(command, env=env, capture_output=True, timeout=30, check=False)
    assert finished.returncode == 1
    message = finished.stderr.decode().strip()
    assert "Traceback" not in message
    return message


def test_a_taken_port_is_told_in_one_line(postgres_url: str, valkey_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        message = failed_start(environment(postgres_url, valkey_url, tmp_path), "--port", port)
    assert message.splitlines() == [f"Error: cannot listen on 127.0.0.1:{port}: the port is taken."]


def test_a_missing_database_is_told_in_one_line(valkey_url: str, tmp_path: Path) -> None:
    url = "postgresql://user:hunter2@127.0.0.1:1/x"
    message = failed_start(environment(url, valkey_url, tmp_path), "--port", "0")
    assert "the database cannot be read" in message
    assert "hunter2" not in message
    assert len(message.splitlines()) == 1


def test_an_unmigrated_database_is_told_with_the_command(
    empty_postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    message = failed_start(environment(empty_postgres_url, valkey_url, tmp_path), "--port", "0")
    assert "descant_gateway.store.migrate" in message


def test_the_gateway_imports_without_torch() -> None:
    code = "import sys, descant_gateway.main; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
