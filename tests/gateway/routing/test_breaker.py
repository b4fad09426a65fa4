"""The circuit breaker, with time as an argument."""

from hypothesis import given
from hypothesis import strategies as st

from descant_gateway.routing.breaker import FAILURES_IN_A_ROW, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker
from descant_gateway.routing.retry_budget import RESERVE, SHARE, RetryBudget


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_IN_A_ROW):
        breaker.begin()
        breaker.failed(at)
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_does_not() -> None:
    assert not opened().allows(0.0)
    breaker = Breaker()
    for _ in range(3):
        for _ in range(FAILURES_IN_A_ROW - 1):
            breaker.failed(0.0)
        breaker.succeeded(0.0)
    assert breaker.allows(0.0)


def test_every_second_failing_opens_it_once_there_were_enough() -> None:
    breaker = Breaker()
    for number in range(60):
        (breaker.failed if number % 2 else breaker.succeeded)(number * 0.01)
    assert not breaker.is_closed


def test_after_the_pause_there_is_one_trial() -> None:
    breaker = opened()
    assert not breaker.allows(FIRST_PAUSE_S - 0.01)
    assert breaker.allows(FIRST_PAUSE_S)
    assert breaker.begin()
    assert not breaker.allows(FIRST_PAUSE_S)
    breaker.succeeded(FIRST_PAUSE_S, is_trial=True)
    assert breaker.is_closed
    assert breaker.allows(FIRST_PAUSE_S)


def test_a_trial_that_fails_doubles_the_pause_up_to_a_limit() -> None:
    breaker, now, pause = opened(), 0.0, FIRST_PAUSE_S
    for _ in range(8):
        assert not breaker.allows(now + pause - 0.01)
        now += pause
        assert breaker.begin()
        breaker.failed(now, is_trial=True)
        pause = min(pause * 2, LONGEST_PAUSE_S)
    assert pause == LONGEST_PAUSE_S


def test_a_trial_whose_client_left_makes_room_for_the_next() -> None:
    breaker = opened()
    assert breaker.begin()
    breaker.abandoned()
    assert breaker.allows(FIRST_PAUSE_S)
    assert not breaker.is_closed


def test_requests_that_were_under_way_when_it_opened_do_not_lengthen_the_pause() -> None:
    breaker = opened()
    for _ in range(50):
        breaker.failed(0.5)
    assert breaker.allows(FIRST_PAUSE_S)


def test_only_the_trial_itself_ends_the_trial() -> None:
    """Not a long stream from before it opened, nor a request that was sent because no other backend was left."""
    breaker = opened()
    assert breaker.begin()
    assert not breaker.begin(), "there is one already"
    breaker.succeeded(FIRST_PAUSE_S)
    breaker.failed(FIRST_PAUSE_S)
    assert not breaker.is_closed
    assert not breaker.allows(FIRST_PAUSE_S)
    breaker.succeeded(FIRST_PAUSE_S, is_trial=True)
    assert breaker.is_closed


@given(st.lists(st.booleans(), max_size=500))
def test_retries_are_a_share_of_the_requests(asks: list[bool]) -> None:
    budget = RetryBudget()
    granted = requests = 0
    for is_retry in asks:
        if is_retry:
            granted += budget.withdraw()
        else:
            requests += 1
            budget.deposit()
    assert granted <= RESERVE + SHARE * requests
