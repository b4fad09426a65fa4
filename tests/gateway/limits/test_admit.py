"""Limits in a real Valkey: never oversold, always given back, and exact about when to come back."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis.asyncio
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gateway.gateway_under_test import PEPPER, World, eventually

from descant_gateway.catalogue.snapshot import Catalogue, ModelRoute, RateLimits
from descant_gateway.config import Outage
from descant_gateway.identity.authenticate import Caller
from descant_gateway.limits import admit as admitting
from descant_gateway.limits.admit import Admission, Ticket
from descant_gateway.limits.limit import NOTHING, Amounts, Level, Limit, LimitExceeded, LimitKind, Standing, go_duration
from descant_gateway.limits.limiter import Limiter, Reservation, limits_script
from descant_gateway.limits.local_shares import LocalShares, OutagePolicy
from descant_gateway.limits.output_estimate import OutputEstimates
from descant_gateway.limits.paths import LimitPath, LimitPaths, limits_of, path_of
from descant_gateway.limits.script_queue import ScriptQueue, ValkeyAway, connect
from descant_gateway.request import InferenceRequest, read_request
from descant_wire.errors import ApiError

MODEL = ModelRoute(name="m", upstream_name="m", backends=(), max_output_tokens=100)


@asynccontextmanager
async def open_limiter(valkey_url: str, timeout_s: float = 2.0) -> AsyncIterator[Limiter]:
    queue = ScriptQueue(connect(valkey_url), limits_script(), timeout_s)
    queue.start()
    try:
        yield Limiter(queue)
    finally:
        await queue.close()


@pytest.fixture
async def limiter(valkey_url: str) -> AsyncIterator[Limiter]:
    async with open_limiter(valkey_url) as limiter:
        yield limiter


@dataclass
class Watcher:
    """Keeps what it is told."""

    shadows: list[Limit] = field(default_factory=list)
    looks: list[tuple[Standing, ...]] = field(default_factory=list)

    def look(self, path: LimitPath, standings: tuple[Standing, ...]) -> None:
        self.looks.append(standings)

    def shadow_refused(self, limit: Limit) -> None:
        self.shadows.append(limit)


def admission_of(limiter: Limiter, **fields: object) -> Admission:
    defaults: dict = {
        "local_shares": LocalShares(OutagePolicy()),
        "paths": LimitPaths(),
        "outputs": OutputEstimates(),
        "watcher": Watcher(),
    }
    return Admission(limiter=limiter, **(defaults | fields))


async def admit(
    caller: Caller,
    request: InferenceRequest,
    model: ModelRoute,
    limiter: Limiter,
    catalogue: Catalogue = Catalogue(version=1),  # noqa: B008
    **fields: object,
) -> Ticket:
    return await admitting.admit(caller, request, model, catalogue, admission_of(limiter, **fields))


def caller_with(key: RateLimits = RateLimits(), team: RateLimits = RateLimits()) -> Caller:  # noqa: B008
    world = World()
    world.add_key(world.add_team(team), limits=key)
    (found,) = world.keys.values()
    return Caller(found, world.teams[found.team_id])


def request_of(max_tokens: int = 0) -> InferenceRequest:
    """A request that is estimated at exactly `max_tokens`."""
    return read_request("/v1/completions", b'{"model":"m","max_tokens":%d}' % max_tokens)


def reservation_of(*capacities: int, tokens: int = 1, owner: str = "o") -> Reservation:
    kind = LimitKind.TOKENS_PER_MINUTE
    limits = tuple(Limit(Level.KEY, kind, f"{owner}{n}", capacity) for n, capacity in enumerate(capacities))
    return Reservation(uuid4(), path_of(ORGANIZATION, limits), Amounts(1, tokens))


ORGANIZATION = uuid4()


async def settled(limiter: Limiter) -> None:
    await limiter.drain(2.0)
    assert limiter.num_unsettled == 0


async def held(limiter: Limiter, *capacities: int, owner: str = "o") -> list[float]:
    """What the buckets hold, asked by reserving nothing."""
    probe = reservation_of(*capacities, tokens=0, owner=owner)
    decision = await limiter.reserve(probe)
    limiter.settle(probe, Amounts(1, 0))
    await settled(limiter)
    return [standing.left for standing in decision.standings]


# The script


async def test_all_buckets_pay_or_none_does(limiter: Limiter) -> None:
    assert (await limiter.reserve(reservation_of(1000, 500, tokens=400))).is_granted
    refused = await limiter.reserve(reservation_of(1000, 500, tokens=400))
    assert not refused.is_granted
    assert await held(limiter, 1000, 500) == [pytest.approx(600, abs=10), pytest.approx(100, abs=5)]


async def test_a_bucket_refills_evenly(limiter: Limiter) -> None:
    assert (await limiter.reserve(reservation_of(6000, tokens=6000))).is_granted  # 100 a second
    before = time.monotonic()
    await asyncio.sleep(0.3)
    (level,) = await held(limiter, 6000)
    assert level == pytest.approx(100 * (time.monotonic() - before), abs=5)


async def test_a_bucket_goes_on_from_now_after_the_clock_was_set_back(limiter: Limiter, valkey_url: str) -> None:
    """As if Valkey's clock had been an hour ahead until now: an empty bucket must not stay empty for an hour."""
    emptied = reservation_of(6000, tokens=6000)
    assert (await limiter.reserve(emptied)).is_granted
    (counter,) = emptied.path.counters
    async with redis.asyncio.Redis.from_url(valkey_url) as valkey:
        await valkey.hset(counter, "at", str(time.time() + 3600))
    assert not (await limiter.reserve(reservation_of(6000, tokens=50))).is_granted
    await asyncio.sleep(0.6)
    assert (await limiter.reserve(reservation_of(6000, tokens=50))).is_granted


async def test_settling_gives_back_what_was_not_used(limiter: Limiter) -> None:
    reservation = reservation_of(1000, tokens=900)
    await limiter.reserve(reservation)
    limiter.settle(reservation, Amounts(1, 50))
    await settled(limiter)
    assert await held(limiter, 1000) == [pytest.approx(950, abs=5)]


async def test_using_more_than_reserved_is_a_debt_that_must_be_worked_off(limiter: Limiter) -> None:
    reservation = reservation_of(1000, tokens=100)
    await limiter.reserve(reservation)
    limiter.settle(reservation, Amounts(1, 3000))
    await settled(limiter)
    assert await held(limiter, 1000) == [pytest.approx(-2000, abs=10)]
    refused = await limiter.reserve(reservation_of(1000, tokens=1))
    assert not refused.is_granted
    assert refused.standings[0].remaining == 0
    assert refused.standings[0].wait_s(1) == pytest.approx(2001 / 1000 * 60, rel=0.02)


async def test_a_refund_never_fills_above_the_capacity(limiter: Limiter) -> None:
    reservation = reservation_of(60_000, tokens=500)
    await limiter.reserve(reservation)
    await asyncio.sleep(0.6)  # refilled meanwhile
    limiter.settle(reservation, NOTHING)
    await settled(limiter)
    assert await held(limiter, 60_000) == [60_000]


async def test_settling_twice_is_settling_once(limiter: Limiter) -> None:
    reservation = reservation_of(1000, tokens=500)
    await limiter.reserve(reservation)
    limiter.settle(reservation, Amounts(1, 400))
    await settled(limiter)
    limiter.settle(reservation, Amounts(1, 400))
    await settled(limiter)
    assert await held(limiter, 1000) == [pytest.approx(600, abs=5)]


async def test_reserving_twice_under_one_charge_id_takes_once(limiter: Limiter) -> None:
    reservation = reservation_of(1000, tokens=600)
    assert (await limiter.reserve(reservation)).is_granted
    assert (await limiter.reserve(reservation)).is_granted
    assert await held(limiter, 1000) == [pytest.approx(400, abs=5)]


async def test_nothing_stays_in_valkey(limiter: Limiter, valkey_url: str) -> None:
    reservation = reservation_of(60_000, tokens=10)
    await limiter.reserve(reservation)
    limiter.settle(reservation, NOTHING)
    await settled(limiter)
    async with redis.asyncio.Redis.from_url(valkey_url) as client:
        keys = await client.keys("*")
        assert len(keys) == 1  # the bucket; the reservation is gone
        assert 0 < await client.pttl(keys[0]) < 3000  # and the bucket goes once it would be full


async def test_all_keys_of_an_organization_share_a_hash_slot(limiter: Limiter, valkey_url: str) -> None:
    await limiter.reserve(reservation_of(10, 10))
    async with redis.asyncio.Redis.from_url(valkey_url) as client:
        tags = {key.split(b"{")[1].split(b"}")[0] for key in await client.keys("*")}
    assert tags == {ORGANIZATION.hex.encode()}


async def test_a_valkey_that_forgot_the_script_is_told_again(limiter: Limiter, valkey_url: str) -> None:
    await limiter.reserve(reservation_of(10))
    async with redis.asyncio.Redis.from_url(valkey_url) as client:
        await client.script_flush()
    assert (await limiter.reserve(reservation_of(10))).is_granted


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.integers(0, 120), st.one_of(st.none(), st.integers(0, 150))), min_size=1, max_size=12)
)
def test_the_bucket_agrees_with_its_model(valkey_url: str, steps: list[tuple[int, int | None]]) -> None:
    """Reserve, then settle some: against exact arithmetic, within what refills meanwhile (capacity 1,000 a minute)."""

    async def run() -> None:
        owner = uuid4().hex
        started = time.monotonic()
        level = 1000.0
        async with open_limiter(valkey_url) as limiter:
            for tokens, used in steps:
                reservation = reservation_of(1000, tokens=tokens, owner=owner)
                decision = await limiter.reserve(reservation)
                slack = (time.monotonic() - started) * 1000 / 60 + 0.01
                if decision.is_granted:
                    assert level + slack >= tokens
                    level -= tokens
                else:
                    assert level < tokens
                if used is not None:
                    limiter.settle(reservation, Amounts(1, used))
                    await settled(limiter)
                    level = min(1000.0, level + tokens - used) if decision.is_granted else level
            (now,) = await held(limiter, 1000, owner=owner)
            slack = (time.monotonic() - started) * 1000 / 60 + 0.01
            assert level - 0.01 <= now <= min(1000.0, level + slack)

    asyncio.run(run())


async def test_three_replicas_never_oversell(valkey_url: str) -> None:
    """Three limiters, 150 requests at once, limits on the team and on each of its three keys: all of them hold."""
    world = World()
    team = world.add_team(RateLimits(requests_per_minute=40, tokens_per_minute=3000))
    for _ in range(3):
        world.add_key(team, limits=RateLimits(requests_per_minute=25))
    callers = [Caller(key, team) for key in world.keys.values()]
    started = time.monotonic()
    async with open_limiter(valkey_url) as a, open_limiter(valkey_url) as b, open_limiter(valkey_url) as c:

        async def attempt(number: int) -> int | None:
            try:
                await admit(callers[number % 3], request_of(max_tokens=100), MODEL, (a, b, c)[number // 3 % 3])
            except LimitExceeded:
                return None
            return number % 3

        admitted = [key for key in await asyncio.gather(*map(attempt, range(150))) if key is not None]
    elapsed = time.monotonic() - started
    assert len(admitted) <= 30 + 3000 / 60 * elapsed / 100  # 3,000 tokens are 30 requests of 100
    assert len(admitted) >= 30
    assert max(admitted.count(key) for key in range(3)) <= 25 + 25 / 60 * elapsed


# admit and its ticket


async def test_without_limits_no_valkey_is_needed() -> None:
    async with open_limiter("redis://127.0.0.1:1/0", timeout_s=0.2) as limiter:
        with await admit(caller_with(), request_of(), MODEL, limiter) as ticket:
            assert ticket.headers == {}


async def test_valkey_away_is_503_and_says_that_the_key_is_fine() -> None:
    caller = caller_with(RateLimits(requests_per_minute=5))
    async with open_limiter("redis://127.0.0.1:1/0", timeout_s=0.2) as limiter:
        with structlog.testing.capture_logs() as logged:
            for _ in range(3):
                with pytest.raises(ApiError) as caught:
                    await admit(caller, request_of(), MODEL, limiter)
                assert (caught.value.status, caught.value.detail.code) == (503, "limits_unavailable")
                assert "retry-after" in caught.value.headers
    assert [event["event"].partition(":")[0] for event in logged] == ["valkey is away"]


async def test_a_hanging_valkey_costs_its_timeout_once() -> None:
    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    async with server, open_limiter(url, timeout_s=0.1) as limiter:
        started = time.monotonic()
        for _ in range(20):
            with pytest.raises(ValkeyAway):
                await limiter.reserve(reservation_of(10))
        assert time.monotonic() - started < 0.45
        server.close()


async def test_one_call_finds_out_that_valkey_still_hangs_and_the_others_do_not_wait() -> None:
    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def waited(limiter: Limiter) -> float:
        started = time.monotonic()
        with pytest.raises(ValkeyAway):
            await limiter.reserve(reservation_of(10))
        return time.monotonic() - started

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    async with server, open_limiter(url, timeout_s=0.4) as limiter:
        first = asyncio.create_task(waited(limiter))
        await asyncio.sleep(0.2)
        assert await waited(limiter) < 0.35, "a call that came during the first one's wait waited a timeout of its own"
        assert await first < 0.7
        await asyncio.sleep(0.6)
        trial = asyncio.create_task(waited(limiter))
        await asyncio.sleep(0.05)
        assert await waited(limiter) < 0.05
        assert await trial > 0.3
        server.close()


async def test_a_call_that_cannot_be_sent_leaves_the_next_ones_an_answer(valkey_url: str) -> None:
    queue = ScriptQueue(connect(valkey_url), "return {ARGV[1]}", 1.0)
    queue.start()
    try:
        async with asyncio.timeout(5):
            with pytest.raises(ValkeyAway, match="TypeError"):
                await queue.submit(["k"], [object()])  # type: ignore[list-item]
            assert await queue.submit(["k"], ["after it"]) == [b"after it"]
            assert queue.is_available
    finally:
        await queue.close()


async def test_a_refusal_names_the_limit_and_when_to_come_back(limiter: Limiter) -> None:
    caller = caller_with(key=RateLimits(requests_per_minute=100), team=RateLimits(requests_per_minute=2))
    for _ in range(2):
        await admit(caller, request_of(), MODEL, limiter)
    with pytest.raises(LimitExceeded) as caught:
        await admit(caller, request_of(), MODEL, limiter)
    error = caught.value
    assert (error.status, error.detail.type, error.detail.code) == (429, "requests", "rate_limit_exceeded")
    assert "this team" in error.detail.message
    assert "Limit 2" in error.detail.message
    headers = error.headers
    assert headers["retry-after"] == "30"
    assert 29_000 < int(headers["retry-after-ms"]) <= 30_000
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "0"


async def test_retry_after_is_exact(limiter: Limiter) -> None:
    caller = caller_with(RateLimits(tokens_per_minute=60_000))  # one a millisecond
    await admit(caller, request_of(max_tokens=60_000), MODEL, limiter)
    with pytest.raises(LimitExceeded) as caught:
        await admit(caller, request_of(max_tokens=300), MODEL, limiter)
    wait_s = int(caught.value.headers["retry-after-ms"]) / 1000
    assert 0.1 < wait_s <= 0.3
    await asyncio.sleep(wait_s)
    await admit(caller, request_of(max_tokens=300), MODEL, limiter)


@pytest.mark.parametrize("limits", [RateLimits(tokens_per_minute=50), RateLimits(requests_per_minute=0)])
async def test_what_can_never_fit_is_not_to_be_retried(limiter: Limiter, limits: RateLimits) -> None:
    with pytest.raises(LimitExceeded) as caught:
        await admit(caller_with(limits), request_of(max_tokens=51), MODEL, limiter)
    assert caught.value.headers["x-should-retry"] == "false"
    assert "retry-after" not in caught.value.headers


async def test_headers_show_the_tightest_limit(limiter: Limiter) -> None:
    caller = caller_with(key=RateLimits(10, 5000), team=RateLimits(4, 90_000))
    ticket = await admit(caller, request_of(max_tokens=1000), MODEL, limiter)
    headers = ticket.headers
    assert headers["x-ratelimit-limit-requests"] == "4"
    assert headers["x-ratelimit-remaining-requests"] == "3"
    assert headers["x-ratelimit-reset-requests"] == "15s"
    assert headers["x-ratelimit-limit-tokens"] == "5000"
    assert int(headers["x-ratelimit-remaining-tokens"]) == pytest.approx(4000, abs=2)
    assert headers["x-ratelimit-reset-tokens"].startswith("12")


async def test_without_max_tokens_the_model_s_longest_answer_is_reserved(limiter: Limiter) -> None:
    caller = caller_with(RateLimits(tokens_per_minute=1000))
    request = read_request("/v1/completions", b'{"model":"m","prompt":"' + b"x" * 398 + b'"}')
    ticket = await admit(caller, request, MODEL, limiter)
    assert int(ticket.headers["x-ratelimit-remaining-tokens"]) == pytest.approx(800, abs=2)


async def test_every_prompt_s_answer_is_reserved(limiter: Limiter) -> None:
    caller = caller_with(RateLimits(tokens_per_minute=1000))
    body = b'{"model":"m","max_tokens":100,"prompt":["a","b","c"]}'
    ticket = await admit(caller, read_request("/v1/completions", body), MODEL, limiter)
    assert int(ticket.headers["x-ratelimit-remaining-tokens"]) == pytest.approx(697, abs=3)


async def test_a_ticket_is_settled_once(limiter: Limiter) -> None:
    ticket = await admit(caller_with(RateLimits(5, 5000)), request_of(), MODEL, limiter)
    ticket.settle(Amounts(1, 5))
    with pytest.raises(RuntimeError):
        ticket.settle(Amounts(1, 5))
    with ticket:
        pass  # and leaving its block does not settle it again
    await settled(limiter)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(failure=st.sampled_from([None, ValueError, KeyboardInterrupt, asyncio.CancelledError]), settles=st.booleans())
def test_whatever_happens_the_ticket_is_closed(
    valkey_url: str, failure: type[BaseException] | None, settles: bool
) -> None:
    async def run() -> None:
        async with open_limiter(valkey_url) as limiter:
            caller = caller_with(RateLimits(requests_per_minute=10, tokens_per_minute=1000))
            tickets: list[Ticket] = []
            with nullcontext() if failure is None else pytest.raises(failure):
                with await admit(caller, request_of(max_tokens=500), MODEL, limiter) as ticket:
                    tickets.append(ticket)
                    if settles:
                        ticket.settle(Amounts(1, 100))
                    if failure is not None:
                        raise failure
            assert tickets[0].is_closed
            await settled(limiter)
            after = await admit(caller, request_of(), MODEL, limiter)
            assert int(after.headers["x-ratelimit-remaining-tokens"]) == pytest.approx(900 if settles else 1000, abs=5)
            assert int(after.headers["x-ratelimit-remaining-requests"]) == (8 if settles else 9)

    asyncio.run(run())


async def test_a_caller_that_is_cancelled_while_reserving_leaves_nothing_behind(limiter: Limiter) -> None:
    caller = caller_with(RateLimits(tokens_per_minute=60))
    for _ in range(20):
        task = asyncio.create_task(admit(caller, request_of(max_tokens=60), MODEL, limiter))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and task.exception() is None:
            task.result().refund()
        await settled(limiter)
    await admit(caller, request_of(max_tokens=60), MODEL, limiter)


class Line:
    """A way to Valkey on which replies get lost while it `is_mute`."""

    def __init__(self) -> None:
        self.is_mute = False
        self.num_lost = 0

    @asynccontextmanager
    async def to(self, valkey_url: str) -> AsyncIterator[str]:
        async with await asyncio.start_server(partial(self._join, urlsplit(valkey_url).port), "127.0.0.1", 0) as server:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"

    async def _join(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        replies, calls = await asyncio.open_connection("127.0.0.1", port)
        there = asyncio.create_task(self._carry(reader, calls))
        await self._carry(replies, writer, loses=True)
        await there

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, loses: bool = False) -> None:
        while piece := await reader.read(1 << 16):
            if loses and self.is_mute:
                self.num_lost += 1
            else:
                writer.write(piece)
        writer.close()


async def test_what_ran_locally_is_counted_though_its_first_reservation_is_still_given_back(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Valkey had reserved, only its reply was lost; and the request has ended before that is put right."""
    monkeypatch.setattr("descant_gateway.limits.limiter._SETTLE_RETRY_S", 0.5)
    monkeypatch.setattr("descant_gateway.limits.script_queue._RETRY_AFTER_S", 0.05)
    line, shares = Line(), LocalShares(OutagePolicy(rates=Outage.LOCAL))
    caller = caller_with(RateLimits(tokens_per_minute=1000))
    async with line.to(valkey_url) as url, open_limiter(url, timeout_s=0.2) as limiter:
        (await admit(caller, request_of(), MODEL, limiter)).settle(NOTHING)
        await settled(limiter)
        line.is_mute = True
        ticket = await admit(caller, request_of(max_tokens=100), MODEL, limiter, local_shares=shares)
        assert (ticket.is_local, line.num_lost) == (True, 1)
        line.is_mute = False
        await asyncio.sleep(0.1)
        ticket.settle(Amounts(1, 500))
        assert limiter.num_unsettled == 2
        await settled(limiter)
        after = await admit(caller, request_of(), MODEL, limiter)
        assert int(after.headers["x-ratelimit-remaining-tokens"]) == pytest.approx(500, abs=50)


async def test_a_settlement_waits_for_valkey_to_come_back(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("descant_gateway.limits.limiter._SETTLE_RETRY_S", 0.05)
    monkeypatch.setattr("descant_gateway.limits.script_queue._RETRY_AFTER_S", 0.05)
    async with open_limiter(valkey_url, timeout_s=0.2) as limiter, redis.asyncio.Redis.from_url(valkey_url) as client:
        reservation = reservation_of(1000, tokens=900)
        await limiter.reserve(reservation)
        await client.client_pause(600, all=True)
        limiter.settle(reservation, Amounts(1, 10))
        await asyncio.sleep(0.4)
        assert limiter.num_unsettled == 1
        await eventually(lambda: limiter.num_unsettled == 0)
        (level,) = await held(limiter, 1000)
        assert level >= 989


async def test_however_many_settlements_wait_one_asks_whether_valkey_is_back(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("descant_gateway.limits.limiter._SETTLE_RETRY_S", 0.05)
    async with open_limiter(valkey_url, timeout_s=0.2) as limiter:
        submitted, submit, is_away = [], limiter._submit, True

        def submit_unless_away(*call: Any) -> asyncio.Future[Any]:
            submitted.append(call)
            if not is_away:
                return submit(*call)
            lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            lost.set_exception(ValkeyAway("away"))
            return lost

        monkeypatch.setattr(limiter, "_submit", submit_unless_away)
        for _ in range(500):
            limiter.book(reservation_of(1_200, tokens=2), Amounts(1, 2))
        await eventually(lambda: len(submitted) >= 510)
        assert limiter.num_unsettled == 500
        assert len(submitted) < 550, "not every one of them tries again"
        is_away, back_at = False, time.monotonic()
        await eventually(lambda: limiter.num_unsettled == 0)
        monkeypatch.undo()
        (level,) = await held(limiter, 1_200)
        assert 200 <= level <= 201 + 20 * (time.monotonic() - back_at), "twenty a second come back"


def test_limits_on_the_path_are_all_that_are_set() -> None:
    caller = caller_with(key=RateLimits(requests_per_minute=1), team=RateLimits(tokens_per_minute=2))
    limits = list(limits_of(caller, Catalogue(version=1)))
    assert [(limit.level, limit.kind, limit.capacity) for limit in limits] == [
        ("key", "requests_per_minute", 1),
        ("team", "tokens_per_minute", 2),
    ]
    assert PEPPER not in repr(limits)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.012, "12ms"),
        (0.0121, "13ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (3725.25, "1h2m5.25s"),
        (-3, "0s"),
    ],
)
def test_durations_are_printed_as_go_prints_them(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


async def test_a_reply_that_came_while_this_process_was_busy_is_no_outage(valkey_url: str) -> None:
    async with open_limiter(valkey_url, timeout_s=0.2) as limiter:
        await limiter.reserve(reservation_of(10))
        for _ in range(3):
            task = asyncio.create_task(limiter.reserve(reservation_of(10)))
            for _ in range(4):
                await asyncio.sleep(0)  # the script is on its way
            time.sleep(0.4)  # noqa: ASYNC251
            assert (await task).is_granted


async def test_a_long_outage_collects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the calls that are refused at once nothing can be reserved, so nothing is kept to be given back."""
    async with open_limiter("redis://127.0.0.1:1/0", timeout_s=0.2) as limiter:
        for _ in range(500):
            with pytest.raises(ValkeyAway):
                await limiter.reserve(reservation_of(10))
        assert limiter.num_unsettled <= 2
