"""Who is served next, by the real scheduler on a device that only takes time: `descant_bench.simulated_engine`."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from descant_bench.percentiles import percentile
from descant_bench.scheduler_simulation import burst, poisson
from descant_bench.simulated_engine import Arrival, Served, SimulatedEngine

SECONDS = 20
WARM_UP_MS = 2500
"""Adapters are loaded in it, and the flood begins."""


def _serve(names: Sequence[str], *, flood_rate: float, by_tenant: bool = False) -> tuple[list[Served], list[Served]]:
    """Nine quiet adapters, or tenants, with five requests a second; the tenth sends `flood_rate`. (quiet, flood)."""

    def arrival(at_ms: float, who: int) -> Arrival:
        return Arrival(at_ms, names[0], f"tenant-{who}") if by_tenant else Arrival(at_ms, names[who])

    warm = [Arrival(0, name, num_prompt_tokens=16, num_output_tokens=1) for name in names]
    quiet = [arrival(1000 + t, 1 + i % 9) for i, t in enumerate(poisson(5, SECONDS, seed=1))]
    flood = [arrival(500 + t, 0) for t in poisson(flood_rate, SECONDS, seed=2)] if flood_rate else []
    engine = SimulatedEngine(len(names))
    served = [one for one in engine.serve([*warm, *quiet, *flood]) if one.arrival.num_output_tokens > 1]
    of_flood = {id(one) for one in flood}
    return (
        [one for one in served if id(one.arrival) not in of_flood and one.arrival.at_ms > WARM_UP_MS],
        [one for one in served if id(one.arrival) in of_flood],
    )


@pytest.mark.parametrize("by_tenant", [False, True], ids=["adapters", "tenants"])
def test_a_flood_of_nine_requests_in_ten_hardly_delays_the_others(by_tenant: bool) -> None:
    names = SimulatedEngine(10).adapters
    alone, _ = _serve(names, flood_rate=0, by_tenant=by_tenant)
    beside, flood = _serve(names, flood_rate=45, by_tenant=by_tenant)
    p99_alone, p99_beside = (percentile([one.ttft_ms for one in served], 0.99) for served in (alone, beside))
    assert p99_beside < 1.6 * p99_alone
    assert percentile([one.ttft_ms for one in flood], 0.99) > 3 * p99_beside, "whoever floods waits for himself"


def test_being_fair_costs_little_throughput() -> None:
    """The same work as one adapter's, where nobody has to be spared."""
    names = SimulatedEngine(10).adapters
    quiet, flood = _serve(names, flood_rate=90)
    seconds = max(one.finished_ms for one in [*quiet, *flood])
    alone = SimulatedEngine(1).serve(Arrival(one.arrival.at_ms, names[0]) for one in [*quiet, *flood])
    assert seconds < 1.2 * max(one.finished_ms for one in alone)


@pytest.mark.parametrize("num_slots", [256, 32], ids=["room for all", "room for 32"])
def test_a_burst_over_255_adapters_hardly_delays_another_tenant(num_slots: int) -> None:
    """Not his requests to the base, and not those to an adapter that is there, whether the burst's are or not."""
    served = burst(num_slots, tenant="trickle", num_runs=1)
    trickle = [one.ttft_ms for one in served if one.arrival.tenant == "trickle"]
    assert percentile(trickle, 0.5) < 60
    assert max(trickle) < 400
    others = [one.ttft_ms for one in served if one.arrival.tenant != "trickle"]
    assert percentile(others, 0.5) > 4000, "there is more than the device can do"


def test_of_256_flows_that_want_more_the_base_gets_its_turn() -> None:
    """In one tenant, its first request beside a burst over 255 adapters waits for the places' first turn, and each
    further one for the next: every adapter has four requests, so it has four by the time that they are done."""
    served = burst(256, tenant="burst", num_runs=1)
    done = max(one.first_token_ms for one in served if one.arrival.adapter not in (None, "adapter-0000"))
    base = [one.first_token_ms for one in served if one.arrival.adapter is None and one.arrival.at_ms >= 1000]
    assert 3 <= sum(first_ms < done for first_ms in base) <= 12


def test_equal_demand_gets_equal_service() -> None:
    """Two tenants ask at once for more than there is; one with long answers, one with short. Tokens are divided."""
    arrivals = [Arrival(0, None, "long", num_output_tokens=200) for _ in range(100)]
    arrivals += [Arrival(0, None, "short", num_output_tokens=20) for _ in range(400)]
    random.Random(3).shuffle(arrivals)
    served = SimulatedEngine(0, max_num_seqs=8).serve(arrivals)
    middle = max(one.finished_ms for one in served) / 3
    cost: Counter[str] = Counter()
    for one in served:
        if one.finished_ms < middle:
            cost[one.arrival.tenant] += one.arrival.num_prompt_tokens + 2 * one.arrival.num_output_tokens
    assert 0.8 < cost["long"] / cost["short"] < 1.25


def test_idle_time_is_no_credit() -> None:
    """Somebody was alone for long; who comes then shares with him from now on, and does not make up for the past."""
    arrivals = [Arrival(0, None, "early", num_output_tokens=32) for _ in range(400)]
    arrivals += [Arrival(5000, None, "late", num_output_tokens=32) for _ in range(100)]
    served = SimulatedEngine(0, max_num_seqs=4).serve(arrivals)
    late = sorted(one.finished_ms for one in served if one.arrival.tenant == "late")
    between = [one for one in served if one.arrival.tenant == "early" and late[0] < one.finished_ms < late[-1]]
    assert 80 < len(between) < 125, "one of the early for each of the late"


def test_priorities_go_before_fairness() -> None:
    arrivals = [Arrival(0, None, "light", num_output_tokens=32) for _ in range(5)]
    arrivals += [Arrival(0, None, "heavy", num_output_tokens=32, priority=-1) for _ in range(40)]
    served = SimulatedEngine(0, max_num_seqs=2).serve(arrivals)
    urgent = [one.first_token_ms for one in served if one.arrival.priority < 0]
    assert max(urgent) <= min(one.first_token_ms for one in served if one.arrival.priority == 0)
