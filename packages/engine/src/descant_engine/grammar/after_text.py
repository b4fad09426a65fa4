"""A grammar that begins behind some free text, such as a model's reasoning."""

from typing import NamedTuple

import numpy as np

from descant_engine.grammar.matcher import WORD_BITS, BitmaskRow, Matcher
from descant_engine.grammar.vocabulary import Vocabulary


class _Place(NamedTuple):
    """Behind one token."""

    is_free: bool
    """Before the text that ends the free part."""
    tail: bytes
    """The end of the free text."""
    num_inner: int
    """Tokens that the inner matcher has taken."""


class AfterTextMatcher:
    """Free text up to and with `end`, then the inner matcher's grammar.

    With an `opening`, the free text is there only if the output begins with it; otherwise there has to be some.
    """

    def __init__(self, inner: Matcher, vocabulary: Vocabulary, opening: str, end: str) -> None:
        self._inner, self._vocabulary = inner, vocabulary
        self._opening, self._end = opening.encode(), end.encode()
        self._places = [_Place(is_free=not opening, tail=b"", num_inner=0)]
        self._openers = [i for i, data in enumerate(vocabulary.tokens) if data and self._opening.startswith(data)]

    @property
    def is_complete(self) -> bool:
        return not self._places[-1].is_free and self._inner.is_complete

    def accept(self, token_id: int) -> bool:
        place = self._places[-1]
        if self._opens(token_id):
            place = place._replace(is_free=True)
        if place.is_free:
            tail = (place.tail + self._vocabulary.tokens[token_id])[-4096:]
            _, found, after = tail.partition(self._end)
            self._places.append(_Place(is_free=not found, tail=tail[-len(self._end) :], num_inner=0))
            # A token that goes on behind the end would have to be cut: only whitespace may.
            return not found or not after.strip()
        self._places.append(place._replace(num_inner=place.num_inner + 1))
        return self._inner.accept(token_id)

    def rollback(self, num_tokens: int) -> None:
        gone = self._places[len(self._places) - num_tokens :]
        del self._places[len(self._places) - num_tokens :]
        if taken_back := gone[-1].num_inner - self._places[-1].num_inner if gone else 0:
            self._inner.rollback(taken_back)

    def fill_bitmask(self, row: BitmaskRow) -> None:
        if self._places[-1].is_free:
            row.fill(-1)
            for token_id in self._vocabulary.stop_token_ids:
                row[token_id // WORD_BITS] &= ~_bit(token_id)
            return
        self._inner.fill_bitmask(row)
        if len(self._places) == 1 and self._opening:
            for token_id in self._openers:
                row[token_id // WORD_BITS] |= _bit(token_id)

    def _opens(self, token_id: int) -> bool:
        return len(self._places) == 1 and bool(self._opening) and token_id in self._openers


def _bit(token_id: int) -> np.int32:
    return np.uint32(1 << (token_id % WORD_BITS)).view(np.int32)
