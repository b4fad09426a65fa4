"""The whole path: limits are held, every admitted request is booked once, nothing is left behind."""

import asyncio
import json
import random
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
import redis.asyncio

from descant_gateway.catalogue.snapshot import RateLimits
from descant_gateway.ledger.writer import LedgerWriter
from descant_gateway.limits.limiter import Decision, Limiter, Reservation
from descant_gateway.usage.record import Outcome

from .gateway_under_test import VALKEY_IS_AWAY, Running, World, bearer, eventually, running_gateway
from .upstream import Upstream

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 100}


async def test_true_usage_replaces_the_estimate(world: World, gateway: Running) -> None:
    key = bearer(world.add_key(limits=RateLimits(tokens_per_minute=1000)))
    first = await gateway.client.post(CHAT, json=BODY, headers=key)
    assert int(first.headers["x-ratelimit-remaining-tokens"]) < 900
    await gateway.gateway.limiter.drain(2)
    second = await gateway.client.post(CHAT, json=BODY, headers=key)
    reserved = 1000 - int(first.headers["x-ratelimit-remaining-tokens"])
    used = 7 + 5
    assert int(second.headers["x-ratelimit-remaining-tokens"]) == pytest.approx(1000 - used - reserved, abs=3)


async def test_limit_headers_are_on_every_reply_of_an_admitted_request(
    world: World, gateway: Running, upstream: Upstream
) -> None:
    key = bearer(world.add_key(limits=RateLimits(requests_per_minute=100, tokens_per_minute=10_000)))
    replies = [await gateway.client.post(CHAT, json=BODY | {"stream": stream}, headers=key) for stream in (False, True)]
    for upstream.status in (400, 500, 503):
        replies.append(await gateway.client.post(CHAT, json=BODY, headers=key))
    assert [reply.status_code for reply in replies] == [200, 200, 400, 502, 503]
    names = {f"x-ratelimit-{part}-{of}" for part in ("limit", "remaining", "reset") for of in ("requests", "tokens")}
    for reply in replies:
        assert names <= set(reply.headers)
        assert "x-request-id" in reply.headers


async def test_a_failed_backend_costs_the_client_none_of_its_limits(
    world: World, gateway: Running, upstream: Upstream
) -> None:
    key = bearer(world.add_key(limits=RateLimits(requests_per_minute=2, tokens_per_minute=500)))
    upstream.status = 500
    for _ in range(6):
        assert (await gateway.client.post(CHAT, json=BODY, headers=key)).status_code == 502
        await gateway.gateway.limiter.drain(2)
    upstream.status = 200
    assert (await gateway.client.post(CHAT, json=BODY, headers=key)).status_code == 200


async def test_a_refusal_is_not_booked(world: World, gateway: Running) -> None:
    key = bearer(world.add_key(limits=RateLimits(requests_per_minute=1)))
    bodies = [
        b"{",
        json.dumps(BODY | {"model": "unknown"}).encode(),
        json.dumps(BODY).encode(),
        json.dumps(BODY).encode(),
    ]
    statuses = [(await gateway.client.post(CHAT, content=body, headers=key)).status_code for body in bodies]
    assert statuses == [400, 404, 200, 429]
    assert len(world.records) == 1


async def test_a_row_says_who_used_what(world: World, gateway: Running) -> None:
    team = world.add_team()
    world.models[0] = type(world.models[0])(name="m", upstream_name="m", parent="base", backends=("engine-0",))
    key = world.add_key(team)
    reply = await gateway.client.post(CHAT, json=BODY, headers=bearer(key))
    (record,) = world.records
    (stored,) = world.keys.values()
    assert (record.organization_id, record.team_id, record.key_id) == (world.organization_id, team.id, stored.id)
    assert (record.model, record.parent, record.backend, record.endpoint) == ("m", "base", "engine-0", CHAT)
    assert (record.stream, record.status, record.outcome) == (False, 200, Outcome.COMPLETED)
    assert record.request_id == reply.headers["x-request-id"]


async def test_concurrent_requests_never_pass_the_limit(world: World, gateway: Running, upstream: Upstream) -> None:
    key = bearer(world.add_key(limits=RateLimits(requests_per_minute=20)))
    replies = await asyncio.gather(*(gateway.client.post(CHAT, json=BODY, headers=key) for _ in range(60)))
    statuses = [reply.status_code for reply in replies]
    assert 20 <= statuses.count(200) <= 22  # one more refills every three seconds
    assert set(statuses) == {200, 429}
    assert len(upstream.received) == statuses.count(200) == len(world.records)


async def test_200_clients_that_leave_at_random_moments_leave_nothing_behind(
    world: World, gateway: Running, upstream: Upstream, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No task, reservation or upstream request survives, and every admitted request is booked exactly once."""
    limiter = gateway.gateway.limiter
    granted: list[UUID] = []

    async def reserve(reservation: Reservation) -> Decision:
        decision = await Limiter.reserve(limiter, reservation)
        granted.extend([reservation.charge_id] if decision.is_granted else [])
        return decision

    monkeypatch.setattr(limiter, "reserve", reserve)
    team = world.add_team(RateLimits(requests_per_minute=1_000_000, tokens_per_minute=100_000_000))
    key = bearer(world.add_key(team))
    upstream.num_tokens, upstream.delay_s = 20, 0.01
    await gateway.client.post(CHAT, json=BODY, headers=key)  # warms up what stays
    tasks_before = gateway_tasks()
    chance = random.Random(7)

    async def leave(client: httpx.AsyncClient, patience_s: float, stream: bool) -> None:
        try:
            async with asyncio.timeout(patience_s):
                await client.post(CHAT, json=BODY | {"stream": stream}, headers=key)
        except (TimeoutError, httpx.HTTPError):
            return

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=gateway.url, limits=limits, timeout=20) as client:
        await asyncio.gather(*(leave(client, chance.uniform(0.1, 2.0), chance.random() < 0.6) for _ in range(200)))
    await eventually(lambda: upstream.num_running == 0)
    await eventually(lambda: gateway_tasks() <= tasks_before)
    await limiter.drain(5)
    assert limiter.num_unsettled == 0
    async with redis.asyncio.Redis.from_url(valkey_url) as client:
        assert await client.keys("*reservation*") == []
    assert all(state.num_in_flight == 0 for state in gateway.gateway.backends.states.values())
    assert sorted(record.charge_id for record in world.records) == sorted(granted)
    assert len(upstream.received) <= len(granted)
    outcomes = {record.outcome for record in world.records}
    assert outcomes == {Outcome.COMPLETED, Outcome.CLIENT_LEFT}
    assert "descant_gateway_requests_in_flight 0.0" in (await gateway.client.get("/metrics")).text


def gateway_tasks() -> set[asyncio.Task[object]]:
    """All but those of the backend's own server, which keeps one for every connection in the gateway's pool."""
    return {task for task in asyncio.all_tasks() if "RequestHandler.start" not in repr(task.get_coro())}


async def test_valkey_away_stops_limited_keys_only_and_never_as_a_bad_key(upstream: Upstream) -> None:
    world = World()
    world.add_model("m", upstream.backend)
    limited, unlimited = world.add_key(limits=RateLimits(requests_per_minute=5)), world.add_key()
    async with running_gateway(world, "", valkey=VALKEY_IS_AWAY) as gateway:
        refused = await gateway.client.post(CHAT, json=BODY, headers=bearer(limited))
        served = await gateway.client.post(CHAT, json=BODY, headers=bearer(unlimited))
        ready = await gateway.client.get("/ready")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "limits_unavailable")
    assert refused.headers["retry-after"] == "1"
    assert served.status_code == 200
    assert ready.json()["valkey"] is False


async def test_the_ledger_in_postgresql_has_each_request_once(
    upstream: Upstream, engine: object, valkey_url: str, tmp_path: Path
) -> None:
    world = World()
    world.add_model("m", upstream.backend)
    key = bearer(world.add_key())
    ledger = LedgerWriter(engine, tmp_path)
    await ledger.start()
    try:
        world.append = ledger.append  # type: ignore[method-assign]
        async with running_gateway(world, valkey_url) as gateway:
            await asyncio.gather(*(gateway.client.post(CHAT, json=BODY, headers=key) for _ in range(20)))
        await ledger.flush()
        async with engine.connect() as connection:
            rows = (await connection.exec_driver_sql("SELECT charge_id, completion_tokens FROM usage_ledger")).all()
    finally:
        await ledger.close()
    assert len({row[0] for row in rows}) == len(rows) == 20
    assert {row[1] for row in rows} == {5}


async def test_the_request_id_joins_reply_row_and_backend(world: World, gateway: Running, upstream: Upstream) -> None:
    request_id = uuid4().hex
    headers = bearer(world.add_key()) | {"x-request-id": request_id}
    reply = await gateway.client.post(CHAT, json=BODY, headers=headers)
    assert reply.headers["x-request-id"] == world.records[0].request_id == request_id
    assert upstream.received[0].headers["x-request-id"] == request_id
