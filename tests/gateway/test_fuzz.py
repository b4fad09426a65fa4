"""Whatever bytes clients and backends send: no 500, no request lost from the books, the next one is served."""

import asyncio
import contextlib
import json
from collections.abc import Coroutine
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from descant_gateway.endpoints import ENDPOINTS
from descant_gateway.relay.stream_tap import StreamTap
from descant_gateway.request import InferenceRequest, read_request
from descant_gateway.usage.meter import Meter
from descant_wire.errors import ApiError

from .gateway_under_test import World, bearer, running_gateway
from .upstream import Upstream, running

CHAT = "/v1/chat/completions"
FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FUZZ_SERVER = settings(FUZZ, max_examples=60)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n",
          "priority", "input", "tools", "best_of", "metadata", "api_base", "cache_salt")  # fmt: skip
bodies = st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=8)
mutations = st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=4)


def mutated(text: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    for place, piece in changes:
        at = place % (len(text) + 1)
        text = text[:at] + piece + text[at + len(piece) % 2 :]
    return text


class _Refused(Exception):
    """With a status that says that the request is at fault."""


def _read(path: str, body: bytes) -> InferenceRequest:
    try:
        return read_request(path, body)
    except ApiError as refusal:
        raise _Refused if 400 <= refusal.status < 500 else refusal from None


@FUZZ
@given(st.sampled_from(sorted(ENDPOINTS)), bodies, mutations)
@example(CHAT, {"model": "m", "max_tokens": 2**70}, [])
@example(CHAT, {"model": "m", "n": -1}, [])
@example(CHAT, {"model": "m", "stream": True, "stream_options": []}, [])
def test_a_body_is_read_or_refused(path: str, fields: dict[str, Any], changes: list[tuple[int, bytes]]) -> None:
    body = mutated(json.dumps(fields).encode(), changes)
    with contextlib.suppress(_Refused):
        request = _read(path, body)
        assert request.max_tokens is None or request.max_tokens >= 0
        assert request.estimated_prompt_tokens >= 0
        assert request.max_choices >= 1


@pytest.mark.parametrize("depth", [100, 1_000, 100_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_a_deep_body_is_refused(depth: int, opening: bytes) -> None:
    body = b'{"model":"m","messages":' + opening * depth
    with pytest.raises(ApiError):
        read_request(CHAT, body)


events = st.one_of(
    json_values.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n\n"),
    st.binary(max_size=40),
    st.sampled_from(
        [b"data: [DONE]\n\n", b"\n\n", b": ping\n\n", b"event: x\r\ndata: {}\r\n\r\n", b"data:\n\n",
         b'data: {"usage":[]}\n\n',
         b'data: {"usage":{"prompt_tokens":-5,"completion_tokens":1}}\n\n', b'data: {"choices":7}\n\n',
         b'data: {"usage":{"prompt_tokens":1e999}}\n\n', b'data: {"error":{"message":"x"}}\n\n', b"\xff\xfe\n\n"]
    ),
)  # fmt: skip


@FUZZ
@given(st.lists(events, max_size=8), st.lists(st.integers(0, 500), max_size=8), st.booleans())
def test_a_stream_is_passed_on_whatever_it_holds(pieces: list[bytes], cuts: list[int], hides_usage: bool) -> None:
    """What is not a usage chunk comes out as it came in, however it was cut; counts never go below zero."""
    data, meter = b"".join(pieces), Meter()
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    tap, out = StreamTap(meter, hides_usage=hides_usage), b""
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        try:
            out += tap.feed(data[start:end])
        except (ValueError, msgspec.MsgspecError):
            return  # the exchange breaks such a stream off
    out += tap.finish()
    assert hides_usage or out == data
    assert len(out) <= len(data)


@pytest.fixture(scope="module")
def loop() -> Any:
    """One loop for all examples of a test, in which the servers go on."""
    with asyncio.Runner() as runner:
        yield runner


class Stage:
    def __init__(self, client: httpx.AsyncClient, world: World, upstream: Upstream, key: str) -> None:
        self.client, self.world, self.upstream, self.key = client, world, upstream, key


@pytest.fixture
def stage(loop: asyncio.Runner, valkey_url: str) -> Any:
    opened: list[Any] = []

    async def open_all() -> Stage:
        upstream = running(Upstream())
        engine = await upstream.__aenter__()
        world = World()
        world.add_model("m", engine.backend)
        gateway = running_gateway(world, valkey_url)
        served = await gateway.__aenter__()
        opened.extend([gateway, upstream])
        return Stage(served.client, world, engine, world.add_key())

    async def close_all() -> None:
        for each in opened:
            await each.__aexit__(None, None, None)

    yield loop.run(open_all())
    loop.run(close_all())


def run(loop: asyncio.Runner, coroutine: Coroutine[Any, Any, None]) -> None:
    loop.run(asyncio.wait_for(coroutine, 20))


header_names = st.sampled_from(
    ["x-request-id", "x-session-id", "x-descant-timeout", "x-descant-canary", "x-descant-first-byte-timeout",
     "traceparent", "accept", "x-forwarded-for", "x-descant-tenant", "x-descant-charge", "content-type", "x-tags"]
)  # fmt: skip
header_values = st.binary(max_size=40).map(lambda raw: bytes(byte for byte in raw if byte >= 32 and byte != 127))


@FUZZ_SERVER
@given(st.dictionaries(header_names, header_values, max_size=4))
def test_headers_break_nothing(loop: asyncio.Runner, stage: Stage, headers: dict[str, bytes]) -> None:
    async def ask() -> None:
        asked = [(name.encode(), value.strip()) for name, value in headers.items()]
        asked += [(b"authorization", f"Bearer {stage.key}".encode())]
        reply = await stage.client.post(CHAT, json={"model": "m", "messages": []}, headers=asked)
        assert reply.status_code in {200, 400, 415}, reply.text
        for received in stage.upstream.received:
            assert "x-forwarded-for" not in received.headers

    run(loop, ask())


@FUZZ_SERVER
@given(st.binary(max_size=60))
@example(b"Bearer dsc_")
@example(b"Bearer \xff\xff")
@example(b"Bearer dsc_abcdefghijkl_" + b"A" * 40 + b"'OR'1'='1")
def test_no_credential_but_the_right_one_opens_anything(loop: asyncio.Runner, stage: Stage, credential: bytes) -> None:
    async def ask() -> None:
        clean = bytes(byte for byte in credential if byte >= 32 and byte != 127).strip()
        reply = await stage.client.post(CHAT, json={"model": "m"}, headers=[(b"authorization", clean)])
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")

    run(loop, ask())


@FUZZ_SERVER
@given(st.binary(max_size=200), st.booleans(), st.sampled_from([200, 200, 400, 500, 503]))
def test_whatever_a_backend_answers_is_told_and_booked(
    loop: asyncio.Runner, stage: Stage, answer: bytes, stream: bool, status: int
) -> None:
    async def ask() -> None:
        booked = len(stage.world.records)
        upstream = stage.upstream
        upstream.status, upstream.error_body = status, answer
        upstream.whole = lambda: answer  # type: ignore[method-assign]
        upstream.events = lambda *, with_usage: [answer.decode("latin-1").replace("\n", "")]  # type: ignore[method-assign]
        body = {"model": "m", "messages": [], "stream": stream}
        try:
            reply = await stage.client.post(CHAT, json=body, headers=bearer(stage.key))
            assert reply.status_code in {200, 400, 500, 502, 503}
        finally:
            del upstream.whole, upstream.events
            upstream.status = 200
        assert len(stage.world.records) == booked + 1

    run(loop, ask())
