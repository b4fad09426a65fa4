"""Waiting for saturated backends, over real sockets: bounded, fair, visible, and left with the client."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from msgspec.structs import replace
from tests.gateway.gateway_under_test import Running, World, bearer, eventually, running_gateway
from tests.gateway.upstream import Upstream, running

from descant_gateway.catalogue.snapshot import RateLimits
from descant_gateway.config import QueueConfig

CHAT = "/v1/chat/completions"
NUM_TURNS = 4
BODY = {"model": "m", "messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 100}


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with running(Upstream(first_delay_s=0.05)) as upstream:
        yield upstream


@asynccontextmanager
async def gateway_with_room_for(
    upstream: Upstream, valkey_url: str, num_at_once: int, **queue: float
) -> AsyncIterator[tuple[World, Running]]:
    world = World()
    world.add_model("m", replace(upstream.backend, max_in_flight=num_at_once))
    async with running_gateway(world, valkey_url, queue=QueueConfig(**queue)) as gateway:
        yield world, gateway


async def test_more_than_the_backend_takes_wait_and_are_served(upstream: Upstream, valkey_url: str) -> None:
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, upstream.num_running)
            await asyncio.sleep(0.001)

    async with gateway_with_room_for(upstream, valkey_url, 2) as (world, gateway):
        key = bearer(world.add_key())
        watcher = asyncio.create_task(watch())
        replies = await asyncio.gather(*(gateway.client.post(CHAT, json=BODY, headers=key) for _ in range(10)))
        watcher.cancel()
        text = (await gateway.client.get("/metrics")).text
        assert gateway.gateway.fair_share.num_running == gateway.gateway.fair_share.num_waiting == 0
    assert {reply.status_code for reply in replies} == {200}
    assert most == 2
    positions = sorted(int(reply.headers.get("x-descant-queue-position", -1)) for reply in replies)
    assert positions == [-1, -1, *range(8)]
    waited = [reply for reply in replies if "x-descant-queue-position" in reply.headers]
    assert all("x-descant-queue-expected-wait-ms" in reply.headers for reply in waited)
    assert 'descant_gateway_queue_wait_seconds_count{priority="0",result="served"} 8.0' in text
    assert "descant_gateway_queue_length 0.0" in text


async def test_who_waits_too_long_is_told_when_to_come_back(upstream: Upstream, valkey_url: str) -> None:
    upstream.first_delay_s = 1.0
    async with gateway_with_room_for(upstream, valkey_url, 1, timeout_s=0.2) as (world, gateway):
        key = bearer(world.add_key(limits=RateLimits(requests_per_minute=2)))
        first = asyncio.create_task(gateway.client.post(CHAT, json=BODY, headers=key))
        await eventually(lambda: upstream.num_running == 1)
        second = await gateway.client.post(CHAT, json=BODY, headers=key)
        assert (await first).status_code == 200
        await gateway.gateway.limiter.drain(2)
        upstream.first_delay_s = 0
        assert (await gateway.client.post(CHAT, json=BODY, headers=key)).status_code == 200  # the second was refunded
    assert (second.status_code, second.json()["error"]["code"]) == (503, "queue_timeout")
    assert int(second.headers["retry-after"]) >= 1
    assert second.headers["x-descant-queue-position"] == "0"
    assert len(world.records) == 2  # nobody pays for waiting


async def test_a_full_queue_refuses_at_once(upstream: Upstream, valkey_url: str) -> None:
    upstream.first_delay_s = 0.5
    async with gateway_with_room_for(upstream, valkey_url, 1, length=1) as (world, gateway):
        key = bearer(world.add_key())
        replies = await asyncio.gather(*(gateway.client.post(CHAT, json=BODY, headers=key) for _ in range(4)))
    refused = [reply for reply in replies if reply.status_code == 503]
    assert len(refused) == 2
    assert {reply.json()["error"]["code"] for reply in refused} == {"queue_full"}
    assert all("retry-after" in reply.headers for reply in refused)


async def test_another_team_gets_into_a_queue_that_one_team_filled(upstream: Upstream, valkey_url: str) -> None:
    upstream.first_delay_s = 0.3
    async with gateway_with_room_for(upstream, valkey_url, 1, length=3) as (world, gateway):
        flood, other = bearer(world.add_key()), bearer(world.add_key())
        requests = [asyncio.create_task(gateway.client.post(CHAT, json=BODY, headers=flood)) for _ in range(4)]
        await eventually(lambda: gateway.gateway.fair_share.num_waiting == 3)
        assert (await gateway.client.post(CHAT, json=BODY, headers=other)).status_code == 200
        statuses = sorted(reply.status_code for reply in await asyncio.gather(*requests))
    assert statuses == [200, 200, 200, 503]


async def test_a_client_that_leaves_leaves_the_queue(upstream: Upstream, valkey_url: str) -> None:
    upstream.first_delay_s = 0.6
    async with gateway_with_room_for(upstream, valkey_url, 1) as (world, gateway):
        key, share = bearer(world.add_key()), gateway.gateway.fair_share
        first = asyncio.create_task(gateway.client.post(CHAT, json=BODY, headers=key))
        await eventually(lambda: upstream.num_running == 1)
        async with httpx.AsyncClient(base_url=gateway.url) as leaving:
            waiting = asyncio.create_task(leaving.post(CHAT, json=BODY, headers=key))
            await eventually(lambda: share.num_waiting == 1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await eventually(lambda: share.num_waiting == 0)
        assert (await first).status_code == 200
        await eventually(lambda: share.num_running == 0)
    assert len(upstream.received) == 1


async def test_a_backend_that_comes_back_serves_who_waits(upstream: Upstream, valkey_url: str) -> None:
    """At once: what runs on the other one may take longer than anybody waits."""
    upstream.first_delay_s = 10.0
    async with running(Upstream(name="engine-1", ready=False)) as second:
        world = World()
        world.add_model("m", *(replace(each.backend, max_in_flight=1) for each in (upstream, second)))
        async with running_gateway(world, valkey_url) as gateway:
            key = bearer(world.add_key())
            first = asyncio.create_task(gateway.client.post(CHAT, json=BODY, headers=key))
            await eventually(lambda: upstream.num_running == 1)
            waiting = asyncio.create_task(gateway.client.post(CHAT, json=BODY, headers=key))
            await eventually(lambda: gateway.gateway.fair_share.num_waiting == 1)
            second.ready = True
            async with asyncio.timeout(5):
                assert (await waiting).headers["x-descant-backend"] == "engine-1"
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)


async def test_a_backend_that_is_given_more_room_serves_who_waits(upstream: Upstream, valkey_url: str) -> None:
    upstream.first_delay_s = 1.0
    async with gateway_with_room_for(upstream, valkey_url, 1) as (world, gateway):
        key = bearer(world.add_key())
        both = [asyncio.create_task(gateway.client.post(CHAT, json=BODY, headers=key)) for _ in range(2)]
        await eventually(lambda: gateway.gateway.fair_share.num_waiting == 1)
        world.backends = [replace(upstream.backend, max_in_flight=2)]
        await eventually(lambda: upstream.num_running == 2, timeout_s=0.9)
        assert [reply.status_code for reply in await asyncio.gather(*both)] == [200, 200]


async def test_a_priority_goes_first(upstream: Upstream, valkey_url: str) -> None:
    upstream.first_delay_s = 0.15
    async with gateway_with_room_for(upstream, valkey_url, 1) as (world, gateway):
        team = world.add_team()
        world.teams[team.id] = replace(team, priority=1)
        low, high = bearer(world.add_key()), bearer(world.add_key(world.teams[team.id]))
        done: list[str] = []

        async def ask(name: str, key: dict[str, str]) -> None:
            await gateway.client.post(CHAT, json=BODY, headers=key)
            done.append(name)

        tasks = [asyncio.create_task(ask("low", low)) for _ in range(4)]
        await eventually(lambda: gateway.gateway.fair_share.num_waiting == 3)
        await asyncio.gather(ask("high", high), *tasks)
    assert done == ["low", "high", "low", "low", "low"]


async def waits_beside(num_others: int, upstream: Upstream, valkey_url: str) -> list[int]:
    """How many rounds of the backend's four turns each request of a team waits, while another has so many at once.

    A round, not its requests: the four that begin as a request is on its way had their turns before it came.
    """
    upstream.received.clear()
    async with gateway_with_room_for(upstream, valkey_url, NUM_TURNS, length=500) as (world, gateway):
        calm, flood = bearer(world.add_key()), bearer(world.add_key())
        is_over = False

        async def keep_asking() -> None:
            while not is_over:
                await gateway.client.post(CHAT, json=BODY, headers=flood)

        limits = httpx.Limits(max_connections=None)
        gateway.client = httpx.AsyncClient(base_url=gateway.url, limits=limits, timeout=30)
        others = [asyncio.create_task(keep_asking()) for _ in range(num_others)]
        await eventually(lambda: len(upstream.received) > 8)
        rounds = []
        for number in range(20):
            before = len(upstream.received)
            body = BODY | {"user": f"calm-{number}"}
            await gateway.client.post(CHAT, json=body, headers=calm)
            own = next(n for n, each in enumerate(upstream.received) if each.json.get("user") == f"calm-{number}")
            rounds.append(math.ceil((own - before) / NUM_TURNS))
        is_over = True
        await asyncio.gather(*others)
        await gateway.client.aclose()
    return sorted(rounds)


async def test_a_flood_does_not_raise_another_team_s_wait(upstream: Upstream, valkey_url: str) -> None:
    """Six requests at once keep the four turns taken; sixty are a flood, in first-come order ten times the wait."""
    # Long beside what clients, gateway and backend take for sixty requests in this one process.
    upstream.first_delay_s = 0.1
    calm = await waits_beside(6, upstream, valkey_url)
    flooded = await waits_beside(60, upstream, valkey_url)
    p99 = int(0.99 * (len(calm) - 1))
    assert flooded[p99] <= 1.5 * max(calm[p99], 1)
