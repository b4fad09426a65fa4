"""What drafts may lose."""

import pytest

from descant_engine.speculation.draft_costs import DraftCosts, StepKind, size_class
from descant_engine.speculation.draft_lengths import levelled
from descant_engine.speculation.stake import FIRST_STAKE, LARGEST_STAKE, Stake

PLAIN = 0.04


def costs_of(*measured: tuple[bool, int, float]) -> DraftCosts:
    costs = DraftCosts()
    for has_drafts, num_tokens, seconds in measured:
        for _ in range(3):
            costs.note(StepKind(0, has_drafts, size_class(num_tokens)), seconds)
    return costs


def test_a_stake_is_lost_to_wrong_drafts_and_grows_with_right_ones():
    stake = Stake()
    stake.took(1.5 * PLAIN, PLAIN)
    assert stake.pays_for(PLAIN) == pytest.approx((0.5 + FIRST_STAKE) * PLAIN)
    for _ in range(8):
        stake.won(num_tokens=3, num_requests=8)
    assert stake.pays_for(PLAIN) == pytest.approx((3.5 + FIRST_STAKE) * PLAIN)


def test_a_stake_comes_back_slowly_and_has_an_end():
    stake = Stake()
    stake.took(2 * PLAIN, PLAIN)
    for _ in range(100):
        stake.save()
    assert PLAIN < stake.pays_for(PLAIN) < 2 * PLAIN
    for _ in range(1000):
        stake.save()
    assert stake.pays_for(PLAIN) < 2.01 * PLAIN
    stake.won(num_tokens=100, num_requests=1)
    assert stake.pays_for(PLAIN) == pytest.approx((1 + LARGEST_STAKE) * PLAIN)


def test_newcomers_do_not_stake_what_others_won():
    stake = Stake()
    stake.won(num_tokens=5, num_requests=1)
    stake.share_with_newcomer()
    assert stake.pays_for(PLAIN) == pytest.approx((1 + FIRST_STAKE) * PLAIN)


def test_what_a_step_takes_at_most_is_told_by_any_others():
    costs = costs_of((False, 1, 0.034), (False, 8, 0.043))
    assert costs.at_most(16, 0) == pytest.approx(0.086), "twice the tokens, twice the time"
    assert costs.at_most(4, 0) == pytest.approx(0.043), "no longer than eight"
    assert costs.at_most(2, 1) == pytest.approx(0.068), "a step of a draft model no longer than one of the model"
    assert costs.at_most(8, 2) == pytest.approx(0.129)


def test_a_guess_goes_on_from_the_nearest_step_with_drafts():
    costs = costs_of((False, 8, 0.043))
    assert costs.with_drafts(32, 8, 0) == pytest.approx(0.086)
    costs.note(StepKind(0, True, size_class(16)), 0.066)
    assert costs.with_drafts(32, 8, 0) == pytest.approx(0.066 * 2**0.5)


def test_one_disturbed_measurement_is_not_believed():
    costs = costs_of((False, 8, 0.043))
    costs.note(StepKind(0, True, size_class(16)), 0.5)
    assert costs.with_drafts(16, 8, 0) == pytest.approx(0.086)
    for _ in range(2):
        costs.note(StepKind(0, True, size_class(16)), 0.5)
    assert costs.with_drafts(16, 8, 0) == pytest.approx(0.5)


def test_plain_steps_are_judged_by_after_a_few():
    costs = DraftCosts()
    for seconds in (0.2, 0.04):
        costs.note(StepKind(0, False, 8), seconds)
        assert costs.plain(8) is None
    costs.note(StepKind(0, False, 8), 0.041)
    assert costs.plain(8) == 0.041


@pytest.mark.parametrize(
    ("room", "lengths", "cut"),
    [
        (20, (5, 0, 15), (5, 0, 15)),
        (12, (5, 0, 15), (5, 0, 7)),
        (12, (15, 15, 2, 15), (3, 3, 2, 3)),
        (3, (15, 15, 15, 15), (0, 0, 0, 0)),
        (0, (1, 2), (0, 0)),
        (0, (), ()),
    ],
)
def test_the_longest_drafts_are_cut(room, lengths, cut):
    assert levelled(room, lengths) == cut
