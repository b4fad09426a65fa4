"""The application as a whole: what is open to whom, OpenAI's error shape everywhere, and the process itself."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import openai
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.app import open_app
from descant_gateway.config import LedgerConfig
from descant_gateway.endpoints import ENDPOINTS, MESSAGES
from descant_gateway.ledger.writer import LedgerWriter

from .gateway_under_test import (
    PEPPER,
    Running,
    World,
    bearer,
    config_for_tests,
    database,
    eventually,
    serving,
)
from .upstream import Upstream

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "CANARY-PROMPT"}]}
OPEN_TO_ALL = {"/health", "/ready", "/metrics"}
ADMIN_OPEN_TO_ALL = ("/admin/v1/docs", "/admin/v1/sign-in", "/admin/v1/sign-out")
"""Tested in routes/test_access.py and routes/test_sign_in.py."""
ADMIN = {"authorization": f"Bearer {'a' * 32}"}


@pytest.fixture
def world(upstream: Upstream) -> World:
    world = World()
    world.add_model("m", upstream.backend)
    world.add_model("tickets", upstream.backend, parent="m")
    return world


@pytest.fixture
async def whole(postgres_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, object]]:
    """The whole application on a real database, and a client for it."""
    config = config_for_tests(valkey_url, database=database(postgres_url), ledger=LedgerConfig(spool_dir=tmp_path))
    async with (
        open_app(config) as app,
        serving(app) as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        yield client, app


def methods_of(route: object) -> set[str]:
    return set(getattr(route, "methods", ())) or {"GET", "POST"}  # a raw ASGI route takes whatever comes


def assert_openai_error(reply: httpx.Response) -> dict:
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


# Who may call what


async def test_every_route_but_the_open_ones_refuses_a_caller_without_a_key(
    whole: tuple[httpx.AsyncClient, object],
) -> None:
    client, app = whole
    walked = set()
    for route in app.routes:
        path = route.path_format
        if path.startswith(ADMIN_OPEN_TO_ALL):
            continue
        for parameter in route.path_components:
            if not isinstance(parameter, str):
                value = {UUID: str(uuid4()), int: "7"}.get(parameter.type, "x")
                path = path.replace("{" + parameter.name + "}", value)
        for method in sorted(methods_of(route) - {"OPTIONS", "HEAD"}):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic eDp5"}):
                reply = await client.request(method, path, headers=headers, json={})
                walked.add(path)
                if path in OPEN_TO_ALL:
                    assert reply.status_code in (200, 503), path
                elif path in ENDPOINTS and method == "GET":
                    assert reply.status_code == 405, path
                else:
                    assert reply.status_code == 401, (method, path, reply.text)
                    if path.startswith(MESSAGES):
                        assert reply.json()["error"]["type"] == "authentication_error"
                    else:
                        assert assert_openai_error(reply)["code"] == "invalid_api_key"
    assert {CHAT, "/v1/completions", "/v1/models"} | OPEN_TO_ALL <= walked
    assert any(path.startswith("/admin/v1/") for path in walked)


async def test_a_user_s_key_is_no_admin_key_and_the_reverse(
    world: World, whole: tuple[httpx.AsyncClient, object]
) -> None:
    client, _ = whole
    assert (await client.get("/v1/models", headers=ADMIN)).status_code == 401
    assert (await client.get("/admin/v1/teams", headers=bearer(world.add_key()))).status_code == 401


async def test_models_are_those_that_the_key_may_use(world: World, gateway: Running) -> None:
    everything = bearer(world.add_key())
    narrow = bearer(world.add_key(allowed_models=frozenset({"tickets"})))
    listed = (await gateway.client.get("/v1/models", headers=everything)).json()
    assert [(model["id"], model["parent"]) for model in listed["data"]] == [("m", None), ("tickets", "m")]
    listed = (await gateway.client.get("/v1/models", headers=narrow)).json()
    assert [model["id"] for model in listed["data"]] == ["tickets"]
    assert (await gateway.client.get("/v1/models/tickets", headers=narrow)).json()["parent"] == "m"
    assert (await gateway.client.get("/v1/models/m", headers=narrow)).status_code == 403
    unknown = await gateway.client.get("/v1/models/nobody/knows", headers=narrow)
    assert (unknown.status_code, assert_openai_error(unknown)["code"]) == (404, "model_not_found")


async def test_a_model_id_may_hold_a_slash(world: World, gateway: Running, upstream: Upstream) -> None:
    world.add_model("org/name", upstream.backend)
    reply = await gateway.client.get("/v1/models/org/name", headers=bearer(world.add_key()))
    assert reply.json()["id"] == "org/name"


# Errors


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("POST", "/v1/audio/speech", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", CHAT, 405),
        ("PUT", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("GET", "/v1/models/../../etc/passwd", 404),
    ],
)
async def test_whatever_is_not_there_says_so_in_openai_s_shape(
    world: World, gateway: Running, method: str, path: str, status: int
) -> None:
    reply = await gateway.client.request(method, path, headers=bearer(world.add_key()))
    assert reply.status_code == status
    assert_openai_error(reply)


async def test_bad_input_never_reaches_a_backend_or_hurts_the_gateway(
    world: World, gateway: Running, upstream: Upstream
) -> None:
    key = bearer(world.add_key())
    bad = [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b'{"model"}',
        b'{"model":"m",}',
        b'{"model":null}',
        b'{"model":{}}',
        b'{"model":["m"]}',
        b'{"messages":[]}',
        b'{"model":"m","stream":1}',
        b'{"model":"m","stream":"true"}',
        b'{"model":"m","max_tokens":"5"}',
        b'{"model":"m","max_tokens":1.5}',
        b'{"model":"m","max_tokens":-5}',
        b'{"model":"m","max_tokens":1e308}',
        b'{"model":"m","max_tokens":' + b"9" * 400 + b"}",
        b'{"model":"m","stream_options":"x"}',
        b'{"model":"m","x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"model":"m","x":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        b'{"model":"m","\xff":1}',
        b'{"model":"\xff"}',
        b'{"model":"m","x":NaN}',
        b"\x00" * 100,
        b"\xef\xbb\xbf{}",
        "{“model”:“m”}".encode(),
    ]
    for body in bad:
        reply = await gateway.client.post(CHAT, content=body, headers=key)
        assert reply.status_code == 400, body[:60]
        assert assert_openai_error(reply)["type"] == "invalid_request_error"
    assert upstream.received == []
    assert (await gateway.client.post(CHAT, json=BODY, headers=key)).status_code == 200


async def test_nonsense_on_the_socket_hurts_nobody_else(world: World, gateway: Running) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    key = world.add_key()
    pieces = [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET\r\n\r\n",
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: -4\r\n\r\n".encode(),
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: abc\r\n\r\n{{}}".encode(),
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{{}}".encode(),
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: " + b"x" * 70_000,
    ]
    for piece in pieces:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(piece)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 5)
        assert b"500 " not in answer[:20]
        writer.close()
    assert (await gateway.client.post(CHAT, json=BODY, headers=bearer(key))).status_code == 200


async def test_a_stranger_s_host_header_is_of_no_account(world: World, gateway: Running) -> None:
    reply = await gateway.client.get("/v1/models", headers={"host": "evil/../admin"} | bearer(world.add_key()))
    assert reply.status_code in (200, 400)


# Those who watch


async def test_alive_is_not_ready(world: World, gateway: Running) -> None:
    assert (await gateway.client.get("/health")).json() == {"status": "ok"}
    reply = await gateway.client.get("/ready")
    assert reply.status_code == 200
    assert reply.json() == {"ready": True, "reasons": [], "catalogue_version": 1, "valkey": True, "database": True}
    world.age_s = 60.0
    reply = await gateway.client.get("/ready")
    assert (reply.status_code, reply.json()["database"]) == (200, False)
    assert reply.json()["reasons"] == [
        "PostgreSQL is away: the catalogue is 60 s old, usage goes to the spool",
    ]


async def test_metrics_count_what_happened_under_bounded_labels(world: World, gateway: Running) -> None:
    key = bearer(world.add_key())
    await gateway.client.post(CHAT, json=BODY, headers=key)
    for number in range(5):
        await gateway.client.post(CHAT, json=BODY | {"model": f"made-up-{number}"}, headers=key)
    text = (await gateway.client.get("/metrics")).text
    assert 'descant_gateway_requests_total{model="m",outcome="completed"} 1.0' in text
    assert 'descant_gateway_tokens_total{kind="completion",model="m"} 5.0' in text
    assert 'descant_gateway_refused_total{code="model_not_found",status="404"} 5.0' in text
    assert "made-up" not in text


# The official client


async def test_the_openai_client_talks_to_it(world: World, gateway: Running, upstream: Upstream) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=world.add_key(), max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["m", "tickets"]
        reply = await client.chat.completions.create(**BODY)
        assert reply.choices[0].message.content == "hi"
        assert reply.usage is not None
        stream = await client.chat.completions.create(**BODY, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) == 5
        assert chunks[-1].usage is not None
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="unknown", messages=[])
        upstream.dies_after = 2
        with pytest.raises(openai.APIError, match="connection broke"):
            [chunk async for chunk in await client.chat.completions.create(**BODY, stream=True)]
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


# The process


def environment(postgres_url: str, valkey_url: str, spool: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "DESCANT_DATABASE_URL": postgres_url,
        "DESCANT_VALKEY_URL": valkey_url,
        "DESCANT_KEY_PEPPER": PEPPER,
        "DESCANT_ADMIN_KEY": "a" * 32,
        "DESCANT_LEDGER_SPOOL_DIR": str(spool),
        "DESCANT_SHUTDOWN_GRACE_S": "5",
        "DESCANT_HEALTH_INTERVAL_S": "0.2",
    }


@contextmanager
def gateway_process(env: dict[str, str], *args: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "descant_gateway", *args]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


async def wait_until_ready(url: str, process: subprocess.Popen[bytes], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    async with httpx.AsyncClient() as client:
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            try:
                if (await client.get(f"{url}/ready")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    raise AssertionError("the gateway did not become ready")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def create_world(client: httpx.AsyncClient, upstream: Upstream) -> str:
    """An organization's first backend, model, team and key, through the admin API. Returns the key."""
    backend = {"name": upstream.name, "base_url": upstream.url}
    (await client.put("/admin/v1/backends", json=backend, headers=ADMIN)).raise_for_status()
    model = {"name": "m", "backends": [upstream.name]}
    (await client.put("/admin/v1/models", json=model, headers=ADMIN)).raise_for_status()
    team = await client.post("/admin/v1/teams", json={"name": "t"}, headers=ADMIN)
    team.raise_for_status()
    key = await client.post("/admin/v1/keys", json={"name": "k", "team_id": team.json()["id"]}, headers=ADMIN)
    key.raise_for_status()
    return str(key.json()["api_key"])


async def test_sigterm_lets_the_stream_end_and_flushes_the_ledger(
    upstream: Upstream, engine: AsyncEngine, postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    upstream.num_tokens, upstream.delay_s = 10, 0.1
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with gateway_process(environment(postgres_url, valkey_url, tmp_path), "--port", str(port)) as process:
        await wait_until_ready(url, process)
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            key = await create_world(client, upstream)
            await asyncio.sleep(0.5)
            task = asyncio.create_task(client.post(CHAT, json=BODY | {"stream": True}, headers=bearer(key)))
            await eventually(lambda: upstream.num_tokens_sent > 2)
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
            key = await create_world(client, upstream)
            await asyncio.sleep(0.5)
            task = asyncio.create_task(client.post(CHAT, json=BODY | {"stream": True}, headers=bearer(key)))
            await eventually(lambda: upstream.num_tokens_sent > 2)
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
