"""How many lines of batches run at once."""

from descant_gateway.batches.window import DECREASE_EVERY_S, RECENT_S, SHARE_BESIDE_OTHERS, Window, serves_others
from descant_wire.load import EngineLoad

LIMIT = 16


def _room(window: Window, now: float, *, others_run: bool = False, anybody_waits: bool = False) -> int:
    return window.room(0, now, others_run=others_run, anybody_waits=anybody_waits)


def _opened(window: Window, now: float = 0.0) -> Window:
    for _ in range(LIMIT * LIMIT):
        window.note_answer()
        _room(window, now)
    return window


def test_it_opens_by_one_for_a_window_of_answers_up_to_the_limit() -> None:
    window = Window(LIMIT)
    assert _room(window, 0.0) == 1
    window.note_answer()
    assert _room(window, 0.0) == 2
    window.note_answer()
    assert _room(window, 0.0) == 2
    assert _room(_opened(window), 0.0) == LIMIT


def test_who_waits_halves_it_once_a_while_and_never_closes_it() -> None:
    window = _opened(Window(LIMIT))
    sizes = [_room(window, number * DECREASE_EVERY_S / 2, anybody_waits=True) for number in range(12)]
    assert sizes == [8, 8, 4, 4, 2, 2, 1, 1, 1, 1, 1, 1]


def test_others_leave_it_a_share_and_for_a_while_after_them() -> None:
    window = _opened(Window(LIMIT))
    beside = LIMIT // SHARE_BESIDE_OTHERS
    assert _room(window, 10.0, others_run=True) == beside
    window.note_answer()
    assert _room(window, 10.0 + RECENT_S - 0.1) == beside, "they may only have paused"
    for _ in range(LIMIT):
        window.note_answer()
    assert _room(window, 10.0 + RECENT_S) > beside


def test_running_lines_take_from_it() -> None:
    window = _opened(Window(LIMIT))
    assert window.room(LIMIT - 1, 0.0, others_run=False, anybody_waits=False) == 1
    assert window.room(LIMIT, 0.0, others_run=True, anybody_waits=True) < 0


def test_an_engine_that_knows_tells_lines_from_what_somebody_waits_for() -> None:
    def load(*, num_below_default: int, verifies_identity: bool = True) -> EngineLoad:
        return EngineLoad(
            num_running=3,
            num_waiting=1,
            num_below_default=num_below_default,
            max_running=16,
            num_queued_tokens=0,
            kv_usage=0.0,
            residency=1,
            verifies_identity=verifies_identity,
        )

    assert serves_others(load(num_below_default=3))
    assert not serves_others(load(num_below_default=4))
    assert not serves_others(load(num_below_default=0, verifies_identity=False)), "it takes lines for others' requests"
