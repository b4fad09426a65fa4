"""A grammar that begins behind some free text, such as a model's reasoning."""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Self

import numpy as np

from descant_engine.grammar.matcher import WORD_BITS, Bitmask, BitmaskRow, Matcher, num_words
from descant_engine.grammar.vocabulary import Vocabulary


class _Part(Enum):
    START = "start"
    """Nothing is written: the opening may come, or the grammar."""
    OPENING = "opening"
    """A piece of the opening is written: the rest has to follow."""
    FREE = "free"
    GRAMMAR = "grammar"


class _Place(NamedTuple):
    """Behind the last token."""

    part: _Part
    tail: bytes = b""
    """The end of the free text, or of the opening as far as it is written."""


class AfterTextMatcher:
    """Free text up to and with `end`, then the inner matcher's grammar.

    With an `opening`, the free text is there only if the output begins with all of it; otherwise there has to be some.
    A vocabulary with a token for it has this one beginning; with pieces of it, the grammar's own beginnings go first.
    """

    def __init__(self, inner: Matcher, vocabulary: Vocabulary, opening: str, end: str) -> None:
        self._inner, self._vocabulary = inner, vocabulary
        self._opening, self._end = opening.encode(), end.encode()
        self._place = _Place(_Part.START if opening else _Part.FREE)
        self._openers = self._find_openers() if opening else []

    @property
    def is_complete(self) -> bool:
        return self._place.part in (_Part.START, _Part.GRAMMAR) and self._inner.is_complete

    def accept(self, token_id: int) -> bool:
        place, data = self._place, self._vocabulary.tokens[token_id]
        if place.part is _Part.OPENING or (place.part is _Part.START and token_id in self._openers):
            return self._open(place.tail + data)
        if place.part is _Part.FREE:
            return self._go_on((place.tail + data)[-4096:])
        self._place = _Place(_Part.GRAMMAR)
        return self._inner.accept(token_id)

    def fill_bitmask(self, row: BitmaskRow) -> None:
        place = self._place
        match place.part:
            case _Part.FREE:
                row.fill(-1)
                for token_id in self._vocabulary.stop_token_ids:
                    row[token_id // WORD_BITS] &= ~_bit(token_id)
            case _Part.OPENING:
                row.fill(0)
                _allow(row, self._vocabulary.beginnings_of(self._opening[len(place.tail) :]))
            case _Part.START:
                self._inner.fill_bitmask(row)
                _allow(row, self._openers)
            case _Part.GRAMMAR:
                self._inner.fill_bitmask(row)

    @classmethod
    def fill_bitmasks(cls, places: Sequence[tuple[Self, int]], words: Bitmask, num_threads: int) -> None:
        for matcher, index in places:
            matcher.fill_bitmask(words[index])

    @property
    def mask_maker(self) -> Matcher:
        return self._inner.mask_maker if self._place.part is _Part.GRAMMAR else self

    def _open(self, written: bytes) -> bool:
        self._place = _Place(_Part.FREE) if written == self._opening else _Place(_Part.OPENING, written)
        return self._opening.startswith(written)

    def _go_on(self, text: bytes) -> bool:
        _, found, after = text.partition(self._end)
        self._place = _Place(_Part.GRAMMAR if found else _Part.FREE, text[-len(self._end) :])
        # A token that goes on behind the end would have to be cut: only whitespace may.
        return not found or not after.strip()

    def _find_openers(self) -> list[int]:
        """What the opening may begin with, in place of the grammar."""
        beginnings = self._vocabulary.beginnings_of(self._opening)
        if beginnings and self._vocabulary.tokens[beginnings[-1]] == self._opening:
            return beginnings[-1:]
        row = np.zeros(num_words(self._vocabulary.size), dtype=np.int32)
        self._inner.fill_bitmask(row)
        return [token_id for token_id in beginnings if not row[token_id // WORD_BITS] & _bit(token_id)]


def _allow(row: BitmaskRow, token_ids: list[int]) -> None:
    for token_id in token_ids:
        row[token_id // WORD_BITS] |= _bit(token_id)


def _bit(token_id: int) -> np.int32:
    return np.uint32(1 << (token_id % WORD_BITS)).view(np.int32)
