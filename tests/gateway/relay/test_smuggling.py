"""Requests that two servers could read differently, over raw sockets: refused, or read in one way and no other."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from tests.gateway.gateway_under_test import Running, World, bearer, running_gateway
from tests.gateway.upstream import Upstream, running

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "m", "messages": []}).encode()
INNER = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture
async def stage(valkey_url: str) -> AsyncIterator[tuple[Running, World, Upstream]]:
    async with running(Upstream()) as upstream:
        world = World()
        world.add_model("m", upstream.backend)
        async with running_gateway(world, valkey_url) as gateway:
            yield gateway, world, upstream


async def say(gateway: Running, text: bytes) -> bytes:
    """Everything that the gateway answers until it closes, or for a moment."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(text)
    answer = b""
    try:
        async with asyncio.timeout(1.0):
            while piece := await reader.read(65536):
                answer += piece
    except TimeoutError:
        pass
    writer.close()
    return answer


def head(world: World, *lines: str) -> bytes:
    start = [f"POST {CHAT} HTTP/1.1", "host: x", f"authorization: Bearer {world.add_key()}", *lines]
    return "\r\n".join([*start, "", ""]).encode()


@pytest.mark.parametrize(
    "lines",
    [
        ("content-length: 5", "transfer-encoding: chunked"),
        ("content-length: 5", "content-length: 6"),
        ("transfer-encoding: xchunked",),
        ("content-length: +5",),
        ("content-length: 5, 6",),
        ("content-length : 5",),
    ],
)
async def test_two_ways_to_read_a_length_are_refused(
    stage: tuple[Running, World, Upstream], lines: tuple[str, ...]
) -> None:
    gateway, world, upstream = stage
    answer = await say(gateway, head(world, *lines) + b"0\r\n\r\n" + INNER)
    assert not answer.startswith(b"HTTP/1.1 200"), answer
    assert answer.count(b"HTTP/1.1 ") <= 1, "a second request was read from the first one's body"
    assert upstream.received == []


@pytest.mark.parametrize(
    ("lines", "rest"),
    [
        (("content-length: 0", "transfer-encoding: chunked, identity"), b"0\r\n\r\n"),
        (("transfer-encoding: chunked", "transfer-encoding: identity"), b"0\r\n\r\n"),
        (("transfer-encoding:\tchunked", "content-length: 3"), b"0\r\n\r\n"),
        (("transfer-encoding: chunked",), b"0;ext=" + b"x" * 10 + b"\n\r\n"),
        (("transfer-encoding: chunked",), b"0x3\r\nabc\r\n0\r\n\r\n"),
        (("transfer-encoding: chunked",), b"-1\r\n\r\n"),
        (("transfer-encoding: chunked",), b"FFFFFFFFFFFFFFFF1\r\nabc\r\n0\r\n\r\n"),
        (("x-folded: a", " content-length: 4"), b""),
        (("x-bare: a\ncontent-length: 4",), b"{}{}"),
        (("x-null: a\x00b",), b""),
        (("content-length: 4\x0b",), b"{}{}"),
        (("content-length:",), b""),
        (("content-length: 99999999999999999999",), b"{}"),
        (("content-length: -1",), b"{}"),
        (("content-length: 0x4",), b"{}{}"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_what_is_odd_is_never_read_as_two(
    stage: tuple[Running, World, Upstream], lines: tuple[str, ...], rest: bytes
) -> None:
    """Folded and bare lines, odd chunks and lengths: what follows is no request that goes to a backend."""
    gateway, world, upstream = stage
    answer = await say(gateway, head(world, *lines) + rest + head(world, "content-length: 2") + b"{}")
    assert b"HTTP/1.1 200" not in answer
    assert b"HTTP/1.1 5" not in answer
    assert upstream.received == []
    reply = await gateway.client.post(CHAT, content=BODY, headers=bearer(world.add_key()))
    assert reply.status_code == 200, "the gateway must go on"


async def test_a_body_of_known_length_ends_there(stage: tuple[Running, World, Upstream]) -> None:
    gateway, world, upstream = stage
    await say(gateway, head(world, f"content-length: {len(BODY)}") + BODY)
    (received,) = upstream.received
    assert json.loads(received.body) == json.loads(BODY)
    names = [name.lower() for name, _ in received.raw_headers]
    assert names.count(b"content-length") == 1
    assert b"transfer-encoding" not in names


async def test_no_host_that_a_client_says_is_believed(stage: tuple[Running, World, Upstream]) -> None:
    gateway, world, upstream = stage
    for host in ("evil.example", "admin.internal", "127.0.0.1:1"):
        headers = bearer(world.add_key()) | {"host": host, "x-forwarded-host": host}
        reply = await gateway.client.post(CHAT, content=BODY, headers=headers)
        assert reply.status_code == 200
        missing = await gateway.client.get("/nowhere", headers=headers)
        assert "There is no GET /nowhere here." in missing.json()["error"]["message"]
    assert all(host not in str(received.raw_headers) for received in upstream.received for host in ("evil", "admin"))


@pytest.mark.parametrize("times", [1, 2])
async def test_headers_have_a_limit(stage: tuple[Running, World, Upstream], times: int) -> None:
    """However they share it: in one header or in several of one name."""
    gateway, world, upstream = stage
    headers = [*bearer(world.add_key()).items(), *[("x-fill", "x" * (70_000 // times))] * times]
    reply = await gateway.client.post(CHAT, content=BODY, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (431, "headers_too_large")
    assert upstream.received == []


@pytest.mark.parametrize(("path", "family"), [("/v1/audio/speech", "speech"), ("/v1/images/generations", "images")])
async def test_what_is_not_served_is_refused_by_name(
    stage: tuple[Running, World, Upstream], path: str, family: str
) -> None:
    gateway, world, _ = stage
    reply = await gateway.client.post(path, json={}, headers=bearer(world.add_key()))
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unsupported_endpoint")
    assert f"is for {family}" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "fields", "usage", "tokens"),
    [
        ("/v1/embeddings", {"input": "x"}, {"prompt_tokens": 4, "total_tokens": 4}, (4, 0)),
        ("/v1/rerank", {"query": "q", "documents": ["d"]}, {"total_tokens": 6}, (6, 0)),
        ("/v1/responses", {"input": "x"}, {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}, (3, 2)),
        ("/tokenize", {"prompt": "x"}, None, (0, 0)),
    ],
)
async def test_other_endpoints_pass_and_are_charged(
    stage: tuple[Running, World, Upstream],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    fields: dict,
    usage: dict | None,
    tokens: tuple[int, int],
) -> None:
    gateway, world, upstream = stage
    body = json.dumps({"x_vendor": 1.50, "usage": usage}).encode()
    monkeypatch.setattr(upstream, "whole", lambda: body)
    reply = await gateway.client.post(path, json={"model": "m", **fields}, headers=bearer(world.add_key()))
    assert (reply.status_code, reply.content) == (200, body)
    assert upstream.received[0].path == path
    (record,) = world.records
    assert (record.prompt_tokens, record.completion_tokens, record.endpoint) == (*tokens, path)
