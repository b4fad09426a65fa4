"""What steps take, learnt from those that ran."""

import random

import pytest

from descant_engine.scheduler.step_times import CERTAIN, MAX_STEPS, MIN_STEPS, StepCosts, StepTimes, StepWork

H200 = StepCosts(step=5e-3, mixed_step=2.5e-3, request=4e-5, more_token=2e-5)


def _run(times: StepTimes, works: list[StepWork], costs: StepCosts = H200, noise: float = 0.0) -> float:
    """One step after the other, each planned while the one before runs. Returns when the last ended."""
    generator = random.Random(1)
    now = 0.0
    times.planned(0, works[0], now)
    for number, work in enumerate(works):
        if number + 1 < len(works):
            times.planned(number + 1, works[number + 1], now)
        now += costs.of(work) * (1 + noise * generator.uniform(-1, 1))
        times.ended(number, now)
    return now


def _mixed_works(count: int) -> list[StepWork]:
    generator = random.Random(2)
    return [
        StepWork(generator.randrange(1, 200), generator.choice((0, generator.randrange(1, 800)))) for _ in range(count)
    ]


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_costs_are_found(noise: float) -> None:
    times = StepTimes()
    _run(times, _mixed_works(2 * MAX_STEPS), noise=noise)
    assert times.costs is not None
    for work in (StepWork(1, 0), StepWork(100, 0), StepWork(100, 300), StepWork(1, 255)):
        assert times.costs.of(work) == pytest.approx(H200.of(work), rel=0.02 + noise / 2)


def test_nothing_is_foretold_of_few_steps() -> None:
    times = StepTimes()
    _run(times, _mixed_works(MIN_STEPS - 1))
    assert times.costs is None
    times.planned(1000, StepWork(1, 0), 1.0)
    assert times.busy_until() == 0.0


def test_a_compilation_is_not_learnt_from() -> None:
    times = StepTimes()
    works = _mixed_works(64)
    now = _run(times, works)
    times.planned(64, StepWork(10, 100), now)
    times.ended(64, now + 30.0)
    assert times.costs is not None
    assert times.costs.of(StepWork(10, 100)) == pytest.approx(H200.of(StepWork(10, 100)), rel=0.05)


def test_no_cost_is_negative_whatever_was_measured() -> None:
    times = StepTimes()
    shrinking = StepCosts(step=0.02, mixed_step=-0.005, request=-5e-5, more_token=0.0)
    _run(times, _mixed_works(200), shrinking)
    assert times.costs is not None
    assert min(times.costs) >= 0.0


def test_steps_of_one_kind_tell_what_they_take() -> None:
    times = StepTimes()
    _run(times, [StepWork(32, 0)] * 64)
    assert times.costs is not None
    assert times.costs.of(StepWork(32, 0)) == pytest.approx(H200.of(StepWork(32, 0)), rel=0.01)


def test_the_device_is_busy_for_what_is_under_way() -> None:
    times = StepTimes()
    now = _run(times, _mixed_works(100))
    assert times.busy_until() == 0.0
    work = StepWork(50, 100)
    times.planned(1000, work, now)
    times.planned(1001, work, now)
    assert times.busy_until() == pytest.approx(now + 2 * CERTAIN * H200.of(work), rel=0.05)


def test_a_pause_before_a_step_is_no_part_of_it() -> None:
    times = StepTimes()
    now = 0.0
    for number in range(100):
        now += 1.0
        times.planned(number, StepWork(8, 0), now)
        now += H200.of(StepWork(8, 0))
        times.ended(number, now)
    assert times.costs is not None
    assert times.costs.of(StepWork(8, 0)) == pytest.approx(H200.of(StepWork(8, 0)), rel=0.01)
