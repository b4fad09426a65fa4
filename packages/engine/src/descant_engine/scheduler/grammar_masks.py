"""The masks of one step, within what each request's grammar may take of the host's time.

All rows are made in one call of the library's, which takes several threads and no turn of the interpreter. What one row
took nobody knows then; only if such calls took long on the whole, the next masks are timed one by one, which costs
twice as much, and from then on those of the slow ones.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import NamedTuple

import numpy as np

from descant_engine.grammar.matcher import Bitmask, BitmaskRow, Matcher, fill_bitmasks

SECONDS_AT_ONCE = 0.25
SECONDS_A_TOKEN = 0.002
"""How long one request's grammar may keep the engine's thread busy: so much, and so much more for each token."""
USUAL_SECONDS = 0.003
LONG_SECONDS = 0.02
"""All rows may take so much a step; so many seconds above it may be the doing of one that takes more than its share."""
MASK_THREADS = min(4, (os.cpu_count() or 1) // 2)
"""More get in each other's way where rows share a grammar, whose automata have one lock: masks of 64 rows took 1.6 ms
a step with 2 threads, 1.9 with 4, 2.2 with 8 and 2.5 with 16, of 16 cores."""
ROWS_A_THREAD = 8
"""Of masks that are timed one by one."""
ANY_TOKEN = -1
"""As a word of a bitmask: all bits set."""


@dataclass(slots=True)
class Following:
    """A request's way through its grammar."""

    matcher: Matcher
    seconds_left: float = SECONDS_AT_ONCE
    mask_seconds: float = 0.0
    """What the last mask took that was timed."""
    is_timed: bool = False
    """Whether the next mask is made by itself, and timed."""
    is_at_dead_end: bool = False


class _TimedRow(NamedTuple):
    row: BitmaskRow
    following: Following


class GrammarMasks:
    def __init__(self, num_threads: int = MASK_THREADS) -> None:
        self._num_threads = max(1, num_threads)
        self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="mask")
        self._excess_seconds = 0.0
        """By how much rows that were made together took longer than usual; forgotten at the same rate."""

    def fill(self, followings: Sequence[Following], words: Bitmask) -> None:
        """Overwrites `words`, a row for each. A row that would allow nothing allows anything: something has to be
        sampled, and the request ends with the next delta."""
        self._fill_timed([_TimedRow(words[i], each) for i, each in enumerate(followings) if each.is_timed])
        self._fill_together([(i, each) for i, each in enumerate(followings) if not each.is_timed], words)
        for index in np.flatnonzero(np.bitwise_or.reduce(words, axis=1) == 0).tolist():
            words[index].fill(ANY_TOKEN)
            followings[index].is_at_dead_end = True

    def _fill_together(self, quick: Sequence[tuple[int, Following]], words: Bitmask) -> None:
        started = perf_counter()
        fill_bitmasks([(following.matcher, index) for index, following in quick], words, self._num_threads)
        self._excess_seconds = max(0.0, self._excess_seconds + perf_counter() - started - USUAL_SECONDS)
        if self._excess_seconds > LONG_SECONDS:
            self._excess_seconds = 0.0
            for _, following in quick:
                following.is_timed = True

    def _fill_timed(self, rows: list[_TimedRow]) -> None:
        """Each thread, this one too, takes the next row from one line, the slowest first."""
        num_others = min(self._num_threads, len(rows) // ROWS_A_THREAD) - 1
        line = iter(sorted(rows, key=lambda row: -row.following.mask_seconds))
        others = [self._threads.submit(_fill_from, line) for _ in range(num_others)]
        _fill_from(line)
        for other in others:
            other.result()


def _fill_from(line: Iterator[_TimedRow]) -> None:
    """Until the line is empty; a list's iterator gives each row to one thread."""
    for row, following in line:
        started = thread_time()
        following.matcher.fill_bitmask(row)
        following.mask_seconds = thread_time() - started
        following.seconds_left -= following.mask_seconds
        following.is_timed = following.mask_seconds > SECONDS_A_TOKEN
