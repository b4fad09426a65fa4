"""What the engine knows of a grammar library: a compiled grammar makes matchers, a matcher makes masks."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

BitmaskRow = npt.NDArray[np.int32]
"""[ceil(vocab_size / 32)]: bit i % 32 of word i / 32 is set if token i is allowed."""
WORD_BITS = 32


class Matcher(Protocol):
    """Where one output stands in its grammar. It follows tokens that are certain, and can take them back."""

    def accept(self, token_id: int) -> bool:
        """Goes on by one token. False if the grammar does not allow it: then the state is of no use any more."""

    def rollback(self, num_tokens: int) -> None:
        """Takes back the last accepted tokens."""

    def fill_bitmask(self, row: BitmaskRow) -> None:
        """Overwrites `row` with the tokens that may come next; stop tokens are among them if the output may end."""

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
