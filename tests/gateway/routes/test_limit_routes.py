"""Limits as clients meet them: every kind and level refuses in its way, explains itself, warns, survives outages."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import uuid4

import openai
import pytest
from aiohttp import web
from msgspec.structs import replace
from tests.gateway.gateway_under_test import VALKEY_IS_AWAY, Running, World, bearer, eventually, running_gateway
from tests.gateway.upstream import Upstream

from descant_gateway.catalogue.snapshot import LimitRule, Price, RateLimits, Webhook
from descant_gateway.config import LimitsConfig, Outage, ProcessConfig
from descant_gateway.limits.limit import Amounts, Level, Limit, LimitKind, Period, Standing, period_end
from descant_gateway.limits.local_shares import LocalShares, OutagePolicy
from descant_gateway.limits.output_estimate import NUM_NEEDED, OutputEstimates
from descant_gateway.limits.warnings import SIGNATURE_HEADER

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 100}


@pytest.fixture
def world(upstream: Upstream) -> World:
    world = World()
    world.add_model("m", upstream.backend)
    world.add_model("other", upstream.backend)
    world.prices["m"] = Price(1_000_000, 500_000, 2_000_000)  # a micro-dollar a prompt token, two an output token
    return world


def rule(kind: LimitKind, capacity: int, **fields: object) -> LimitRule:
    return LimitRule(kind=kind, capacity=capacity, **fields)


def limited(world: World, *rules: LimitRule, level: Level = Level.KEY) -> dict[str, str]:
    """The header of a new key with these limits at that level."""
    text = world.add_key(project_id=uuid4())
    key = next(reversed(world.keys.values()))
    owners = {Level.KEY: key.id, Level.PROJECT: key.project_id, Level.TEAM: key.team_id}
    world.limits[owners.get(level, world.organization_id)] = rules
    return bearer(text)


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize(
    ("kind", "capacity", "error"),
    [
        (LimitKind.REQUESTS_PER_MINUTE, 1, ("requests", "rate_limit_exceeded")),
        (LimitKind.TOKENS_PER_MINUTE, 120, ("tokens", "rate_limit_exceeded")),
        (LimitKind.TOKENS_PER_DAY, 120, ("tokens", "rate_limit_exceeded")),
        (LimitKind.MONEY_PER_DAY, 220, ("insufficient_quota", "budget_exceeded")),
        (LimitKind.MONEY_PER_WEEK, 220, ("insufficient_quota", "budget_exceeded")),
        (LimitKind.MONEY_PER_MONTH, 220, ("insufficient_quota", "budget_exceeded")),
    ],
)
async def test_every_kind_holds_at_every_level(
    world: World, gateway: Running, level: Level, kind: LimitKind, capacity: int, error: tuple[str, str]
) -> None:
    """Each has room for one request's estimate: what it truly used then leaves too little for a second."""
    key = limited(world, rule(kind, capacity), level=level)
    first = await gateway.client.post(CHAT, json=BODY, headers=key)
    await gateway.gateway.limiter.drain(2)
    second = await gateway.client.post(CHAT, json=BODY, headers=key)
    assert (first.status_code, second.status_code) == (200, 429), second.text
    told = second.json()["error"]
    assert (told["type"], told["code"]) == error
    assert f"this {level}" in told["message"]
    assert int(second.headers["retry-after"]) >= 1


async def test_requests_at_once_are_limited_and_come_back(world: World, gateway: Running, upstream: Upstream) -> None:
    key = limited(world, rule(LimitKind.CONCURRENT_REQUESTS, 2))
    upstream.first_delay_s = 0.4
    replies = await asyncio.gather(*(gateway.client.post(CHAT, json=BODY, headers=key) for _ in range(5)))
    assert sorted(reply.status_code for reply in replies) == [200, 200, 429, 429, 429]
    await gateway.gateway.limiter.drain(2)
    assert (await gateway.client.post(CHAT, json=BODY, headers=key)).status_code == 200


async def test_a_model_s_limit_counts_its_adapters_and_aliases_and_nothing_else(world: World, gateway: Running) -> None:
    world.models.append(replace(world.models[0], name="adapter", parent="m"))
    world.models.append(replace(world.models[0], name="alias", target="m"))
    key = limited(world, rule(LimitKind.REQUESTS_PER_MINUTE, 2, model="m"))
    names = ("adapter", "alias", "m", "other", "other")
    replies = [await gateway.client.post(CHAT, json=BODY | {"model": name}, headers=key) for name in names]
    assert [reply.status_code for reply in replies] == [200, 200, 429, 200, 200]


@pytest.mark.parametrize("level", Level)
async def test_an_adapter_s_limit_counts_the_adapter_alone(world: World, gateway: Running, level: Level) -> None:
    world.models.append(replace(world.models[0], name="adapter", parent="m"))
    world.models.append(replace(world.models[0], name="alias", parent="m", target="adapter"))
    key = limited(world, rule(LimitKind.REQUESTS_PER_MINUTE, 2, model="adapter"), level=level)
    names = ("m", "adapter", "alias", "adapter", "m", "other")
    replies = [await gateway.client.post(CHAT, json=BODY | {"model": name}, headers=key) for name in names]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 200, 200]


async def test_the_openai_sdk_does_not_retry_a_spent_budget(world: World, gateway: Running, upstream: Upstream) -> None:
    key = limited(world, rule(LimitKind.MONEY_PER_DAY, 220))["authorization"].removeprefix("Bearer ")
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=5, timeout=10) as client:
        await client.chat.completions.create(**BODY)
        await gateway.gateway.limiter.drain(2)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**BODY)
    assert caught.value.code == "budget_exceeded"
    text = (await gateway.client.get("/metrics")).text
    assert 'descant_gateway_refused_total{code="budget_exceeded",status="429"} 1.0' in text


async def test_a_row_costs_what_the_counter_settled(world: World, gateway: Running) -> None:
    """7 prompt tokens, 3 of them cached, 5 of output: 4 + 1.5 + 10, rounded up."""
    key = limited(world, rule(LimitKind.MONEY_PER_MONTH, 10_000), rule(LimitKind.TOKENS_PER_DAY, 5000))
    await gateway.client.post(CHAT, json=BODY, headers=key)
    await gateway.gateway.limiter.drain(2)
    report = (await gateway.client.get("/v1/limits", headers=key)).json()
    assert world.records[0].cost_microdollars == 16
    assert [(each["used"], each["left"]) for each in report["limits"]] == [(16, 9984), (12, 4988)]


async def test_a_shadow_limit_counts_and_refuses_nothing(world: World, gateway: Running) -> None:
    key = limited(world, rule(LimitKind.REQUESTS_PER_MINUTE, 1, is_shadow=True))
    replies = [await gateway.client.post(CHAT, json=BODY, headers=key) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 200]
    assert "x-ratelimit-limit-requests" not in replies[0].headers
    expected = 'descant_gateway_shadow_refused_total{kind="requests_per_minute",level="key",model=""} 2.0'
    assert expected in (await gateway.client.get("/metrics")).text


async def test_limits_explain_themselves(world: World, gateway: Running) -> None:
    team = world.add_team(RateLimits(requests_per_minute=5))
    text = world.add_key(team, limits=RateLimits(requests_per_minute=100))
    world.limits[world.organization_id] = (
        rule(LimitKind.MONEY_PER_MONTH, 10**6),
        rule(LimitKind.REQUESTS_PER_MINUTE, 7, model="other"),
    )
    await gateway.client.post(CHAT, json=BODY, headers=bearer(text))
    await gateway.gateway.limiter.drain(2)
    report = (await gateway.client.get("/v1/limits", headers=bearer(text))).json()
    shown = {(each["level"], each["kind"], each["model"]): each for each in report["limits"]}
    assert len(shown) == 4
    assert shown["team", "requests_per_minute", None]["is_binding"]
    assert not shown["key", "requests_per_minute", None]["is_binding"]
    assert shown["organization", "requests_per_minute", "other"]["left"] == 7
    budget = shown["organization", "money_per_month", None]
    assert (budget["limit"], budget["used"], budget["unit"]) == (10**6, 16, "microdollars")
    assert 0 < budget["resets_in_s"] <= 31 * 86_400
    of_m = (await gateway.client.get("/v1/limits?model=m", headers=bearer(text))).json()
    assert len(of_m["limits"]) == 3
    assert (await gateway.client.get("/v1/limits")).status_code == 401


# While Valkey is away


async def test_a_share_of_the_limits_serves_while_valkey_is_away(world: World) -> None:
    key = limited(world, rule(LimitKind.REQUESTS_PER_MINUTE, 6))
    parts = {"limits": LimitsConfig(outage_rates=Outage.LOCAL), "process": ProcessConfig(num_processes=2)}
    async with running_gateway(world, "", valkey=VALKEY_IS_AWAY, **parts) as gateway:
        replies = [await gateway.client.post(CHAT, json=BODY, headers=key) for _ in range(5)]
        told = (await gateway.client.get("/v1/limits", headers=key)).json()["error"]
        asked_to_end = time.monotonic()
    assert time.monotonic() - asked_to_end < 10, "it waited for a Valkey that is away"
    assert [reply.status_code for reply in replies] == [200, 200, 200, 503, 503]
    assert replies[0].headers["x-descant-limits"] == "local"
    assert told["code"] == "limits_unavailable"


async def test_budgets_fail_closed_unless_told_otherwise(world: World) -> None:
    key = limited(world, rule(LimitKind.MONEY_PER_DAY, 10**9))
    limits = LimitsConfig(outage_rates=Outage.LOCAL)
    async with running_gateway(world, "", valkey=VALKEY_IS_AWAY, limits=limits) as gateway:
        reply = await gateway.client.post(CHAT, json=BODY, headers=key)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")


def test_a_local_budget_is_a_share_of_what_was_left() -> None:
    limit = Limit(Level.TEAM, LimitKind.MONEY_PER_DAY, "team", 1000)
    shares = LocalShares(OutagePolicy(budgets=Outage.LOCAL, num_processes=4))
    first, second = uuid4(), uuid4()
    assert not shares.reserve(first, (limit,), Amounts(1, 0, 1))  # nothing was ever heard of it
    shares.hear((Standing(limit, 400.0, 0.0),))
    assert shares.reserve(first, (limit,), Amounts(1, 0, 90))
    assert not shares.reserve(second, (limit,), Amounts(1, 0, 20))
    shares.settle(first, Amounts(1, 0, 50))
    shares.settle(first, Amounts(1, 0, 50))  # once only
    assert shares.reserve(second, (limit,), Amounts(1, 0, 50))
    assert not shares.reserve(uuid4(), (limit,), Amounts(1, 0, 1))


def test_local_requests_at_once_come_back() -> None:
    limit = Limit(Level.KEY, LimitKind.CONCURRENT_REQUESTS, "key", 2)
    shares = LocalShares(OutagePolicy(rates=Outage.LOCAL, num_processes=2))
    charge = uuid4()
    assert shares.reserve(charge, (limit,), Amounts(1, 0))
    assert not shares.reserve(uuid4(), (limit,), Amounts(1, 0))
    shares.settle(charge, Amounts(1, 0))
    assert shares.reserve(uuid4(), (limit,), Amounts(1, 0))


# Warnings


@dataclass
class Receiver:
    """A webhook's receiver that fails as often as it is told to."""

    url: str = ""
    num_failures: int = 0
    received: list[tuple[bytes, str]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.received.append((await request.read(), request.headers[SIGNATURE_HEADER]))
        return web.Response(status=500 if len(self.received) <= self.num_failures else 204)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


async def test_each_threshold_warns_once_signed_and_retried(
    world: World, gateway: Running, receiver: Receiver, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gateways see the same limit pass 50 % and then 80 %: two warnings, of which the first has to be repeated."""
    monkeypatch.setattr("descant_gateway.limits.warnings._RETRY_DELAYS_S", (0.05, 0.05))
    receiver.num_failures = 1
    world.webhooks[world.organization_id] = Webhook(receiver.url, "a secret")
    key = limited(world, rule(LimitKind.REQUESTS_PER_MINUTE, 10, warn_at=(50, 80)))
    async with running_gateway(world, valkey_url) as other:
        for number in range(9):
            client = (gateway, other)[number % 2].client
            assert (await client.post(CHAT, json=BODY, headers=key)).status_code == 200
            if number == 5:
                await eventually(lambda: len(receiver.received) == 2)
        await eventually(lambda: len(receiver.received) == 3)
        await asyncio.sleep(0.2)
    bodies = [json.loads(body) for body, _ in receiver.received]
    assert [body["threshold_percent"] for body in bodies] == [50, 50, 80]
    assert (bodies[0]["kind"], bodies[0]["level"], bodies[0]["capacity"]) == ("requests_per_minute", "key", 10)
    for body, signature in receiver.received:
        seconds, _, digest = signature.removeprefix("t=").partition(",v1=")
        assert hmac.new(b"a secret", f"{seconds}.".encode() + body, "sha256").hexdigest() == digest


async def test_a_webhook_that_hangs_delays_nobody(world: World, gateway: Running) -> None:
    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    world.webhooks[world.organization_id] = Webhook(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", "s")
    key = limited(world, rule(LimitKind.REQUESTS_PER_MINUTE, 10, warn_at=(10,)))
    async with asyncio.timeout(4):
        for _ in range(3):
            assert (await gateway.client.post(CHAT, json=BODY, headers=key)).status_code == 200
    server.close()


# Parts


@pytest.mark.parametrize(
    ("period", "now", "end"),
    [
        (Period.DAY, 0, 86_400),
        (Period.WEEK, 0, 4 * 86_400),  # 1970 began on a Thursday
        (Period.MONTH, 0, 31 * 86_400),
        (Period.MONTH, 951_782_400, 951_868_800),  # 29 February 2000
        (Period.WEEK, 1_767_225_599, 1_767_571_200),  # over a year's end
    ],
)
def test_periods_end_where_the_calendar_says(period: Period, now: float, end: float) -> None:
    assert period_end(period, now) == end


def test_answers_are_estimated_by_what_came_before() -> None:
    outputs, key = OutputEstimates(), uuid4()
    for length in range(NUM_NEEDED - 1):
        outputs.learn(key, "m", length)
        assert outputs.estimate(key, "m", 4096) == 4096
    outputs.learn(key, "m", 30)
    assert outputs.estimate(key, "m", 4096) == 18
    assert outputs.estimate(key, "m", 10) == 10
    assert outputs.estimate(key, "other", 4096) == 4096


async def test_a_key_that_sets_no_bound_reserves_what_its_answers_were(world: World, gateway: Running) -> None:
    key = limited(world, rule(LimitKind.TOKENS_PER_MINUTE, 10**6))
    body = {name: value for name, value in BODY.items() if name != "max_tokens"}
    replies = [await gateway.client.post(CHAT, json=body, headers=key) for _ in range(NUM_NEEDED + 1)]
    left = [int(reply.headers["x-ratelimit-remaining-tokens"]) for reply in (replies[0], replies[-1])]
    assert left[0] < 10**6 - 4096
    assert left[1] > 10**6 - 1000
