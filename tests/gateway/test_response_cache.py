"""Replies used again: for the same team and the same request only. Real Valkey, real sockets."""

import httpx
import pytest
import redis.asyncio
from msgspec.structs import replace

from descant_gateway.catalogue.snapshot import Price, Team

from .gateway_under_test import Running, World, bearer, eventually
from .upstream import Upstream

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "CANARY-PROMPT"}], "temperature": 0}


@pytest.fixture
def world(upstream: Upstream) -> World:
    world = World(prices={"m": Price(1_000_000, 0, 1_000_000)})
    world.add_model("m", upstream.backend)
    world.add_model("n", upstream.backend)
    return world


def caching_team(world: World, seconds: int | None = 60) -> Team:
    team = replace(world.add_team(), response_cache_s=seconds)
    world.teams[team.id] = team
    return team


async def ask(gateway: Running, key: str, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    reply = await gateway.client.post(CHAT, json=BODY | fields, headers=bearer(key) | (headers or {}))
    assert reply.status_code == 200, reply.text
    return reply


async def stored(gateway: Running) -> None:
    await eventually(lambda: not gateway.gateway.response_cache._storing)


async def test_the_same_request_is_answered_again_and_costs_nothing(
    world: World, gateway: Running, upstream: Upstream
) -> None:
    key = world.add_key(caching_team(world))
    first = await ask(gateway, key)
    await stored(gateway)
    second = await ask(gateway, key)
    assert (first.headers["x-descant-cache"], second.headers["x-descant-cache"]) == ("miss", "hit")
    assert second.content == first.content
    assert len(upstream.received) == 1
    paid, free = world.records
    assert (paid.backend, paid.cost_microdollars > 0) == ("engine-0", True)
    assert (free.backend, free.cost_microdollars, free.prompt_tokens, free.completion_tokens) == ("cache", 0, 0, 0)
    assert (free.outcome.value, free.status) == ("completed", 200)


async def test_another_team_never_gets_it(world: World, gateway: Running, upstream: Upstream) -> None:
    for _ in range(2):
        assert (await ask(gateway, world.add_key(caching_team(world)))).headers["x-descant-cache"] == "miss"
        await stored(gateway)
    assert "x-descant-cache" not in (await ask(gateway, world.add_key())).headers
    assert len(upstream.received) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.7},
        {"temperature": None},
        {"stream": True},
        {"messages": [{"role": "user", "content": "other"}]},
        {"max_tokens": 5},
        {"model": "n"},
        {"seed": 1},
    ],
)
async def test_what_is_not_the_same_is_asked_for(
    world: World, gateway: Running, upstream: Upstream, change: dict[str, object]
) -> None:
    key = world.add_key(caching_team(world))
    await ask(gateway, key)
    await stored(gateway)
    assert (await ask(gateway, key, **change)).headers.get("x-descant-cache") != "hit"
    assert len(upstream.received) == 2


async def test_a_seed_is_as_good_as_no_temperature(world: World, gateway: Running, upstream: Upstream) -> None:
    key = world.add_key(caching_team(world))
    await ask(gateway, key, temperature=1, seed=3)
    await stored(gateway)
    assert (await ask(gateway, key, temperature=1, seed=3)).headers["x-descant-cache"] == "hit"
    reply = await ask(gateway, key, headers={"cache-control": "no-cache"}, temperature=1, seed=3)
    assert "x-descant-cache" not in reply.headers


async def test_errors_are_not_kept(world: World, gateway: Running, upstream: Upstream) -> None:
    key = bearer(world.add_key(caching_team(world)))
    upstream.status = 400
    assert (await gateway.client.post(CHAT, json=BODY, headers=key)).status_code == 400
    await stored(gateway)
    upstream.status = 200
    assert (await gateway.client.post(CHAT, json=BODY, headers=key)).headers["x-descant-cache"] == "miss"


async def test_nothing_can_be_read_in_valkey_and_entries_end(
    world: World, gateway: Running, valkey_url: str, upstream: Upstream
) -> None:
    gateway.gateway.response_cache._max_entries = 3
    team = caching_team(world)
    key = world.add_key(team)
    for number in range(5):
        await ask(gateway, key, max_tokens=number + 1)
        await stored(gateway)
    async with redis.asyncio.Redis.from_url(valkey_url) as valkey:
        names = [name async for name in valkey.scan_iter("*cache:*:r:*")]
        assert len(names) == 3
        for name in names:
            assert 0 < await valkey.ttl(name) <= 60
            value = await valkey.get(name)
            for secret in (b"CANARY-PROMPT", b"chatcmpl", team.id.hex.encode(), b'"hi"'):
                assert secret not in value
                assert secret not in name
        # What was changed, or another's, is asked for anew.
        await valkey.set(names[0], await valkey.get(names[1]))
        await valkey.set(names[1], b"junk")
    before = len(upstream.received)
    for number in range(2, 5):
        await ask(gateway, key, max_tokens=number + 1)
    assert len(upstream.received) == before + 2
