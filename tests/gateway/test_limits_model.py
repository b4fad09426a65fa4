"""A stateful model of the limiter, against a real Valkey: all or none, every level, leases, crashes and the calendar.

The model keeps the list of requests and derives from it what every limit must have left; the script keeps counters. The
script's clock is a key that the test sets, so that days pass in no time and nothing depends on how long a test takes.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from descant_gateway.limit_paths import LimitPath, path_of
from descant_gateway.limiter import Limiter, Reservation, limits_script
from descant_gateway.limits import NOTHING, Amounts, Level, Limit, LimitKind, Period
from descant_gateway.script_queue import ScriptQueue, connect

CLOCK_KEY = "test:clock"
LEASE_S = 30
ON_TEST_CLOCK = limits_script().replace("redis.call('TIME')", f"{{ redis.call('GET', '{CLOCK_KEY}'), '0' }}")
AMOUNTS = st.builds(Amounts, st.just(1), st.integers(0, 400), st.integers(0, 900))


@dataclass
class Admitted:
    reservation: Reservation
    at: float
    expires_at: float
    state: str = "running"
    """running, lapsed (its lease), settled or booked."""
    used: Amounts = NOTHING

    @property
    def path(self) -> LimitPath:
        return self.reservation.path


@dataclass
class Bucket:
    left: float
    at: float


@dataclass
class Model:
    requests: dict[UUID, Admitted] = field(default_factory=dict)
    buckets: dict[str, Bucket] = field(default_factory=dict)

    def left(self, limit: Limit, now: float) -> float:
        if limit.period is Period.MINUTE:
            bucket = self.buckets.get(limit.counter, Bucket(limit.capacity, now))
            return min(limit.capacity, bucket.left + max(0.0, now - bucket.at) * limit.capacity / 60)
        counted = [each for each in self.requests.values() if limit in each.path.limits and _same(limit, each.at, now)]
        reserved = sum(each.reservation.amounts.of(limit) for each in counted if each.state == "running")
        settled = sum(each.used.of(limit) for each in counted if each.state in ("settled", "booked"))
        return limit.capacity - reserved - (0 if limit.period is Period.OPEN else settled)

    def take(self, path: LimitPath, amounts: Amounts, now: float) -> None:
        for limit in path.limits:
            if limit.period is Period.MINUTE:
                left = self.left(limit, now) - amounts.of(limit)
                self.buckets[limit.counter] = Bucket(min(limit.capacity, left), now)

    def lapse(self, now: float) -> None:
        for each in self.requests.values():
            if each.state == "running" and each.path.needs_lease and each.expires_at <= now:
                each.state = "lapsed"


def _same(limit: Limit, moment: float, now: float) -> bool:
    return limit.period is Period.OPEN or _first(limit.period, moment) == _first(limit.period, now)


def _first(period: Period, moment: float) -> datetime:
    day = datetime.fromtimestamp(moment, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period is Period.WEEK:
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if period is Period.MONTH else day


class LimiterMachine(RuleBasedStateMachine):
    valkey_url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.valkey = redis.Redis.from_url(self.valkey_url)
        self.now = float(int(time.time()) + 86_400)
        self.model = Model()
        self.set_clock()
        self.limiter = self.runner.run(self.open())

    async def open(self) -> Limiter:
        self.queue = ScriptQueue(connect(self.valkey_url), ON_TEST_CLOCK, 5.0)
        self.queue.start()
        return Limiter(self.queue, lease_s=LEASE_S)

    async def close(self, how: Callable[[Reservation, Amounts], None], reservation: Reservation, used: Amounts) -> None:
        how(reservation, used)
        await self.limiter.drain(5.0)

    def teardown(self) -> None:
        self.runner.run(self.queue.close())
        self.runner.close()
        self.valkey.close()

    def set_clock(self) -> None:
        self.valkey.set(CLOCK_KEY, str(int(self.now)))

    @initialize(data=st.data())
    def make_limits(self, data: st.DataObject) -> None:
        """Two keys of each of two teams of one organization; every level has some of the seven kinds."""
        organization = uuid4()

        def limits_of(level: Level) -> tuple[Limit, ...]:
            kinds = data.draw(st.lists(st.sampled_from(list(LimitKind)), unique=True, min_size=1, max_size=3))
            owner = uuid4().hex
            return tuple(
                Limit(level, kind, owner, _capacity(kind, data), is_shadow=data.draw(st.integers(0, 5)) == 0)
                for kind in kinds
            )

        top = limits_of(Level.ORGANIZATION)
        teams = [limits_of(Level.TEAM) for _ in range(2)]
        self.paths = [path_of(organization, limits_of(Level.KEY) + team + top) for team in teams for _ in range(2)]

    def requests_in(self, *states: str) -> list[Admitted]:
        return [each for each in self.model.requests.values() if each.state in states]

    @rule(which=st.integers(0, 3), amounts=AMOUNTS)
    def reserve(self, which: int, amounts: Amounts) -> None:
        reservation = Reservation(uuid4(), self.paths[which], amounts)
        limits = reservation.path.limits
        fits = all(limit.is_shadow or self.model.left(limit, self.now) >= amounts.of(limit) for limit in limits)
        assert self.runner.run(self.limiter.reserve(reservation)).is_granted == fits
        if fits:
            self.model.take(reservation.path, amounts, self.now)
            self.model.requests[reservation.charge_id] = Admitted(reservation, self.now, self.now + LEASE_S)
            assert all(limit.is_shadow or self.model.left(limit, self.now) >= 0 for limit in limits)  # never oversold

    @precondition(lambda self: self.requests_in("running"))
    @rule(data=st.data())
    def reserve_again(self, data: st.DataObject) -> None:
        """As after an answer that was lost."""
        again = data.draw(st.sampled_from(self.requests_in("running"))).reservation
        assert self.runner.run(self.limiter.reserve(again)).is_granted

    @precondition(lambda self: self.requests_in("running", "lapsed"))
    @rule(data=st.data(), used=AMOUNTS, times=st.integers(1, 2))
    def settle(self, data: st.DataObject, used: Amounts, times: int) -> None:
        each = data.draw(st.sampled_from(self.requests_in("running", "lapsed")))
        for _ in range(times):
            self.runner.run(self.close(self.limiter.settle, each.reservation, used))
        reserved = each.reservation.amounts
        self.model.take(each.path, _minus(used, reserved), self.now)
        each.state, each.used = "settled", used

    @rule(which=st.integers(0, 3), used=AMOUNTS, times=st.integers(1, 2))
    def book(self, which: int, used: Amounts, times: int) -> None:
        """Of a request that was served while Valkey was away."""
        reservation = Reservation(uuid4(), self.paths[which], used)
        for _ in range(times):
            self.runner.run(self.close(self.limiter.book, reservation, used))
        self.model.take(reservation.path, used, self.now)
        self.model.requests[reservation.charge_id] = Admitted(reservation, self.now, self.now, "booked", used)

    @rule()
    def renew(self) -> None:
        """By the gateway that has them all, the lapsed ones too: it was only cut off."""
        self.runner.run(self.limiter._renew())
        for each in self.requests_in("running", "lapsed"):
            if each.path.needs_lease and each.reservation.charge_id in self.limiter._running:
                each.state, each.expires_at = "running", self.now + LEASE_S

    @precondition(lambda self: self.requests_in("running"))
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """The gateway that had it is gone: nobody renews or settles it."""
        gone = data.draw(st.sampled_from(self.requests_in("running")))
        self.limiter._running.pop(gone.reservation.charge_id, None)

    @rule(seconds=st.one_of(st.integers(1, 20), st.sampled_from([31, 3600, 86_400, 7 * 86_400, 20 * 86_400])))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        self.set_clock()

    @rule(seconds=st.integers(1, 5))
    def set_the_clock_back(self, seconds: int) -> None:
        if _first(Period.DAY, self.now - seconds) == _first(Period.DAY, self.now):
            self.now -= seconds
            self.set_clock()

    @invariant()
    def every_limit_has_left_what_the_model_says(self) -> None:
        for path in getattr(self, "paths", ()):
            self.model.lapse(self.now)
            standings = self.runner.run(self.limiter.peek(path))
            for standing in standings:
                expected = self.model.left(standing.limit, self.now)
                assert abs(standing.left - expected) < 1e-3, (standing, expected)
            assert len(standings) == len(path.limits)

    @invariant()
    def every_lease_comes_back(self) -> None:
        """Valkey's set of leases is exactly the requests that run."""
        if paths := getattr(self, "paths", ()):
            names = {name.decode() for name in self.valkey.zrange(f"{paths[0].tag}:leases", 0, -1)}
            running = {each.reservation.name for each in self.requests_in("running") if each.path.needs_lease}
            assert names == running


def _capacity(kind: LimitKind, data: st.DataObject) -> int:
    match kind:
        case LimitKind.REQUESTS_PER_MINUTE:
            return data.draw(st.integers(1, 10)) * 60
        case LimitKind.TOKENS_PER_MINUTE:
            return data.draw(st.integers(1, 20)) * 60
        case LimitKind.CONCURRENT_REQUESTS:
            return data.draw(st.integers(0, 5))
    return data.draw(st.integers(0, 3000))


def _minus(used: Amounts, reserved: Amounts) -> Amounts:
    return Amounts(used.requests - reserved.requests, used.tokens - reserved.tokens, 0)


def test_the_limiter_agrees_with_its_model(valkey_url: str) -> None:
    machine = type("BoundMachine", (LimiterMachine,), {"valkey_url": valkey_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
