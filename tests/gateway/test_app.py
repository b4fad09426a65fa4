"""The application as a whole: what is open to whom, and OpenAI's error shape everywhere."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import httpx
import openai
import pytest

from descant_gateway.app import open_app
from descant_gateway.config import DatabaseConfig, LedgerConfig
from descant_gateway.endpoints import ENDPOINTS, MESSAGES

from .gateway_process import ADMIN, create_world
from .gateway_under_test import (
    Running,
    World,
    bearer,
    config_for_tests,
    database,
    serving,
)
from .upstream import Upstream

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "CANARY-PROMPT"}]}
OPEN_TO_ALL = {"/health", "/ready", "/metrics"}
ADMIN_OPEN_TO_ALL = ("/admin/v1/docs", "/admin/v1/sign-in", "/admin/v1/sign-out")
"""Tested in routes/test_access.py and routes/test_sign_in.py."""


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


async def test_a_process_opens_no_more_connections_than_it_says(
    whole: tuple[httpx.AsyncClient, object], postgres_url: str
) -> None:
    """However much is asked of each of its pools at once."""
    client, _ = whole
    key = await create_world(client, Upstream(url="http://127.0.0.1:1"))
    await asyncio.sleep(0.5)
    upload = {"file": ("in.jsonl", b"{}")}
    asked = [client.get("/admin/v1/teams", headers=ADMIN) for _ in range(30)]
    asked += [client.post("/v1/files", data={"purpose": "batch"}, files=upload, headers=bearer(key)) for _ in range(9)]
    assert {reply.status_code for reply in await asyncio.gather(*asked)} == {200}
    connection = await asyncpg.connect(postgres_url)
    ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1"
    num_open = await connection.fetchval(ours, "descant-gateway")
    await connection.close()
    pool_size = DatabaseConfig.pool_size
    assert 2 * pool_size <= num_open <= database(postgres_url).max_connections


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


async def test_base_models_are_listed_before_adapters(world: World, gateway: Running, upstream: Upstream) -> None:
    """Many a program takes the first one."""
    world.add_model("a-tune", upstream.backend, parent="m")
    listed = (await gateway.client.get("/v1/models", headers=bearer(world.add_key()))).json()
    assert [model["id"] for model in listed["data"]] == ["m", "a-tune", "tickets"]


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
        "the catalogue was not refreshed for 60 s: PostgreSQL is away, or holds a row that can't be read: the log says"
        " which",
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
