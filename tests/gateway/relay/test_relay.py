"""The relay over real sockets: bytes, headers, failures and clients that leave."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import httpx
import pytest
from tests.gateway.gateway_under_test import (
    IDENTITY,
    Running,
    World,
    bearer,
    eventually,
    running_gateway,
    upstream_times,
)
from tests.gateway.upstream import Upstream, running

from descant_gateway.catalogue.snapshot import Backend
from descant_gateway.config import ProcessConfig, Secret
from descant_gateway.providers.upstream_request import rewrite_body
from descant_gateway.request import read_request
from descant_gateway.usage.record import Outcome
from descant_wire.internal import read_identity

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Say hello"}]


@pytest.fixture
def world(upstream: Upstream) -> World:
    world = World()
    world.add_model("m", upstream.backend)
    world.add_model("alias", upstream.backend, upstream_name="org/real-name")
    return world


def ask(world: World, gateway: Running, *, headers: dict[str, str] | None = None, **fields: object):
    body = {"model": "m", "messages": MESSAGES, **fields}
    return gateway.client.post(CHAT, json=body, headers=bearer(world.add_key()) | (headers or {}))


# Bodies


def rewritten(body: bytes, upstream_name: str = "m") -> bytes:
    return rewrite_body(read_request(CHAT, body), upstream_name)


def test_a_compact_body_that_needs_no_change_is_not_changed() -> None:
    body = '{"model":"m","messages":[{"role": "user", "content":"\\u00fc ü"}],"x":1.50e3,"y":1e400}'.encode()
    assert rewritten(body) == body


def test_only_the_model_changes_for_an_alias() -> None:
    body = b'{"a":1.0,"model":"alias","messages":[ 1 , 2 ]}'
    assert rewritten(body, 'real"name') == b'{"a":1.0,"model":"real\\"name","messages":[ 1 , 2 ]}'


@pytest.mark.parametrize("options", [b"", b',"stream_options":null', b',"stream_options":{"include_usage":false}'])
def test_a_stream_is_always_asked_for_its_usage(options: bytes) -> None:
    fields = json.loads(rewritten(b'{"model":"m","stream":true' + options + b"}"))
    assert fields == {"model": "m", "stream": True, "stream_options": {"include_usage": True}}


def test_other_stream_options_stay() -> None:
    body = rewritten(b'{"model":"m","stream":true,"stream_options":{"chunk": 1.0}}')
    assert body == b'{"model":"m","stream":true,"stream_options":{"chunk":1.0,"include_usage":true}}'


def test_a_field_given_twice_arrives_once_with_the_value_that_was_decided_on() -> None:
    body = b'{"model":"secret","messages":[],"mod\\u0065l":"m"}'
    assert read_request(CHAT, body).model == "m"
    assert rewritten(body) == b'{"model":"m","messages":[]}'


async def test_what_the_client_sends_is_what_the_backend_gets(
    world: World, gateway: Running, upstream: Upstream
) -> None:
    body = '{"model":"m","messages":[{"role":"user","content":"ü"}],"unknown":{"a":1.0}}'.encode()
    await gateway.client.post(CHAT, content=body, headers=bearer(world.add_key()))
    assert upstream.received[0].body == body


async def test_a_whole_reply_passes_byte_for_byte(world: World, gateway: Running, upstream: Upstream) -> None:
    reply = await ask(world, gateway, model="alias")
    assert reply.content == upstream.whole()
    assert upstream.received[0].json["model"] == "org/real-name"
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-vendor"] == "kept"


@pytest.mark.parametrize("asks", [False, True])
async def test_a_stream_passes_byte_for_byte_but_for_usage_nobody_asked_for(
    world: World, gateway: Running, upstream: Upstream, asks: bool
) -> None:
    reply = await ask(world, gateway, stream=True, stream_options={"include_usage": asks})
    assert reply.content == upstream.stream_bytes(with_usage=asks)
    assert reply.headers["content-type"] == "text/event-stream"
    (record,) = world.records
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (7, 5, 3)
    assert not record.estimated
    assert record.ttft_ms is not None


async def test_completions_go_to_completions(world: World, gateway: Running, upstream: Upstream) -> None:
    body = {"model": "m", "prompt": "hi"}
    reply = await gateway.client.post("/v1/completions", json=body, headers=bearer(world.add_key()))
    assert reply.status_code == 200
    assert upstream.received[0].path == "/v1/completions"


async def test_a_stream_is_not_held_back(world: World, gateway: Running, upstream: Upstream) -> None:
    upstream.delay_s = 0.1
    body = {"model": "m", "messages": MESSAGES, "stream": True}
    async with gateway.client.stream("POST", CHAT, json=body, headers=bearer(world.add_key())) as reply:
        arrivals = [time.monotonic() async for _ in reply.aiter_raw()]
    assert len(arrivals) >= upstream.num_tokens
    assert arrivals[-1] - arrivals[0] > 0.3


async def test_unasked_usage_is_charged_by_chunks_where_the_backend_gives_none(
    world: World, gateway: Running, upstream: Upstream
) -> None:
    upstream.gives_usage = False
    await ask(world, gateway, stream=True)
    (record,) = world.records
    assert (record.completion_tokens, record.estimated) == (5, True)
    assert record.prompt_tokens > 0


# Headers


async def test_the_client_s_key_and_hop_headers_stay_here(upstream: Upstream, valkey_url: str) -> None:
    upstream.api_key = "backend-key"
    world = World()
    world.add_model("m", upstream.backend)
    key = world.add_key()
    given = {
        "x-request-id": "client-17",
        "traceparent": "00-aa-bb-01",
        "cookie": "secret=1",
        "x-api-key": key,
        "x-descant-tenant": "forged",
        "x-descant-priority": "-9",
        "x-descant-identity": "forged",
        "connection": "keep-alive, x-forged",
        "te": "trailers",
        "accept-encoding": "gzip",
    }
    identity = replace(IDENTITY, internal_key=Secret("i" * 32))
    async with running_gateway(world, valkey_url, identity=identity) as gateway:
        reply = await ask(world, gateway, headers=bearer(key) | given)
        team = world.teams[world.records[0].team_id]
        tenant = gateway.gateway.channel.identity_of(team).tenant
    received = upstream.received[0].headers
    assert received["authorization"] == "Bearer backend-key"
    assert received["x-request-id"] == "client-17"
    assert received["traceparent"] == "00-aa-bb-01"
    identity = read_identity(received, b"i" * 32)
    assert (identity.tenant, identity.priority, identity.is_signed) == (tenant, 0, True)
    assert team.id.hex not in str(received)
    assert set(received) <= {
        *("host", "authorization", "x-request-id", "traceparent", "content-type", "content-length"),
        *("x-descant-tenant", "x-descant-charge", "x-descant-priority", "x-descant-identity"),
    }
    assert key.encode() not in b"".join(value for _, value in upstream.received[0].raw_headers)
    assert reply.headers["x-request-id"] == "client-17"


@pytest.mark.parametrize("given", ["", "has space", "x" * 129, "a/b", 'a"b'])
async def test_an_odd_request_id_is_replaced(world: World, gateway: Running, given: str) -> None:
    reply = await ask(world, gateway, headers={"x-request-id": given})
    assert reply.headers["x-request-id"].startswith("req_")
    assert world.records[0].request_id == reply.headers["x-request-id"]


async def test_no_key_is_sent_where_the_backend_has_none(world: World, gateway: Running, upstream: Upstream) -> None:
    await ask(world, gateway)
    assert "authorization" not in upstream.received[0].headers


# Backends that fail


@pytest.fixture
async def two(valkey_url: str) -> AsyncIterator[tuple[Running, World, Upstream, Upstream]]:
    async with running(Upstream(name="a")) as a, running(Upstream(name="b")) as b:
        world = World()
        world.add_model("m", a.backend, b.backend)
        # Probes are too rare to help: the request itself has to find out.
        async with running_gateway(world, valkey_url, upstreams=upstream_times(health_interval_s=60.0)) as gateway:
            yield gateway, world, a, b


async def test_a_backend_that_is_not_ready_is_passed_over(two: tuple[Running, World, Upstream, Upstream]) -> None:
    gateway, world, a, b = two
    a.status = 503
    for _ in range(4):
        assert (await ask(world, gateway)).status_code == 200
    assert len(b.received) == 4
    assert {record.backend for record in world.records} == {"b"}


async def test_a_backend_that_refuses_connections_is_passed_over(valkey_url: str) -> None:
    world = World()
    async with running(Upstream(name="gone")) as gone, running(Upstream(name="here")) as here:
        world.add_model("m", gone.backend, here.backend)
        async with running_gateway(world, valkey_url, upstreams=upstream_times(health_interval_s=60.0)) as gateway:
            world.backends[0] = type(gone.backend)(name="gone", base_url="http://127.0.0.1:1")
            for stream in (False, True, False):
                assert (await ask(world, gateway, stream=stream)).status_code == 200
    assert [record.backend for record in world.records] == ["here"] * 3
    assert [record.outcome for record in world.records] == [Outcome.COMPLETED] * 3


async def test_requests_go_where_less_is_going_on(two: tuple[Running, World, Upstream, Upstream]) -> None:
    gateway, world, a, b = two
    a.delay_s = b.delay_s = 0.2
    await asyncio.gather(*(ask(world, gateway) for _ in range(10)))
    assert len(a.received) == len(b.received) == 5
    assert all(state.num_in_flight == 0 for state in gateway.gateway.backends.states.values())


async def test_no_backend_at_all_is_503_with_retry_after(world: World, gateway: Running, upstream: Upstream) -> None:
    upstream.status = 503
    reply = await ask(world, gateway)
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "no_healthy_backend"
    assert "retry-after" in reply.headers
    (record,) = world.records
    assert (record.outcome, record.prompt_tokens, record.completion_tokens) == (Outcome.UPSTREAM_FAILED, 0, 0)


async def test_probes_take_a_backend_out_and_bring_it_back(world: World, gateway: Running, upstream: Upstream) -> None:
    state = gateway.gateway.backends.state(upstream.name)
    upstream.ready = False
    await eventually(lambda: not state.is_healthy)
    assert (await ask(world, gateway)).status_code == 503
    assert not upstream.received
    upstream.ready = True
    await eventually(lambda: state.is_healthy)
    assert (await ask(world, gateway)).status_code == 200


async def test_a_stream_that_breaks_ends_with_an_error_event(
    world: World, gateway: Running, upstream: Upstream
) -> None:
    upstream.dies_after = 3
    reply = await ask(world, gateway, stream=True)
    assert reply.status_code == 200
    *events, last = reply.text.removesuffix("\n\n").split("\n\n")
    assert len(events) == 4
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert "[DONE]" not in reply.text
    (record,) = world.records
    assert (record.outcome, record.completion_tokens, record.estimated) == (Outcome.UPSTREAM_FAILED, 3, True)


async def test_a_hung_stream_ends_with_an_error_event(upstream: Upstream, world: World, valkey_url: str) -> None:
    upstream.num_tokens = 2
    upstream.delay_s = 30
    async with running_gateway(world, valkey_url, upstreams=upstream_times(idle_timeout_s=0.2)) as gateway:
        reply = await ask(world, gateway, stream=True)
    assert '"code":"timeout"' in reply.text
    await eventually(lambda: upstream.num_cancelled == 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_backend_that_never_begins_is_504_and_cancelled(
    upstream: Upstream, world: World, valkey_url: str, stream: bool
) -> None:
    upstream.first_delay_s = 30
    times = upstream_times(first_byte_timeout_s=0.2, deadline_s=0.2)
    async with running_gateway(world, valkey_url, upstreams=times) as gateway:
        reply = await ask(world, gateway, stream=stream)
        assert reply.status_code == 504
        assert reply.json()["error"]["code"] == "timeout"
        await eventually(lambda: upstream.num_cancelled == 1)
    (record,) = world.records
    assert (record.outcome, record.status, record.prompt_tokens) == (Outcome.UPSTREAM_FAILED, 504, 0)


async def test_a_refusal_of_the_backend_passes_as_it_is(world: World, gateway: Running, upstream: Upstream) -> None:
    upstream.status = 400
    for stream in (False, True):
        reply = await ask(world, gateway, stream=stream)
        assert (reply.status_code, reply.content) == (400, upstream.error_body)
    assert [record.outcome for record in world.records] == [Outcome.REFUSED] * 2
    assert [record.prompt_tokens + record.completion_tokens for record in world.records] == [0, 0]


@pytest.mark.parametrize("status", [401, 403, 500, 502, 302])
async def test_a_failure_of_the_backend_is_502_and_tells_nothing(
    world: World, gateway: Running, upstream: Upstream, status: int
) -> None:
    upstream.status = status
    upstream.error_body = b"Traceback: internal-secret"
    upstream.content_type = "text/plain"
    reply = await ask(world, gateway)
    assert reply.status_code == 502
    assert reply.json()["error"]["type"] == "server_error"
    assert "internal-secret" not in reply.text


async def test_a_stale_kept_connection_is_not_an_error(valkey_url: str) -> None:
    """A server that closes every connection after its reply, without having said so."""

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"POST" in head:
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.close()

    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    world = World()
    world.add_model("m", type(Upstream().backend)(name="closing", base_url=url))
    async with server, running_gateway(world, valkey_url, upstreams=upstream_times(health_interval_s=60.0)) as gateway:
        for pause_s in (0.0, 0.02, 0.021, 0.019, 0.05):
            await asyncio.sleep(pause_s)
            assert (await ask(world, gateway)).status_code == 200


class Breaking:
    """A backend that every request takes down, some time after it came."""

    def __init__(self, seen: list[str], *, after_s: float = 0.0, keeps: bool = False) -> None:
        self._seen = seen
        self._after_s = after_s
        self._ending = "keep-alive" if keeps else "close"

    @asynccontextmanager
    async def running(self, name: str) -> AsyncIterator[Backend]:
        async with await asyncio.start_server(partial(self._serve, name), "127.0.0.1", 0) as self._server:
            yield Backend(name=name, base_url=f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}")

    async def _serve(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (head := await reader.readuntil(b"\r\n\r\n")).startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: %s\r\n\r\n" % self._ending.encode())
            if self._ending == "close":
                writer.close()
                return
        assert head.startswith(b"POST")
        self._seen.append(name)
        await asyncio.sleep(self._after_s)
        self._server.close()
        writer.transport.abort()


@pytest.mark.parametrize("keeps", [False, True])
async def test_what_breaks_a_backend_is_sent_to_no_other(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    """Neither on a fresh connection nor, where it takes its time to break, on one that was kept from the probes."""
    monkeypatch.setattr("descant_gateway.relay.exchange._STALE_WITHIN_S", 0.05)
    seen: list[str] = []
    world, breaking = World(), partial(Breaking, seen, after_s=0.2 if keeps else 0.0, keeps=keeps)
    async with breaking().running("first") as first, breaking().running("second") as second:
        world.add_model("m", first, second)
        async with running_gateway(world, valkey_url, upstreams=upstream_times(health_interval_s=60.0)) as gateway:
            reply = await ask(world, gateway)
    assert (reply.status_code, len(seen)) == (502, 1)
    assert "was not repeated" in reply.json()["error"]["message"]


# Clients that leave


async def test_leaving_a_stream_cancels_it_upstream_and_is_charged_for_what_came(
    world: World, gateway: Running, upstream: Upstream
) -> None:
    upstream.num_tokens, upstream.delay_s = 1000, 0.02
    body = {"model": "m", "messages": MESSAGES, "stream": True}
    seen = b""
    async with gateway.client.stream("POST", CHAT, json=body, headers=bearer(world.add_key())) as reply:
        async for chunk in reply.aiter_raw():
            seen += chunk
            if seen.count(b"data:") > 4:
                break
    left_at = time.monotonic()
    await eventually(lambda: upstream.num_cancelled == 1)
    assert time.monotonic() - left_at < 1
    await eventually(lambda: len(world.records) == 1)
    (record,) = world.records
    assert (record.outcome, record.status, record.estimated) == (Outcome.CLIENT_LEFT, 499, True)
    assert seen.count(b'"content":"t') <= record.completion_tokens <= upstream.num_tokens_sent + 1


@pytest.mark.parametrize(
    "num_bytes", [10, 300_000]
)  # while the server takes a large body it stops reading now and then
async def test_leaving_a_whole_reply_cancels_it_upstream(
    num_bytes: int, world: World, gateway: Running, upstream: Upstream
) -> None:
    upstream.delay_s = 30
    messages = [{"role": "user", "content": "x" * num_bytes}]
    with pytest.raises(httpx.ReadTimeout):
        await gateway.client.post(
            CHAT, json={"model": "m", "messages": messages}, headers=bearer(world.add_key()), timeout=0.3
        )
    await eventually(lambda: upstream.num_cancelled == 1)
    await eventually(lambda: len(world.records) == 1)
    assert world.records[0].outcome == Outcome.CLIENT_LEFT
    assert world.records[0].prompt_tokens > 0


async def test_leaving_before_the_body_is_complete_costs_nothing(world: World, gateway: Running) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {world.add_key()}\r\ncontent-length: 100\r\n\r\n"
    writer.write(head.encode() + b'{"model"')
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await asyncio.sleep(0.1)
    assert world.records == []
    assert (await ask(world, gateway)).status_code == 200


@pytest.mark.parametrize("begun", [b"", b'{"model"'])
async def test_a_body_that_does_not_come_is_408(
    world: World, gateway: Running, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr("descant_gateway.call._BODY_TIMEOUT_S", 0.2)
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {world.add_key()}\r\ncontent-length: 100\r\n\r\n"
    writer.write(head.encode() + begun)
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    writer.close()
    assert world.records == []


async def test_a_backend_without_a_possible_address_costs_the_others_nothing(
    world: World, gateway: Running, upstream: Upstream
) -> None:
    world.backends.append(Backend(name="odd", base_url="http://a..b:80"))
    await gateway.gateway.backends.probe_all()
    states = gateway.gateway.backends.states
    assert (states["odd"].is_healthy, states[upstream.backend.name].is_healthy) == (False, True)
    assert (await ask(world, gateway)).status_code == 200


# Sizes


async def test_a_body_above_the_limit_is_413(upstream: Upstream, world: World, valkey_url: str) -> None:
    async with running_gateway(world, valkey_url, process=ProcessConfig(max_body_bytes=1000)) as gateway:
        key = bearer(world.add_key())

        async def in_pieces() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 100

        for body in (b"x" * 2000, in_pieces()):
            reply = await gateway.client.post(CHAT, content=body, headers=key)
            assert (reply.status_code, reply.json()["error"]["code"]) == (413, "payload_too_large")
        assert (await ask(world, gateway)).status_code == 200
    assert len(upstream.received) == 1


async def test_odd_slashes_reach_the_same_endpoint(world: World, gateway: Running, upstream: Upstream) -> None:
    body = {"model": "m", "messages": MESSAGES}
    for path in ("/v1/chat/completions/", f"{gateway.url}//v1/chat//completions"):
        reply = await gateway.client.post(path, json=body, headers=bearer(world.add_key()))
        assert reply.status_code == 200
    assert {received.path for received in upstream.received} == {CHAT}


async def test_a_client_that_stops_reading_holds_nothing_upstream(
    upstream: Upstream, world: World, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("descant_gateway.relay.exchange._LAST_WORDS_S", 0.1)
    upstream.num_tokens = 200_000  # more than all the buffers between hold
    async with running_gateway(world, valkey_url, upstreams=upstream_times(idle_timeout_s=0.3)) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = json.dumps({"model": "m", "messages": MESSAGES, "stream": True})
        key = world.add_key()
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        await eventually(lambda: upstream.num_running == 1)
        await eventually(lambda: upstream.num_running == 0 and len(world.records) == 1, timeout_s=15)
        assert gateway.gateway.backends.state(upstream.name).num_in_flight == 0
        writer.close()


async def test_a_request_that_a_backend_broke_off_at_is_not_given_to_the_next(valkey_url: str) -> None:
    """What kills one engine must not go round and kill them all."""
    num_posts = 0

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_posts
        head = await reader.readuntil(b"\r\n\r\n")
        if b"POST" in head:
            num_posts += 1
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
        writer.close()

    servers = [await asyncio.start_server(break_off, "127.0.0.1", 0) for _ in range(3)]
    try:
        world = World()
        ports = [server.sockets[0].getsockname()[1] for server in servers]
        backends = [Backend(name=f"b{port}", base_url=f"http://127.0.0.1:{port}") for port in ports]
        world.add_model("m", *backends)
        async with running_gateway(world, valkey_url) as gateway:
            reply = await ask(world, gateway)
        assert reply.status_code == 502
        assert "not repeated" in reply.json()["error"]["message"]
        assert num_posts <= 2  # once more to the same backend, in case only the connection was stale
    finally:
        for server in servers:
            server.close()
            await server.wait_closed()
