"""How long a batch that failed waits, and what counts as its failure."""

import pytest

from descant_gateway.batches.postponed import FIRST_PAUSE_S, FORGET_AFTER_S, LAST_PAUSE_S, Postponed


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _fail(postponed: Postponed, error: Exception) -> None:
    with pytest.raises(type(error)), postponed.trying("b"):
        raise error


def test_each_failure_doubles_the_pause() -> None:
    clock = Clock()
    postponed = Postponed(clock)
    for pause_s in (FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S):
        assert postponed.batch_ids == []
        _fail(postponed, ValueError("odd"))
        clock.now += pause_s - 0.1
        assert postponed.batch_ids == ["b"]
        clock.now += 0.2
    assert postponed.num_failures("b") == 3
    for _ in range(10):
        _fail(postponed, ValueError("odd"))
    clock.now += LAST_PAUSE_S + 0.1
    assert postponed.batch_ids == []


def test_an_outage_is_no_failure_of_the_batch_but_others_come_first() -> None:
    postponed = Postponed(Clock())
    _fail(postponed, ConnectionResetError())
    assert (postponed.num_failures("b"), postponed.batch_ids) == (0, ["b"])


def test_success_and_time_are_forgiving() -> None:
    clock = Clock()
    postponed = Postponed(clock)
    _fail(postponed, ValueError("odd"))
    with postponed.trying("b"):
        pass
    assert (postponed.num_failures("b"), postponed.batch_ids) == (0, [])
    _fail(postponed, ValueError("odd"))
    clock.now += FIRST_PAUSE_S + FORGET_AFTER_S
    assert (postponed.batch_ids, postponed.num_failures("b")) == ([], 0)
