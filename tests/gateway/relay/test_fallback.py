"""Where a request goes when its backend or its model does not answer, over real sockets."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import httpx
import msgspec
import pytest
from tests.gateway.gateway_under_test import Running, World, bearer, eventually, running_gateway, upstream_times
from tests.gateway.upstream import Upstream, running

from descant_gateway.catalogue.routing_policy import FailureKind, Fallback, RoutingPolicy, TimeLimits, Variant
from descant_gateway.catalogue.snapshot import Backend, ModelRoute, RateLimits
from descant_gateway.usage.record import Outcome

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Say hello"}]


@dataclass
class Stage:
    """Backends one, two and out, the last outside the house; a model on each."""

    world: World
    gateway: Running
    upstreams: dict[str, Upstream]
    keys: dict[str, str] = field(default_factory=dict)

    def route(self, model: str, **policy: object) -> None:
        index = next(number for number, each in enumerate(self.world.models) if each.name == model)
        self.world.models[index] = msgspec.structs.replace(
            self.world.models[index],
            policy=RoutingPolicy(**policy),  # type: ignore[arg-type]
        )

    def backend(self, name: str, **fields: object) -> None:
        self.world.backends = [
            msgspec.structs.replace(each, **fields) if each.name == name else each for each in self.world.backends
        ]

    async def ask(self, model: str = "first", headers: dict[str, str] | None = None, **fields: object):
        key = self.keys.setdefault("key", "") or self.world.add_key()
        body = {"model": model, "messages": MESSAGES, **fields}
        return await self.gateway.client.post(CHAT, json=body, headers=bearer(key) | (headers or {}))

    def allow_external(self) -> None:
        self.world.teams = {
            key: msgspec.structs.replace(team, allows_external=True) for key, team in self.world.teams.items()
        }


@pytest.fixture
async def stage(valkey_url: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        upstreams = {name: Upstream(name=name) for name in ("one", "two", "out")}
        for upstream in upstreams.values():
            await stack.enter_async_context(running(upstream))
        world = World()
        for model, name in (("first", "one"), ("second", "two"), ("cloud", "out")):
            world.add_model(model, upstreams[name].backend)
        gateway = await stack.enter_async_context(
            running_gateway(
                world, valkey_url, upstreams=upstream_times(health_interval_s=60.0, first_byte_timeout_s=0.3)
            )
        )
        stage = Stage(world, gateway, upstreams)
        stage.keys["key"] = world.add_key()
        stage.backend("out", is_external=True)
        yield stage


def fail_with(upstream: Upstream, kind: FailureKind) -> None:
    match kind:
        case FailureKind.SERVER_ERROR:
            upstream.status = 500
        case FailureKind.RATE_LIMITED:
            upstream.status = 429
        case FailureKind.CONTEXT_LENGTH:
            upstream.status = 400
            upstream.error_body = (
                b'{"error":{"message":"long","type":"x","param":null,"code":"context_length_exceeded"}}'
            )
        case FailureKind.TIMEOUT:
            upstream.first_delay_s = 30


KINDS = [FailureKind.SERVER_ERROR, FailureKind.RATE_LIMITED, FailureKind.CONTEXT_LENGTH, FailureKind.TIMEOUT]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_fallback_serves_the_failures_it_is_for(stage: Stage, kind: FailureKind) -> None:
    stage.route("first", fallbacks=(Fallback(model="second", on=frozenset({kind})),))
    fail_with(stage.upstreams["one"], kind)
    reply = await stage.ask(stream=True)
    assert reply.status_code == 200
    assert (reply.headers["x-descant-backend"], reply.headers["x-descant-route-reason"]) == (
        "two",
        f"fallback:{kind.value};only",
    )
    assert stage.upstreams["two"].received[0].json["model"] == "second"
    (record,) = stage.world.records
    assert (record.model, record.served_model, record.backend) == ("first", "second", "two")
    assert (record.outcome, record.completion_tokens) == (Outcome.COMPLETED, 5)


@pytest.mark.parametrize("kind", KINDS)
async def test_and_no_others(stage: Stage, kind: FailureKind) -> None:
    others = frozenset(FailureKind) - {kind}
    stage.route("first", fallbacks=(Fallback(model="second", on=others),))
    fail_with(stage.upstreams["one"], kind)
    reply = await stage.ask(stream=True)
    assert reply.status_code == {"5xx": 502, "429": 429, "context_length": 400, "timeout": 504}[kind.value]
    assert reply.headers["x-descant-backend"] == "one"
    assert not stage.upstreams["two"].received
    if kind in (FailureKind.RATE_LIMITED, FailureKind.CONTEXT_LENGTH):
        assert reply.content == stage.upstreams["one"].error_body


async def test_a_backend_that_is_gone_is_a_failure_to_connect(stage: Stage) -> None:
    stage.route("first", fallbacks=(Fallback(model="second", on=frozenset({FailureKind.CONNECT})),))
    stage.backend("one", base_url="http://127.0.0.1:1")
    assert (await stage.ask()).headers["x-descant-route-reason"] == "fallback:connect;only"
    stage.gateway.gateway.backends.state("one").is_healthy = False
    assert (await stage.ask()).headers["x-descant-backend"] == "two"


async def test_a_chain_is_tried_in_its_order(stage: Stage) -> None:
    stage.route("first", fallbacks=(Fallback(model="gone"), Fallback(model="second"), Fallback(model="cloud")))
    stage.upstreams["one"].status = stage.upstreams["two"].status = 500
    stage.allow_external()
    assert (await stage.ask()).headers["x-descant-backend"] == "out"
    assert stage.world.records[0].served_model == "cloud"


async def test_data_does_not_leave_the_house_unless_the_team_may(stage: Stage) -> None:
    refused = await stage.ask("cloud")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "data_must_stay")
    stage.route("first", fallbacks=(Fallback(model="cloud"),))
    stage.upstreams["one"].status = 500
    kept = await stage.ask()
    assert kept.status_code == 502
    assert "may not go" in kept.json()["error"]["message"]
    assert not stage.upstreams["out"].received
    stage.allow_external()
    assert (await stage.ask("cloud")).status_code == 200
    assert (await stage.ask()).headers["x-descant-backend"] == "out"
    received = stage.upstreams["out"].received[0].headers
    assert not {name for name in received if name.startswith("x-descant")}


async def test_a_full_model_sends_the_rest_to_its_fallback(stage: Stage) -> None:
    stage.route("first", fallbacks=(Fallback(model="second", on=frozenset({FailureKind.SATURATION})),))
    stage.backend("one", max_in_flight=2)
    stage.upstreams["one"].delay_s = 0.3
    replies = await asyncio.gather(*(stage.ask() for _ in range(6)))
    assert [reply.status_code for reply in replies] == [200] * 6
    assert sorted(reply.headers["x-descant-backend"] for reply in replies) == ["one"] * 2 + ["two"] * 4


async def test_a_canary_gets_its_share_and_the_same_keys_always(stage: Stage) -> None:
    stage.route("first", canary=Variant(model="second", percent=50))
    for _ in range(24):
        stage.keys["key"] = stage.world.add_key()
        own = {(await stage.ask()).headers["x-descant-backend"] for _ in range(2)}
        assert len(own) == 1
    assert 4 <= len(stage.upstreams["two"].received) // 2 <= 20
    assert (await stage.ask(headers={"x-descant-canary": "always"})).headers["x-descant-route-reason"] == "canary;only"
    assert (await stage.ask(headers={"x-descant-canary": "never"})).headers["x-descant-backend"] == "one"
    assert (await stage.ask(headers={"x-descant-canary": "maybe"})).status_code == 400


async def test_a_canary_that_fails_gives_back_to_the_model(stage: Stage) -> None:
    stage.route("first", canary=Variant(model="second", percent=100))
    stage.upstreams["two"].status = 500
    assert (await stage.ask()).headers["x-descant-backend"] == "one"


async def test_a_shadow_gets_a_copy_that_nobody_waits_for_or_pays(stage: Stage) -> None:
    stage.route("first", shadow=Variant(model="second", percent=100))
    stage.upstreams["two"].delay_s = 0.5
    began = time.monotonic()
    reply = await stage.ask()
    assert time.monotonic() - began < 0.4
    assert reply.headers["x-descant-backend"] == "one"
    await eventually(lambda: len(stage.upstreams["two"].received) == 1)
    assert stage.upstreams["two"].received[0].json["model"] == "second"
    assert len(stage.world.records) == 1
    await eventually(lambda: copies(stage, "answered") == 1)
    stage.upstreams["two"].status = 500
    assert (await stage.ask()).status_code == 200
    await eventually(lambda: copies(stage, "failed") == 1)


async def test_shadows_are_bounded(stage: Stage) -> None:
    stage.route("first", shadow=Variant(model="second", percent=100))
    stage.upstreams["two"].delay_s = 5
    await asyncio.gather(*(stage.ask() for _ in range(30)))
    assert copies(stage, "dropped") == 14
    assert stage.gateway.gateway.backends.states["two"].num_in_flight == 16


def copies(stage: Stage, result: str) -> float | None:
    registry = stage.gateway.gateway.metrics.registry
    return registry.get_sample_value("descant_gateway_shadow_copies_total", {"result": result})


async def test_retries_end_with_their_budget(stage: Stage) -> None:
    stage.world.models[0] = ModelRoute(name="first", upstream_name="first", backends=("one", "two"))
    stage.upstreams["one"].status = stage.upstreams["two"].status = 503
    for _ in range(60):
        assert (await stage.ask()).status_code == 503
    attempts = sum(len(upstream.received) for upstream in stage.upstreams.values())
    assert 60 < attempts <= 60 + 10 + 0.2 * 60 + 1


async def test_a_backend_that_keeps_failing_is_left_alone_and_comes_back(stage: Stage) -> None:
    stage.world.models[0] = ModelRoute(name="first", upstream_name="first", backends=("one", "two"))
    stage.upstreams["one"].status = 500
    for _ in range(14):
        await stage.ask()
    asked = len(stage.upstreams["one"].received)
    assert asked == 5
    assert [(await stage.ask()).status_code for _ in range(5)] == [200] * 5
    stage.upstreams["one"].status = 200
    await asyncio.sleep(1.05)
    for _ in range(20):
        assert (await stage.ask()).status_code == 200
    assert len(stage.upstreams["one"].received) > asked + 1


async def test_a_session_stays_with_its_backend(stage: Stage) -> None:
    stage.world.models[0] = ModelRoute(name="first", upstream_name="first", backends=("one", "two", "out"))
    stage.backend("out", is_external=False)
    for session in range(6):
        replies = [await stage.ask(headers={"x-session-id": f"s{session}"}) for _ in range(4)]
        assert len({reply.headers["x-descant-backend"] for reply in replies}) == 1
        assert {reply.headers["x-descant-route-reason"] for reply in replies} == {"session"}


# Time


async def test_a_client_may_shorten_its_time_and_not_lengthen_it(stage: Stage) -> None:
    stage.upstreams["one"].first_delay_s = 5
    began = time.monotonic()
    reply = await stage.ask(headers={"x-descant-timeout": "0.2"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")
    assert "not complete within 0.2 s" in reply.json()["error"]["message"]
    late = await stage.ask(stream=True, headers={"x-descant-first-byte-timeout": "60"})
    assert "did not begin its reply within 0.3 s" in late.json()["error"]["message"]
    assert time.monotonic() - began < 3
    assert (await stage.ask(headers={"x-descant-timeout": "soon"})).status_code == 400


@pytest.mark.parametrize(
    ("header", "fields"), [("x-descant-timeout", {}), ("x-descant-first-byte-timeout", {"stream": True})]
)
async def test_the_time_that_a_client_gives_itself_is_no_failure_of_the_backend(
    stage: Stage, header: str, fields: dict
) -> None:
    stage.route("first", fallbacks=(Fallback(model="second", on=frozenset({FailureKind.TIMEOUT})),))
    stage.upstreams["one"].first_delay_s = 0.2
    stage.keys["key"] = stage.world.add_key(stage.world.add_team(RateLimits(requests_per_minute=8)))
    replies = [await stage.ask(headers={header: "0.01"}, **fields) for _ in range(9)]
    assert [reply.status_code for reply in replies] == [504] * 8 + [429]
    message = f"within 0.01 s, as the header {header} asked; the request was cancelled."
    assert replies[0].json()["error"]["message"].endswith(message)
    for record in stage.world.records[:8]:
        assert (record.outcome, record.status, record.backend) == (Outcome.CLIENT_LEFT, 504, "one")
        assert record.prompt_tokens > 0
    assert not stage.upstreams["two"].received
    assert stage.gateway.gateway.backends.state("one").breaker.is_closed
    stage.keys["key"] = stage.world.add_key()
    assert (await stage.ask()).headers["x-descant-backend"] == "one"


async def test_the_time_that_the_model_gives_is_one(stage: Stage) -> None:
    stage.route("first", time_limits=TimeLimits(total_s=0.05))
    stage.upstreams["one"].first_delay_s = 5
    for _ in range(6):
        await stage.ask(headers={"x-descant-timeout": "30"})
    assert {(record.outcome, record.prompt_tokens) for record in stage.world.records} == {(Outcome.UPSTREAM_FAILED, 0)}
    assert not stage.gateway.gateway.backends.state("one").breaker.is_closed


async def test_a_model_has_its_own_times(stage: Stage) -> None:
    stage.route("first", time_limits=TimeLimits(idle_s=0.2))
    stage.upstreams["one"].num_tokens, stage.upstreams["one"].delay_s = 3, 0.0
    assert "[DONE]" in (await stage.ask(stream=True)).text
    stage.upstreams["one"].delay_s = 5
    last = json.loads((await stage.ask(stream=True)).text.removesuffix("\n\n").split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["message"] == "The backend's stream stood still for 0.2 s; the request was cancelled."


async def test_x_descant_headers_of_a_backend_do_not_pass(stage: Stage) -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-descant-backend: other\r\n")
        writer.write(b"content-length: 2\r\nconnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(lie, "127.0.0.1", 0)
    async with server:
        stage.world.backends[0] = Backend(name="one", base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        reply: httpx.Response = await stage.ask()
    assert reply.headers.get_list("x-descant-backend") == ["one"]
