"""Prompt look-up: what followed the last tokens when they stood in the text before (Saxena, "Prompt Lookup Decoding",
2023). Code that is edited, texts that are quoted and lists of alike things repeat what the context has already.
"""

from array import array
from collections.abc import Iterable
from itertools import islice

from descant_engine.request import Request
from descant_engine.speculation.config import SpeculativeConfig
from descant_engine.speculation.proposal import NO_PROPOSAL, Proposal

MAX_PLACES = 8
"""Of the places where the last tokens stood before, so many are looked at, the latest first."""
MAX_TOKENS_AT_ONCE = 4096
"""A long prompt is taken in over several steps, so that nobody waits for it."""
MAX_INDEXED_TOKENS = 1 << 16
"""Of a longer prompt, only its end is searched: some 100 bytes a token."""


class SuffixIndex:
    """Finds earlier places of a growing text that end as it does now.

    Hash chains, as in compressors of LZ77's kind: for any `min_match` tokens the latest place where they ended, and for
    each place the one before it. A token costs one entry, a look-up at most MAX_PLACES comparisons, however long the
    text is.
    """

    def __init__(self, min_match: int, max_match: int) -> None:
        self._min_match = min_match
        self._max_match = max_match
        self._tokens = array("q")
        self._latest: dict[int, int] = {}
        """Hash of min_match tokens -> where they ended last."""
        self._earlier = array("q")
        """Place -> the place before it with the same hash; -1 if there is none."""

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            self._tokens.append(token_id)
            place = len(self._tokens) - 1
            if place + 1 < self._min_match:
                self._earlier.append(-1)
                continue
            key = hash(tuple(self._tokens[-self._min_match :]))
            self._earlier.append(self._latest.get(key, -1))
            self._latest[key] = place

    def continuation(self, num_tokens: int) -> tuple[int, ...]:
        """What followed at the place that agrees with the text's end furthest; empty if there is none. Where the text
        ends before `num_tokens`, it is taken to repeat itself.

        It ends where something else followed at the second best place: there, a list of alike things has what is not
        alike, and the third thing is likely to have something else again.
        """
        best, *second = [self._following(place, num_tokens) for place in self._best_places()] or [()]
        return common_beginning(best, second[0]) if second else best

    def _following(self, place: int, num_tokens: int) -> tuple[int, ...]:
        period = len(self._tokens) - 1 - place
        followed = tuple(self._tokens[place + 1 : place + 1 + num_tokens])
        return (followed * -(-num_tokens // period))[:num_tokens] if period < num_tokens else followed

    def _best_places(self) -> list[int]:
        """The two that agree with the text's end furthest, the later of equals first; fewer if there are no more."""
        found = []
        place = self._earlier[-1] if self._earlier else -1
        for _ in range(MAX_PLACES):
            if place < 0:
                break
            if (length := self._agreement(place)) >= self._min_match:
                found.append((-length, -place))
            place = self._earlier[place]
        return [-place for _, place in sorted(found)[:2]]

    def _agreement(self, place: int) -> int:
        """How many tokens up to `place` are those up to the end, `max_match` at most."""
        tokens, end = self._tokens, len(self._tokens) - 1
        limit = min(self._max_match, place + 1)
        length = 0
        while length < limit and tokens[place - length] == tokens[end - length]:
            length += 1
        return length


def common_beginning(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    alike = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))
    return one[:alike]


class NgramProposer:
    """An index for each request that runs."""

    makes_work = False

    def __init__(self, config: SpeculativeConfig) -> None:
        self._min_match = config.prompt_lookup_min
        self._max_match = config.prompt_lookup_max
        self._indices: dict[str, SuffixIndex] = {}

    def propose(self, request: Request, max_tokens: int) -> Proposal:
        """Nothing while a long prompt is being taken in."""
        index = self._indices.get(request.request_id)
        if index is None:
            index = self._indices[request.request_id] = SuffixIndex(self._min_match, self._max_match)
        num_skipped = max(len(request.spec.prompt_token_ids) - MAX_INDEXED_TOKENS, 0)
        num_new = request.num_known_tokens - num_skipped - len(index)
        index.extend(islice(_tokens_from(request, num_skipped + len(index)), MAX_TOKENS_AT_ONCE))
        if num_new > MAX_TOKENS_AT_ONCE:
            return NO_PROPOSAL
        token_ids = index.continuation(max_tokens)
        return Proposal(len(token_ids), token_ids)

    def forget(self, request_id: str) -> None:
        self._indices.pop(request_id, None)


def _tokens_from(request: Request, start: int) -> Iterable[int]:
    prompt, output = request.spec.prompt_token_ids, request.output_token_ids
    if start >= len(prompt):
        return output[start - len(prompt) :]
    return (*prompt[start : start + MAX_TOKENS_AT_ONCE], *output)
