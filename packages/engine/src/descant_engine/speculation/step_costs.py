"""How long steps take, by how much is in them: measured, for it depends on model, device, contexts and neighbours."""

from collections import deque
from math import log2, sqrt
from typing import NamedTuple

NUM_KEPT = 5
MAX_EXACT_TOKENS = 16
BUCKETS_AN_OCTAVE = 4


class StepKind(NamedTuple):
    """Steps that take about as long as each other."""

    num_drafting_steps: int
    """Of the draft model, one after another, before the step."""
    has_drafts: bool
    size: int
    """`size_class` of the number of tokens."""


def size_class(num_tokens: int) -> int:
    """Exact for few tokens, a quarter of an octave for many."""
    if num_tokens <= MAX_EXACT_TOKENS:
        return num_tokens
    return MAX_EXACT_TOKENS + round(BUCKETS_AN_OCTAVE * log2(num_tokens / MAX_EXACT_TOKENS))


class StepCosts:
    """Medians of the last few measurements of each kind: what disturbs one step counts for nothing."""

    def __init__(self) -> None:
        self._seconds: dict[StepKind, deque[float]] = {}

    def note(self, kind: StepKind, seconds: float) -> None:
        self._seconds.setdefault(kind, deque(maxlen=NUM_KEPT)).append(seconds)

    def known(self, kind: StepKind) -> float | None:
        """Seconds; None if no such step was measured."""
        if (seconds := self._seconds.get(kind)) is None:
            return None
        return sorted(seconds)[(len(seconds) - 1) // 2]

    def plain(self, num_tokens: int) -> float | None:
        """Of a step without drafts, one token a request."""
        return self.known(StepKind(0, False, size_class(num_tokens)))

    def with_drafts(self, num_tokens: int, num_requests: int, num_drafting_steps: int) -> float:
        """Of a step that checks drafts, `num_tokens` in all; a guess if there was none, which takes that the plain
        step of so many requests is known."""
        if (seconds := self.known(StepKind(num_drafting_steps, True, size_class(num_tokens)))) is not None:
            return seconds
        plain = self.plain(num_requests)
        assert plain is not None
        return plain * guessed_ratio(num_tokens, num_requests)


def guessed_ratio(num_tokens: int, num_requests: int) -> float:
    """How much longer a step of `num_tokens` takes than one with a token for each request: between one that waits for
    memory, whose tokens are free, and one that computes, whose cost is in proportion."""
    return sqrt(num_tokens / num_requests)
