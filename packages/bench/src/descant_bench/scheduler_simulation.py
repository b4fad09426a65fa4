"""What the scheduler does to whom, on a simulated device.

python -m descant_bench.scheduler_simulation        prints the figures of docs/results/scheduler.md
"""

import json
import random
import time
from dataclasses import replace

from descant_bench.percentiles import percentile
from descant_bench.simulated_engine import H200_LORA, Arrival, CostModel, Served, SimulatedEngine

NUM_QUIET = 20
BURST = "burst"
"""The tenant whose burst it is."""
SETTLED_MS = 3000
"""From the start; adapters are loaded in it, and the flood begins."""


def poisson(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Times in ms."""
    generator = random.Random(seed)
    times = []
    now = generator.expovariate(rate_per_s)
    while now < seconds:
        times.append(1000 * now)
        now += generator.expovariate(rate_per_s)
    return times


def neighbours(rate: float, *, with_flood: bool, seconds: float = 30, cost: CostModel = H200_LORA) -> list[Served]:
    """`rate` requests a second of 256 in, 128 out; a tenth of them the twenty quiet adapters', the rest one's, as
    `descant_bench.neighbours` writes them."""
    engine = SimulatedEngine(1 + NUM_QUIET, cost=cost)
    names = engine.adapters
    typical = Arrival(0, num_prompt_tokens=256, num_output_tokens=128)
    arrivals = [Arrival(0, name, num_prompt_tokens=16, num_output_tokens=1) for name in names]
    arrivals += (
        replace(typical, at_ms=1000 + 10_000 * index / rate, adapter=names[1 + index % NUM_QUIET])
        for index in range(round(rate * seconds / 10))
    )
    if with_flood:
        flood = range(round(rate * seconds * 0.9))
        arrivals += (replace(typical, at_ms=1000 + 1000 * index / (0.9 * rate), adapter=names[0]) for index in flood)
    return engine.serve(arrivals)


def neighbours_figures(rate: float, seconds: float = 30) -> dict[str, float]:
    calm, beside = (neighbours(rate, with_flood=with_flood, seconds=seconds) for with_flood in (False, True))
    quiet = [
        [one.ttft_ms for one in served if one.arrival.adapter != "adapter-0000" and one.arrival.at_ms > SETTLED_MS]
        for served in (calm, beside)
    ]
    p99 = [percentile(ttft, 0.99) for ttft in quiet]
    last_arrival_ms = max(one.arrival.at_ms for one in beside)
    done = sum(one.finished_ms <= last_arrival_ms for one in beside) / (last_arrival_ms / 1000 - 1)
    return {
        "rate": rate,
        "p50_calm_ms": round(percentile(quiet[0], 0.5), 1),
        "p50_beside_ms": round(percentile(quiet[1], 0.5), 1),
        "p99_calm_ms": round(p99[0], 1),
        "p99_beside_ms": round(p99[1], 1),
        "ratio": round(p99[1] / p99[0], 2),
        "served_per_s": round(done, 1),
        "all_done_s": round(max(one.finished_ms for one in beside) / 1000, 1),
    }


def flood_figures(flood_rate: float, seconds: float = 30) -> dict[str, float]:
    """Ten adapters, all loaded: nine send five requests a second together, the tenth sends `flood_rate`."""
    engine = SimulatedEngine(10)
    names = engine.adapters
    arrivals = [Arrival(0, name, num_prompt_tokens=16, num_output_tokens=1) for name in names]
    arrivals += [Arrival(500 + t, names[1 + i % 9]) for i, t in enumerate(poisson(5, seconds, seed=1))]
    if flood_rate > 0:
        arrivals += [Arrival(500 + t, names[0]) for t in poisson(flood_rate, seconds, seed=2)]
    served = engine.serve(arrivals)
    quiet = [one.ttft_ms for one in served if one.arrival.adapter != names[0] and one.arrival.at_ms > 2000]
    return {
        "flood_rate": flood_rate,
        "quiet_p50_ms": round(percentile(quiet, 0.5), 1),
        "quiet_p99_ms": round(percentile(quiet, 0.99), 1),
        "all_done_ms": round(max(one.finished_ms for one in served)),
    }


def burst(num_slots: int, *, tenant: str, num_runs: int = 2) -> list[Served]:
    """The last run of `descant_bench.neighbours`' many.jsonl, four requests to each of 255 adapters, with the trickle
    to adapter 0 and the base as `tenant`'s."""
    engine = SimulatedEngine(256, cost=H200_LORA, num_slots=num_slots)
    order = engine.adapters[1:] * 4
    random.Random(1).shuffle(order)
    served = []
    for _ in range(num_runs):
        now = engine.clock.now_ms
        typical = Arrival(now + 1000, tenant=BURST, num_prompt_tokens=256, num_output_tokens=128)
        arrivals = [replace(typical, adapter=adapter) for adapter in order]
        for index in range(48):
            adapter = (engine.adapters[0], None)[index % 2]
            arrivals.append(replace(typical, at_ms=now + 250 * index, adapter=adapter, tenant=tenant))
        served = engine.serve(arrivals)
    return served


def burst_figures(num_slots: int, tenant: str) -> dict[str, str | float]:
    served = burst(num_slots, tenant=tenant)
    groups: dict[str, list[Served]] = {"burst": [], "base": [], "resident": []}
    for one in served:
        trickles = {None: "base", "adapter-0000": "resident"}
        groups[trickles.get(one.arrival.adapter, "burst")].append(one)
    figures: dict[str, str | float] = {"slots": num_slots, "trickle_of": tenant}
    for name, members in groups.items():
        ttft = [one.ttft_ms for one in members]
        figures |= {f"{name}_p50_ms": round(percentile(ttft, 0.5)), f"{name}_p99_ms": round(percentile(ttft, 0.99))}
    first_ms = min(one.arrival.at_ms for one in groups["burst"])
    return figures | {"burst_done_s": round((max(one.finished_ms for one in groups["burst"]) - first_ms) / 1000, 1)}


def host_figures(num_adapters: int, num_steps: int = 200) -> dict[str, float]:
    """CPU time of a decode step's schedule and update: 256 running, 1,000 queued, spread over the adapters."""
    engine = SimulatedEngine(num_adapters, num_blocks=120_000)
    scheduler, names = engine.scheduler, engine.adapters
    for index in range(1256):
        adapter = names[7 * index % num_adapters] if names else None
        arrival = Arrival(0, adapter, num_prompt_tokens=64, num_output_tokens=2000)
        scheduler.add(arrival.request(index))
    spent = []
    for _ in range(600 + num_steps):
        start = time.process_time()
        plan = scheduler.schedule()
        planned = time.process_time()
        launched = engine.device.launch(plan, 0.0)
        update = time.process_time()
        scheduler.update(plan, launched.result)
        scheduler.finish_loads(launched.events)
        spent.append(planned - start + time.process_time() - update)
    start = time.process_time()
    scheduler.stats()
    stats_us = round(1e6 * (time.process_time() - start))
    return {"adapters": num_adapters, "step_us": round(1e6 * percentile(spent[600:], 0.5)), "stats_us": stats_us}


def main() -> None:
    for rate in (20, 60, 120):
        print(json.dumps(neighbours_figures(rate)), flush=True)
    for flood_rate in (0, 45, 90):
        print(json.dumps(flood_figures(flood_rate)), flush=True)
    for tenant in ("trickle", BURST):
        for num_slots in (256, 32):
            print(json.dumps(burst_figures(num_slots, tenant)), flush=True)
    for num_adapters in (0, 64, 1000):
        print(json.dumps(host_figures(num_adapters)), flush=True)


if __name__ == "__main__":
    main()
