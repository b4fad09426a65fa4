"""How long steps take, by how much is in them: measured, for it depends on model, device, contexts and neighbours."""

from collections import deque
from math import exp2, log2, sqrt
from typing import NamedTuple

NUM_KEPT = 5
NUM_SURE = 3
"""Of fewer measurements the median may be of a step that was disturbed."""
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


def tokens_of(size: int) -> float:
    """In the middle of a size class."""
    if size <= MAX_EXACT_TOKENS:
        return size
    return MAX_EXACT_TOKENS * exp2((size - MAX_EXACT_TOKENS) / BUCKETS_AN_OCTAVE)


class DraftCosts:
    """Medians of the last few measurements of each kind: what disturbs one step counts for nothing."""

    def __init__(self) -> None:
        self._seconds: dict[StepKind, deque[float]] = {}
        self._medians: dict[StepKind, float] = {}

    def note(self, kind: StepKind, seconds: float) -> None:
        kept = self._seconds.setdefault(kind, deque(maxlen=NUM_KEPT))
        kept.append(seconds)
        self._medians[kind] = sorted(kept)[(len(kept) - 1) // 2]

    def known(self, kind: StepKind) -> float | None:
        """Seconds; None if no such step was measured."""
        return self._medians.get(kind)

    def plain(self, num_tokens: int) -> float | None:
        """Of a step without drafts, one token a request; None until there were a few, for all is judged by it."""
        kind = StepKind(0, False, size_class(num_tokens))
        return self.known(kind) if self._is_sure(kind) else None

    def with_drafts(self, num_tokens: int, num_requests: int, num_drafting_steps: int) -> float:
        """Of a step that checks drafts, `num_tokens` in all; a guess if there was none, which takes that the plain
        step of so many requests is known."""
        kind = StepKind(num_drafting_steps, True, size_class(num_tokens))
        if (seconds := self.known(kind)) is None:
            return self._guessed(kind, num_tokens, num_requests)
        return seconds if self._is_sure(kind) else min(seconds, self.at_most(num_tokens, num_drafting_steps))

    def at_most(self, num_tokens: int, num_drafting_steps: int) -> float:
        """Of the same step, where nothing is free and nothing was disturbed: as long as a larger one, or longer than
        a smaller one in proportion to its tokens or to those of the draft model."""
        drafting_parts = 1 + num_drafting_steps
        return min(
            seconds * max(1.0, num_tokens / tokens_of(kind.size), drafting_parts / (1 + kind.num_drafting_steps))
            for kind, seconds in self._medians.items()
        )

    def _guessed(self, kind: StepKind, num_tokens: int, num_requests: int) -> float:
        """Goes on from the largest smaller step that was, with drafts if there was one."""
        plain = self.plain(num_requests)
        assert plain is not None
        smaller = [
            other
            for other in self._medians
            if other.has_drafts
            and other.num_drafting_steps == kind.num_drafting_steps
            and size_class(num_requests) < other.size < kind.size
        ]
        if not smaller:
            return plain * guessed_ratio(num_tokens, num_requests)
        nearest = max(smaller)
        return self._medians[nearest] * guessed_ratio(num_tokens, tokens_of(nearest.size))

    def _is_sure(self, kind: StepKind) -> bool:
        return len(self._seconds.get(kind, ())) >= NUM_SURE


def guessed_ratio(num_tokens: float, num_fewer: float) -> float:
    """How much longer a step of `num_tokens` takes than one of fewer: between one that waits for memory, whose tokens
    are free, and one that computes, whose cost is in proportion."""
    return sqrt(num_tokens / num_fewer)
