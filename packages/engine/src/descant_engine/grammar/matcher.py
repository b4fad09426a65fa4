"""What the engine knows of a grammar library: a compiled grammar makes matchers, a matcher makes masks."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

BitmaskRow = npt.NDArray[np.int32]
"""[ceil(vocab_size / 32)]: bit i % 32 of word i / 32 is set if token i is allowed."""
Bitmask = npt.NDArray[np.int32]
"""[num_rows, ceil(vocab_size / 32)], contiguous."""
WORD_BITS = 32


class Matcher(Protocol):
    """Where one output stands in its grammar. It follows tokens that are certain: it never goes back."""

    def accept(self, token_id: int) -> bool:
        """Goes on by one token. False if the grammar does not allow it: then the state is of no use any more."""

    def fill_bitmask(self, row: BitmaskRow) -> None:
        """Overwrites `row` with the tokens that may come next; stop tokens are among them if the output may end."""

    @classmethod
    def fill_bitmasks(cls, places: Sequence[tuple[Self, int]], words: Bitmask, num_threads: int) -> None:
        """The same for several matchers of this class, in one call that leaves the interpreter to others: each one's
        row of `words` is given by its index."""

    @property
    def mask_maker(self) -> "Matcher":
        """Who makes its next mask: itself, or a matcher within it."""

    @property
    def is_complete(self) -> bool:
        """Whether the output may end here."""


class CompiledGrammar(Protocol):
    """Shared by all requests that demand the same. Its matchers are independent of each other."""

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes."""

    def matcher(self) -> Matcher:
        """At the beginning of an output."""


def num_words(vocab_size: int) -> int:
    return -(-vocab_size // WORD_BITS)


def fill_bitmasks(places: Sequence[tuple[Matcher, int]], words: Bitmask, num_threads: int) -> None:
    """Matchers of any classes, each with the index of its row of `words`."""
    by_class: dict[type[Matcher], list[tuple[Matcher, int]]] = defaultdict(list)
    for matcher, index in places:
        maker = matcher.mask_maker
        by_class[type(maker)].append((maker, index))
    for each, members in by_class.items():
        each.fill_bitmasks(members, words, num_threads)
