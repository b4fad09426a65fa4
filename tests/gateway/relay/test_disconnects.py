"""Clients that leave at random moments: upstream is cancelled, the charge is what was generated, nothing is left.

The backend is an engine as far as the gateway can tell: it publishes its load, and tells what a call came to. How many
there are is DESCANT_DISCONNECTS: 200, or 1,000 for the figure in docs/results.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from tests.gateway.gateway_under_test import Running, World, bearer, eventually, running_gateway

from descant_gateway.catalogue.snapshot import Backend
from descant_gateway.usage.record import Outcome

CHAT = "/v1/chat/completions"
NUM_REQUESTS = int(os.environ.get("DESCANT_DISCONNECTS", "200"))
PROMPT_TOKENS = 11
TOKEN_S = 0.01


@dataclass
class CountingEngine:
    """Generates a token every 10 ms, tells what each call came to, and notes when one ended."""

    tokens: dict[str, int] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    ended: dict[str, asyncio.Event] = field(default_factory=dict)
    ended_at: dict[str, float] = field(default_factory=dict)
    knows_calls: bool = True
    """False: as another replica behind its address, or one that was started anew."""
    most_told: int = 1 << 30
    """Tokens that it says a call came to, at most."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        fields, charge = json.loads(await request.read()), request.headers["x-descant-charge"]
        self.tokens[charge] = 0
        self.running.add(charge)
        self.ended[charge] = asyncio.Event()
        try:
            return await (
                self._stream(request, fields, charge) if fields.get("stream") else self._whole(fields, charge)
            )
        finally:
            self.ended_at[charge] = time.monotonic()
            self.running.discard(charge)
            self.ended[charge].set()

    async def _whole(self, fields: dict, charge: str) -> web.Response:
        await self._generate(fields["max_tokens"], charge)
        return web.json_response({"choices": [], "usage": self.usage(charge)})

    async def _stream(self, request: web.Request, fields: dict, charge: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(fields["max_tokens"]):
            # Two tokens a chunk: whoever counts chunks is wrong.
            await self._generate(2, charge)
            await response.write(b'data: {"choices":[{"delta":{"content":"x y"}}]}\n\n')
        usage = json.dumps({"choices": [], "usage": self.usage(charge)})
        await response.write(f"data: {usage}\n\ndata: [DONE]\n\n".encode())
        return response

    async def _generate(self, num_tokens: int, charge: str) -> None:
        for _ in range(num_tokens):
            await asyncio.sleep(TOKEN_S)
            self.tokens[charge] += 1

    def usage(self, charge: str) -> dict[str, int]:
        return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": self.tokens[charge]}

    async def show_load(self, request: web.Request) -> web.Response:
        load = {"num_running": len(self.running), "num_waiting": 0, "max_running": 10_000, "num_queued_tokens": 0}
        return web.json_response(load | {"kv_usage": 0.0, "residency": 1, "adapters": {}})

    async def show_usage(self, request: web.Request) -> web.Response:
        charge = request.match_info["charge"]
        if charge not in self.tokens or not self.knows_calls:
            return web.json_response({"error": {"code": "unknown_charge"}}, status=404)
        async with asyncio.timeout(1.5):
            await self.ended[charge].wait()
        told = min(self.tokens[charge], self.most_told)
        return web.json_response(self.usage(charge) | {"completion_tokens": told, "cached_tokens": 0})


@asynccontextmanager
async def serving_engine(engine: CountingEngine) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post(CHAT, engine.answer)
    app.router.add_get("/internal/load", engine.show_load)
    app.router.add_get("/internal/usage/{charge}", engine.show_usage)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class Stage:
    engine: CountingEngine
    world: World
    gateway: Running
    key: str
    left_at: dict[str, float] = field(default_factory=dict)
    """By request id."""

    async def leave(self, number: int, dice: random.Random) -> None:
        """Asks, and is gone after a random time."""
        host, port = self.gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({"model": "m", "messages": [], "max_tokens": 400, "stream": dice.random() < 0.5})
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.key}\r\nx-request-id: cut-{number}\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        await asyncio.sleep(dice.random() * 0.6)
        self.left_at[f"cut-{number}"] = time.monotonic()
        writer.transport.abort() if dice.random() < 0.5 else writer.close()
        del reader

    async def read(self, num_events: int, then: Callable[[], None]) -> int:
        """Leaves a stream after so many events, and after `then`."""
        body = {"model": "m", "messages": [], "max_tokens": 400, "stream": True}
        num_read = 0
        async with self.gateway.client.stream("POST", CHAT, json=body, headers=bearer(self.key)) as reply:
            async for line in reply.aiter_lines():
                num_read += line.startswith("data:")
                if num_read == num_events:
                    then()
                    break
        return num_read


@pytest.fixture
async def stage(valkey_url: str) -> AsyncIterator[Stage]:
    engine, world = CountingEngine(), World()
    async with serving_engine(engine) as url:
        backend = Backend(name="engine", base_url=url)
        world.add_model("m", backend)
        async with running_gateway(world, valkey_url) as gateway:
            await eventually(lambda: gateway.gateway.backends.state("engine").report is not None)
            yield Stage(engine, world, gateway, world.add_key())


async def test_whoever_leaves_pays_what_was_generated_and_leaves_nothing(stage: Stage) -> None:
    dice = random.Random(7)
    for start in range(0, NUM_REQUESTS, 40):
        numbers = range(start, min(start + 40, NUM_REQUESTS))
        await asyncio.gather(*(stage.leave(number, dice) for number in numbers))
    await eventually(lambda: not stage.engine.running, timeout_s=10)
    await eventually(lambda: len(stage.world.records) >= len(stage.engine.tokens), timeout_s=10)
    assert len(stage.engine.tokens) > NUM_REQUESTS / 2
    assert any(record.stream for record in stage.world.records)
    assert not all(record.stream for record in stage.world.records)
    for record in stage.world.records:
        assert record.outcome is Outcome.CLIENT_LEFT
        assert not record.estimated
        generated = stage.engine.tokens.get(record.charge_id.hex)
        expected = (0, 0) if generated is None else (PROMPT_TOKENS, generated)
        assert (record.prompt_tokens, record.completion_tokens) == expected
        if generated is not None:
            waited = stage.engine.ended_at[record.charge_id.hex] - stage.left_at[record.request_id]
            assert waited < 1.0, "upstream was not cancelled within a second"
    assert len({record.charge_id for record in stage.world.records}) == len(stage.world.records)
    assert stage.gateway.gateway.backends.state("engine").num_in_flight == 0


async def test_an_engine_that_does_not_tell_leaves_an_estimate(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("descant_gateway.relay.ended_usage.ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(stage.engine, "tokens", _Forgetful())
    await stage.leave(1, _Late())
    await eventually(lambda: len(stage.world.records) == 1)
    assert stage.world.records[0].estimated


async def test_who_gives_itself_too_little_time_pays_what_was_generated(stage: Stage) -> None:
    headers = bearer(stage.key) | {"x-descant-timeout": "0.2"}
    reply = await stage.gateway.client.post(
        CHAT, json={"model": "m", "messages": [], "max_tokens": 400}, headers=headers
    )
    assert reply.status_code == 504
    (record,) = stage.world.records
    assert (record.outcome, record.estimated) == (Outcome.CLIENT_LEFT, False)
    assert (record.prompt_tokens, record.completion_tokens) == (
        PROMPT_TOKENS,
        stage.engine.tokens[record.charge_id.hex],
    )
    assert record.completion_tokens > 0


async def test_an_engine_that_forgot_a_call_does_not_make_it_free(stage: Stage) -> None:
    num_read = await stage.read(5, then=lambda: setattr(stage.engine, "knows_calls", False))
    await eventually(lambda: len(stage.world.records) == 1)
    (record,) = stage.world.records
    assert (record.outcome, record.estimated) == (Outcome.CLIENT_LEFT, True)
    assert record.completion_tokens >= num_read


async def test_what_came_through_is_the_least_that_is_paid(stage: Stage) -> None:
    num_read = await stage.read(5, then=lambda: setattr(stage.engine, "most_told", 1))
    await eventually(lambda: len(stage.world.records) == 1)
    (record,) = stage.world.records
    assert (record.outcome, record.estimated, record.prompt_tokens) == (Outcome.CLIENT_LEFT, False, PROMPT_TOKENS)
    assert record.completion_tokens >= num_read


class _Late(random.Random):
    def random(self) -> float:
        return 0.4


class _Forgetful(dict):
    """Lets every question for a call's usage fail."""

    def __contains__(self, key: object) -> bool:
        raise RuntimeError("lost")
