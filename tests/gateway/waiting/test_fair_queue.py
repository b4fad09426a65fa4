"""The order of the queue: fair by tokens, weight and priority; bounded; and a flood harms nobody but its team."""

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from descant_gateway.waiting.fair_queue import Ask, FairQueue, QueueFull

A, B, C = (UUID(int=number) for number in (1, 2, 3))


def ask(team: UUID = A, num_tokens: int = 100, **fields: int) -> Ask:
    return Ask(team, num_tokens=num_tokens, **fields)


def popped(queue: FairQueue, count: int = 10**6) -> list[Ask]:
    asks = []
    while len(asks) < count and (next_ask := queue.pop()) is not None:
        asks.append(next_ask)
    return asks


def filled(*asks: Ask, max_length: int = 1000) -> FairQueue:
    queue = FairQueue(max_length)
    for each in asks:
        assert queue.push(each) is None
    return queue


def test_one_team_s_requests_keep_their_order() -> None:
    asks = [ask() for _ in range(5)]
    assert popped(filled(*asks)) == asks


def test_teams_take_turns_however_many_requests_one_has() -> None:
    queue = filled(*(ask(A) for _ in range(50)), *(ask(B) for _ in range(3)))
    assert [each.team_id for each in popped(queue, 6)] == [A, B, A, B, A, B]


def test_tokens_are_shared_not_requests() -> None:
    queue = filled(*(ask(A, 1000) for _ in range(50)), *(ask(B, 100) for _ in range(200)))
    served = popped(queue, 110)
    tokens = {team: sum(each.num_tokens for each in served if each.team_id == team) for team in (A, B)}
    assert tokens[A] == pytest.approx(tokens[B], abs=1000)


def test_weights_divide_the_tokens() -> None:
    queue = filled(*(ask(A, weight=3) for _ in range(100)), *(ask(B) for _ in range(100)))
    served = popped(queue, 80)
    assert sum(each.team_id == A for each in served) == pytest.approx(60, abs=2)


def test_the_higher_priority_goes_first() -> None:
    low, high = ask(A, priority=-1), ask(B, priority=5)
    assert popped(filled(low, high)) == [high, low]


def test_idle_time_saves_up_nothing() -> None:
    queue = filled(*(ask(A) for _ in range(100)))
    popped(queue, 50)
    for _ in range(50):
        queue.push(ask(B))
    assert sum(each.team_id == B for each in popped(queue, 20)) == 10


def test_the_truth_replaces_the_estimate() -> None:
    queue = filled(*(ask(A, 1000) for _ in range(30)), *(ask(B, 100) for _ in range(30)))
    for each in (first := popped(queue, 2)):
        queue.correct(each, 100)
    assert {each.team_id for each in first} == {A, B}
    assert [each.team_id for each in popped(queue, 2)] == [A, B]


def test_what_was_served_without_waiting_saves_up_nothing() -> None:
    """Its estimate was never counted, so that what it did not use of it is nobody's credit."""
    queue = filled(*(ask(A) for _ in range(30)), *(ask(B) for _ in range(30)))
    popped(queue, 2)
    queue.correct(ask(A, 4096), 10)
    assert sum(each.team_id == A for each in popped(queue, 20)) == 10


def test_who_leaves_is_not_served_and_leaves_once() -> None:
    stays, leaves = ask(), ask()
    queue = filled(leaves, stays)
    assert queue.remove(leaves)
    assert not queue.remove(leaves)
    assert len(queue) == 1
    assert popped(queue) == [stays]


def test_positions_tell_how_many_go_before() -> None:
    asks = [*(ask(A) for _ in range(9)), ask(B), ask(C, priority=1)]
    queue = filled(*asks)
    assert queue.position(asks[0]) == 2  # the higher priority, and B at worst
    assert queue.position(asks[8]) == 10
    assert queue.position(asks[9]) == 2
    assert queue.position(asks[10]) == 0


def test_a_full_queue_takes_room_from_the_team_that_waits_most() -> None:
    queue = filled(*(ask(A) for _ in range(8)), ask(B), ask(B), max_length=10)
    with pytest.raises(QueueFull):
        queue.push(ask(A))
    evicted = queue.push(ask(C))
    assert evicted is not None
    assert evicted.team_id == A
    assert len(queue) == 10


def test_a_full_queue_never_evicts_for_a_lower_priority() -> None:
    queue = filled(*(ask(A, priority=1) for _ in range(3)), max_length=3)
    with pytest.raises(QueueFull):
        queue.push(ask(B))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_everybody_is_served_once_or_leaves(data: st.DataObject) -> None:
    """Against a plain set: nobody is lost or served twice, and the length is right at every step."""
    queue, waiting = FairQueue(12), set()
    for _ in range(data.draw(st.integers(1, 60))):
        action = data.draw(st.sampled_from(["push", "push", "pop", "remove"]))
        if action == "push":
            new = ask(
                data.draw(st.sampled_from([A, B, C])),
                data.draw(st.integers(0, 500)),
                priority=data.draw(st.integers(0, 1)),
            )
            try:
                evicted = queue.push(new)
            except QueueFull:
                continue
            waiting.add(new)
            waiting.discard(evicted)
        elif action == "pop":
            got = queue.pop()
            assert (got is None) == (not waiting)
            waiting.discard(got)
        elif waiting:
            gone = data.draw(st.sampled_from(sorted(waiting, key=id)))
            assert queue.remove(gone)
            waiting.discard(gone)
        assert len(queue) == len(waiting)
        assert all(0 <= queue.position(each) < len(waiting) for each in waiting)
    assert set(popped(queue)) == waiting


# A simulation: requests come, wait for one of the slots, run as long as their tokens take


@dataclass
class Simulation:
    """Deterministic: `rates` are requests a second of each team; a request takes num_tokens / 100 seconds of a slot."""

    queue: FairQueue | deque[Ask]
    rates: dict[UUID, float]
    num_slots: int = 8
    seconds: float = 400.0
    waits: dict[UUID, list[float]] = field(default_factory=dict)

    def run(self) -> "Simulation":
        arrivals = []
        for team, rate in self.rates.items():
            now, own_chance = 0.0, random.Random(team.int)
            while (now := now + own_chance.expovariate(rate)) < self.seconds:
                arrivals.append((now, team, own_chance.randint(50, 150)))
        arrivals.sort(key=lambda arrival: arrival[0])
        self.waits = {team: [] for team in self.rates}
        came: dict[Ask, float] = {}
        ends: list[float] = []
        for now, team, num_tokens in arrivals:
            while ends and ends[0] <= now:
                self._start_next(heapq.heappop(ends), came, ends)
            new = Ask(team, num_tokens=num_tokens)
            came[new] = now
            if len(ends) < self.num_slots:
                self._start(new, now, came, ends)
            elif isinstance(self.queue, FairQueue):
                self.queue.push(new)
            else:
                self.queue.append(new)
        return self

    def _start_next(self, now: float, came: dict[Ask, float], ends: list[float]) -> None:
        if isinstance(self.queue, FairQueue):
            chosen = self.queue.pop()
        else:
            chosen = self.queue.popleft() if self.queue else None
        if chosen is not None:
            self._start(chosen, now, came, ends)

    def _start(self, chosen: Ask, now: float, came: dict[Ask, float], ends: list[float]) -> None:
        self.waits[chosen.team_id].append(now - came[chosen])
        heapq.heappush(ends, now + chosen.num_tokens / 100)

    def p99(self, team: UUID) -> float:
        waits = sorted(self.waits[team])
        return waits[int(0.99 * (len(waits) - 1))]


def test_a_flood_does_not_raise_another_team_s_p99_wait() -> None:
    """The slots take 8 requests a second. B and C ask for 2 each; A for all that is left, then for 30 times that."""
    calm = Simulation(FairQueue(10**9), {A: 4.5, B: 2, C: 2}).run()
    flood = Simulation(FairQueue(10**9), {A: 135, B: 2, C: 2}).run()
    for team in (B, C):
        assert flood.p99(team) <= 1.5 * calm.p99(team)
    in_order = Simulation(deque(), {A: 135, B: 2, C: 2}).run()
    assert in_order.p99(B) > 50 * calm.p99(B)  # what the fair order prevents


def test_a_flood_into_a_bounded_queue_is_its_team_s_own_loss() -> None:
    """With room for 50, all that B and C send is served though A alone could fill the queue every second."""
    queue = FairQueue(50)
    lost: dict[UUID, int] = {A: 0, B: 0, C: 0}
    chance = random.Random(5)
    served = {A: 0, B: 0, C: 0}
    for _ in range(2000):
        for team, count in ((A, 20), (B, 1), (C, 1)):
            for _ in range(count):
                try:
                    evicted = queue.push(ask(team, chance.randint(50, 150)))
                except QueueFull:
                    lost[team] += 1
                else:
                    lost[evicted.team_id if evicted else A] += evicted is not None
        for each in popped(queue, 4):
            served[each.team_id] += 1
    assert (lost[B], lost[C]) == (0, 0)
    assert served[B] == pytest.approx(2000, abs=5)
    assert lost[A] > 30_000
