"""Who gives way to whom: what others add to a step is bounded by the time it may take."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from descant_bench.percentiles import percentile
from descant_bench.recorded import Popularity
from descant_bench.scheduler_simulation import neighbours_figures
from descant_bench.simulated_engine import H200_LORA, Arrival, CostModel, SimulatedEngine
from descant_engine.scheduler import room
from descant_engine.scheduler.plan import StepPlan
from descant_engine.scheduler.precedence import RECENT_S, Precedence

CPU = CostModel(step=25.0, request=3.0, prompt_token=3.0)
"""A small model on two cores: a prompt's token costs as much as an answer's."""


@pytest.mark.parametrize("rate", [60, 120])
def test_a_flood_costs_others_at_most_half_of_their_time_to_first_token(rate: float) -> None:
    figures = neighbours_figures(rate, seconds=8)
    assert figures["ratio"] <= 1.5
    assert figures["served_per_s"] >= min(rate, 35), "and the device still works for who floods"


def _chats_and_lines(num_lines: int) -> list[Arrival]:
    """Two chats a second; the lines of a batch wait from the beginning on."""
    generator = random.Random(5)
    chats, now = [], 1000.0
    for _ in range(50):
        now += 1000 * generator.expovariate(2)
        chats.append(Arrival(now, num_prompt_tokens=40, num_output_tokens=16))
    lines = [Arrival(0, num_prompt_tokens=60, num_output_tokens=16, priority=1000) for _ in range(num_lines)]
    return chats + lines


def _p99_and_lines(cost: CostModel, num_lines: int, **options: int) -> tuple[float, int]:
    served = SimulatedEngine(0, cost=cost, **options).serve(_chats_and_lines(num_lines))
    chats = [one for one in served if one.arrival.priority == 0]
    first, last = chats[10].arrival.at_ms, chats[-1].arrival.at_ms
    done = [one for one in served if one.arrival.priority and first < one.finished_ms < last]
    return percentile([one.ttft_ms for one in chats[10:]], 0.99), len(done)


@pytest.mark.parametrize("cost", [CPU, H200_LORA], ids=["cpu", "h200"])
def test_lower_priorities_hardly_delay_first_tokens_and_get_on(cost: CostModel) -> None:
    alone, _ = _p99_and_lines(cost, 0, max_num_seqs=16, max_num_batched_tokens=512)
    beside, num_done = _p99_and_lines(cost, 4000, max_num_seqs=16, max_num_batched_tokens=512)
    assert beside <= 1.3 * alone
    assert num_done >= 20


def _plans(arrivals: list[Arrival], num_adapters: int) -> list[StepPlan]:
    engine = SimulatedEngine(num_adapters, cost=H200_LORA)
    engine.serve(arrivals)
    return engine.plans


def _throughput() -> list[Arrival]:
    generator = random.Random(1)
    return [Arrival(0, f"adapter-{generator.randrange(64):04d}", num_output_tokens=64) for _ in range(400)]


def _zipf() -> list[Arrival]:
    generator = random.Random(1)
    numbers = (min(15, int(generator.paretovariate(1)) - 1) for _ in range(300))
    return [Arrival(0, f"adapter-{number:04d}", num_prompt_tokens=256, num_output_tokens=64) for number in numbers]


def _online() -> list[Arrival]:
    generator = random.Random(1)
    return [Arrival(40 * index, num_prompt_tokens=generator.randrange(16, 999)) for index in range(100)]


@pytest.mark.parametrize(("workload", "num_adapters"), [(_throughput, 64), (_zipf, 16), (_online, 0)])
def test_where_nobody_is_to_be_spared_plans_are_as_if_there_were_no_such_rule(
    workload: Callable[[], list[Arrival]], num_adapters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = _plans(workload(), num_adapters)
    monkeypatch.setattr(Precedence, "is_needed", False)
    monkeypatch.setattr(Precedence, "is_lower", lambda *_: False)
    monkeypatch.setattr(Precedence, "gives_way", lambda *_: False)
    assert plans == _plans(workload(), num_adapters)


def test_a_batch_that_was_all_there_takes_no_longer_for_uneven_popularity() -> None:
    num_steps = []
    for exponent in (0.0, 1.0):
        chosen = Popularity(exponent).choose(400, 64, random.Random(64))
        engine = SimulatedEngine(64, cost=H200_LORA, enable_prefix_caching=False)
        engine.serve(Arrival(0, engine.adapters[int(number)], num_prompt_tokens=256) for number in chosen)
        num_steps.append(len(engine.plans))
    uniform, uneven = num_steps
    assert uneven <= 1.03 * uniform


def test_a_higher_priority_takes_the_place_of_the_last_of_a_lower(engine_of: Callable[..., Any]) -> None:
    engine = engine_of(40, max_num_seqs=2)
    lines = [engine.add(f"line{i}", [3, 4], max_tokens=12, ignore_eos=True, priority=9) for i in range(2)]
    for _ in range(3):
        engine.step()
    chat = engine.add("chat", [5, 6], max_tokens=3, ignore_eos=True)
    plan = engine.step()
    assert [admitted.request_id for admitted in plan.admitted] == ["chat"]
    assert plan.removed == ("line1",)
    engine.run()
    for spec in (*lines, chat):
        engine.check_output(spec)


def test_a_lower_priority_has_all_of_the_engine_once_the_others_are_gone() -> None:
    engine = SimulatedEngine(0, cost=CPU, max_num_seqs=16, max_num_batched_tokens=512)
    lines = [Arrival(0, num_prompt_tokens=60, num_output_tokens=16, priority=1000) for _ in range(300)]
    served = engine.serve([*lines, *(Arrival(200.0 * i, num_prompt_tokens=40, num_output_tokens=4) for i in range(20))])
    done = sorted(one.finished_ms for one in served if one.arrival.priority)
    last_chat = max(one.finished_ms for one in served if not one.arrival.priority)
    freed = last_chat + 1000 * RECENT_S
    before = sum(one < freed for one in done) / freed
    after = [one for one in done if one > freed + 1000]
    assert len(after) > 20, "enough lines for the comparison"
    assert len(after) / (after[-1] - freed) > 1.5 * before
    assert all(first <= second for first, second in pairwise(done))


def test_who_gives_way_gets_on_however_little_time_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "DELAY_BY_LOWER", 0.0)
    _, num_done = _p99_and_lines(CPU, 200, max_num_seqs=16, max_num_batched_tokens=512)
    assert num_done > 0


def test_who_gives_way_loses_its_blocks_first_and_nobody_whom_the_step_has(engine_of: Callable[..., Any]) -> None:
    engine = engine_of(80, max_num_seqs=16, max_num_batched_tokens=64)
    flood = [engine.add(f"flood{i}", [1, i, 1], tenant="flood", max_tokens=40, ignore_eos=True) for i in range(13)]
    for _ in range(6):
        engine.step()
    rare = engine.add("rare", [2, 2, 2], tenant="rare", max_tokens=40, ignore_eos=True)
    while engine.scheduler.stats().num_preemptions == 0:
        plan = engine.step()
    assert plan.removed == ("flood12",), "not the last to arrive"
    engine.run()
    for spec in (*flood, rare):
        engine.check_output(spec)
