"""Whose masks take the host's time is found out, and found out only where they take too much of it."""

import time
from collections.abc import Sequence
from typing import Self

import numpy as np
import pytest

from descant_engine.grammar.matcher import Bitmask, BitmaskRow, Matcher
from descant_engine.scheduler.grammar_masks import ANY_TOKEN, SECONDS_AT_ONCE, Following, GrammarMasks

NUM_WORDS = 4
ALLOWED = 0b101
STEPS_TO_FIND_IT = 10
pytestmark = pytest.mark.timeout(60)


class StubMatcher:
    """Its masks keep a processor busy for `seconds`, and are `word` throughout."""

    is_complete = False

    def __init__(self, seconds: float = 0.0, word: int = ALLOWED) -> None:
        self.seconds, self.word, self.times_alone = seconds, word, 0

    def accept(self, token_id: int) -> bool:
        raise NotImplementedError

    def fill_bitmask(self, row: BitmaskRow) -> None:
        self.times_alone += 1
        self.fill(row)

    def fill(self, row: BitmaskRow) -> None:
        until = time.thread_time() + self.seconds
        while time.thread_time() < until:
            pass
        row.fill(self.word)

    @classmethod
    def fill_bitmasks(cls, places: Sequence[tuple[Self, int]], words: Bitmask, num_threads: int) -> None:
        for matcher, index in places:
            matcher.fill(words[index])

    @property
    def mask_maker(self) -> Matcher:
        return self


def words_for(rows: Sequence[Following]) -> Bitmask:
    return np.empty((len(rows), NUM_WORDS), dtype=np.int32)


def test_quick_rows_are_never_timed() -> None:
    masks, matchers = GrammarMasks(2), [StubMatcher() for _ in range(20)]
    rows = [Following(each) for each in matchers]
    for _ in range(50):
        masks.fill(rows, words := words_for(rows))
        assert (words == ALLOWED).all()
    assert sum(each.times_alone for each in matchers) == 0
    assert all(row.seconds_left == SECONDS_AT_ONCE for row in rows)


def test_now_and_then_a_long_step_is_nobodys_fault() -> None:
    masks, matcher = GrammarMasks(2), StubMatcher()
    rows = [Following(matcher)]
    for step in range(30):
        matcher.seconds = 0.006 if step % 5 == 0 else 0.0
        masks.fill(rows, words_for(rows))
    assert matcher.times_alone < 3, "six steps were long; a busy machine may make one or two more so"


def test_the_slow_one_is_found_and_pays_alone() -> None:
    masks, slow = GrammarMasks(2), StubMatcher(0.008)
    matchers = [StubMatcher() for _ in range(20)]
    rows = [Following(each) for each in [*matchers[:10], slow, *matchers[10:]]]
    for _ in range(STEPS_TO_FIND_IT):
        masks.fill(rows, words_for(rows))
    assert slow.times_alone > 1
    paid = SECONDS_AT_ONCE - rows[10].seconds_left
    assert paid == pytest.approx(slow.seconds * slow.times_alone, rel=0.5)
    others = [row for row in rows if row.matcher is not slow]
    assert all(matcher.times_alone == 1 for matcher in matchers)
    assert all(SECONDS_AT_ONCE - row.seconds_left < 0.001 for row in others)


def test_who_is_quick_again_is_made_together_with_the_others() -> None:
    masks, matcher = GrammarMasks(2), StubMatcher(0.03)
    rows = [Following(matcher)]
    for _ in range(2):
        masks.fill(rows, words_for(rows))
    assert matcher.times_alone == 1
    matcher.seconds = 0.0
    for _ in range(5):
        masks.fill(rows, words_for(rows))
    assert matcher.times_alone == 2


def test_a_row_that_allows_nothing_allows_anything_and_says_so() -> None:
    masks = GrammarMasks(2)
    rows = [Following(StubMatcher()), Following(StubMatcher(word=0))]
    masks.fill(rows, words := words_for(rows))
    assert [row.is_at_dead_end for row in rows] == [False, True]
    assert (words[0] == ALLOWED).all()
    assert (words[1] == ANY_TOKEN).all()
