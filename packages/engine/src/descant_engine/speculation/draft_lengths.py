"""How many tokens to draft for whom: what gives the most tokens a second, or none.

The goodput of Liu et al. ("Optimizing Speculative Decoding for Serving Large Language Models Using Goodput", arXiv
2406.14066): expected tokens of the step, over its time. Of several requests it is the geometric mean, not the sum,
which would let one that gains much hold up all the others.
"""

from collections.abc import Callable, Sequence
from math import exp, log
from typing import NamedTuple

from descant_engine.speculation.acceptance import expected_tokens

LEAST_CHANCES = (0.9, 0.75, 0.6, 0.45, 0.3, 0.2, 0.1)
"""A token is drafted if all drafts up to it are right with at least this probability."""
MIN_GAIN = 1.03
"""Less is noise."""
MIN_SPEED = 0.97
"""Of every request in the step, over its speed without any draft: who has none must not wait for who has."""


class Candidate(NamedTuple):
    rate: float
    """See `AcceptanceRate`."""
    max_tokens: int


class Choice(NamedTuple):
    lengths: tuple[int, ...]
    """For each candidate."""
    gain: float
    """Tokens a second of a request, over those without any draft: the geometric mean."""


StepSeconds = Callable[[int, int], float]
"""(tokens in the step, the longest draft) -> seconds."""


def choose_lengths(
    candidates: Sequence[Candidate], max_tokens: int, plain_seconds: float, seconds: StepSeconds
) -> Choice:
    """For a step that computes a token of each candidate, in `plain_seconds`, and has room for `max_tokens` more."""
    num_requests = len(candidates)
    best = Choice((0,) * len(candidates), 1.0)
    for chance in LEAST_CHANCES:
        lengths = levelled(max_tokens, [_length(candidate, chance) for candidate in candidates])
        num_drafts = sum(lengths)
        if num_drafts == 0 or lengths == best.lengths:
            continue
        speeds = [expected_tokens(c.rate, length) for c, length in zip(candidates, lengths, strict=True)]
        faster = plain_seconds / seconds(num_requests + num_drafts, max(lengths))
        gain = exp(sum(map(log, speeds)) / num_requests) * faster
        if gain > max(best.gain, MIN_GAIN) and min(speeds) * faster >= MIN_SPEED:
            best = Choice(lengths, gain)
    return best


def _length(candidate: Candidate, chance: float) -> int:
    if candidate.rate < chance:
        return 0
    if candidate.rate**candidate.max_tokens >= chance:
        return candidate.max_tokens
    return min(int(log(chance) / log(candidate.rate)), candidate.max_tokens)


def within(max_tokens: int, lengths: Sequence[int]) -> tuple[int, ...]:
    """Cut so that they are no more in all; whoever comes first keeps his."""
    cut = []
    for length in lengths:
        cut.append(min(length, max_tokens))
        max_tokens -= cut[-1]
    return tuple(cut)


def levelled(max_tokens: int, lengths: Sequence[int]) -> tuple[int, ...]:
    """Cut so that they are no more in all; the longest are cut to one length, for what comes last in a draft is least
    likely to be right."""
    if sum(lengths) <= max_tokens:
        return tuple(lengths)
    num_left, level = max_tokens, 0
    for num_done, length in enumerate(sorted(lengths)):
        level = num_left // (len(lengths) - num_done)
        if length > level:
            break
        num_left -= length
    return tuple(min(length, level) for length in lengths)
