"""The grammars of requests: until it is compiled a request waits here, then its matcher follows its tokens.

A matcher stands behind the last token that is certain, whatever has been planned since: so plans that run ahead,
preemption and aborts need no care here. Compiling happens elsewhere, masks are made here, on the host, while the
device is busy with the forward pass whose samples they are for.
"""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, replace
from time import thread_time
from typing import NamedTuple

import numpy as np

from descant_engine.grammar.after_text import AfterTextMatcher
from descant_engine.grammar.bitmask import GrammarBitmask
from descant_engine.grammar.compiler import CompiledFuture, GrammarCompiler
from descant_engine.grammar.matcher import Bitmask, BitmaskRow, Matcher, num_words
from descant_engine.grammar.spec import GrammarSpec
from descant_engine.grammar.vocabulary import Vocabulary
from descant_engine.request import EngineRequest, FinishReason, TokenDelta
from descant_engine.scheduler.grammar_masks import MASK_THREADS, SECONDS_A_TOKEN, Following, GrammarMasks
from descant_engine.scheduler.plan import ScheduledRequest

DEAD_END = "the grammar led to a point from which no output can be completed"
TOO_SLOW = "following the grammar takes too long; make it simpler"
STRAYED = "the output left its grammar; other options of the request forbid the tokens that it allows"


class GrammarEnd(NamedTuple):
    """A request that its grammar ends."""

    reason: FinishReason
    error: str | None = None
    """With FinishReason.UNMET: what went wrong, for the client."""


class Compiled(NamedTuple):
    """A request that waits no more: its grammar is there, or there will be none."""

    request: EngineRequest
    error: BaseException | None


@dataclass(slots=True)
class _Waiting:
    request: EngineRequest
    spec: GrammarSpec
    grammar: CompiledFuture


class RequestGrammars:
    """By request id. Used from the engine's thread."""

    def __init__(self, compiler: GrammarCompiler, vocabulary: Vocabulary, num_mask_threads: int = MASK_THREADS) -> None:
        self._compiler = compiler
        self._vocabulary = vocabulary
        self._masks = GrammarMasks(num_mask_threads)
        self._words = np.empty((0, num_words(vocabulary.size)), dtype=np.int32)
        self._may_go_on = _all_but(vocabulary.stop_token_ids, vocabulary.size)
        """Every token that is no end."""
        self._waiting: dict[str, _Waiting] = {}
        self._following: dict[str, Following] = {}

    # Until the grammar is compiled

    def add(self, request: EngineRequest, spec: GrammarSpec) -> None:
        """The request waits until `take_compiled` gives it back."""
        self._waiting[request.request_id] = _Waiting(request, spec, self._compiler.compile(_to_compile(spec)))

    def take_compiled(self) -> list[Compiled]:
        """In the order of their arrival."""
        compiled = []
        for request_id, waiting in list(self._waiting.items()):
            if waiting.grammar.done():
                del self._waiting[request_id]
                if (error := waiting.grammar.exception()) is None:
                    self._following[request_id] = Following(self._matcher(waiting))
                compiled.append(Compiled(waiting.request, error))
        return compiled

    def _matcher(self, waiting: _Waiting) -> Matcher:
        matcher = waiting.grammar.result().matcher()
        spec = waiting.spec
        return AfterTextMatcher(matcher, self._vocabulary, spec.opening, spec.after) if spec.after else matcher

    def wait(self, timeout: float) -> None:
        """Until some grammar is compiled."""
        wait([waiting.grammar for waiting in self._waiting.values()], timeout, return_when=FIRST_COMPLETED)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    # While the request runs

    def forget(self, request_id: str) -> None:
        """The request is over. Unknown ids are ignored."""
        if (waiting := self._waiting.pop(request_id, None)) is not None:
            self._drop(waiting)
        self._following.pop(request_id, None)

    def _drop(self, gone: _Waiting) -> None:
        """Clients that come and go must not have the compiler work for nobody, ahead of those who stay."""
        if not any(waiting.grammar is gone.grammar for waiting in self._waiting.values()):
            self._compiler.drop(_to_compile(gone.spec))

    def concern(self, scheduled: tuple[ScheduledRequest, ...]) -> bool:
        """Whether a step needs a mask, and so the tokens of every step before it."""
        return bool(self._following) and any(True for _ in self._sampled(scheduled))

    def bitmask(self, scheduled: tuple[ScheduledRequest, ...]) -> GrammarBitmask | None:
        """What a step may sample, once the tokens of every step before it were given to `accept`. The next step's mask
        takes the place of this one's."""
        places = tuple(self._sampled(scheduled))
        if not places:
            return None
        indices, request_ids = zip(*places, strict=True)
        words = self._words_for(len(places))
        self._masks.fill([self._following[each] for each in request_ids], words)
        return GrammarBitmask(indices, words)

    def _words_for(self, num_rows: int) -> Bitmask:
        """The same memory in every step: fresh pages would take as long as a few masks."""
        if num_rows > len(self._words):
            self._words = np.empty((2 * num_rows, self._words.shape[1]), dtype=np.int32)
        return self._words[:num_rows]

    def accept(self, delta: TokenDelta) -> GrammarEnd | None:
        """Follows a request's new tokens. Returns how its grammar ends it, if it does."""
        if (following := self._following.get(delta.request_id)) is None:
            return None
        end = None if delta.finish_reason is not None else self._follow(following, delta)
        if delta.finish_reason is not None or end is not None:
            self.forget(delta.request_id)
        return end

    def _follow(self, following: Following, delta: TokenDelta) -> GrammarEnd | None:
        if following.is_at_dead_end:
            return GrammarEnd(FinishReason.UNMET, DEAD_END)
        if following.seconds_left < 0:
            return GrammarEnd(FinishReason.UNMET, TOO_SLOW)
        started = thread_time()
        has_strayed = not all(following.matcher.accept(token_id) for token_id in delta.token_ids)
        must_end = not has_strayed and self._must_end(following.matcher)
        following.seconds_left += SECONDS_A_TOKEN * len(delta.token_ids) - (thread_time() - started)
        if has_strayed:
            return GrammarEnd(FinishReason.UNMET, STRAYED)
        return GrammarEnd(FinishReason.STOP) if must_end else None

    def _must_end(self, matcher: Matcher) -> bool:
        """Where nothing but an end may follow, it ends: no step for an end-of-sequence token, nor one that min_tokens
        or ignore_eos would forbid."""
        if not matcher.is_complete:
            return False
        row = np.empty_like(self._may_go_on)
        matcher.fill_bitmask(row)
        return not (row & self._may_go_on).any()

    def _sampled(self, scheduled: tuple[ScheduledRequest, ...]) -> Iterator[tuple[int, str]]:
        """(place among the step's samples, request id) of those with a grammar."""
        index = 0
        for request in scheduled:
            if request.samples:
                if request.request_id in self._following:
                    yield index, request.request_id
                index += 1 + request.num_draft_tokens


def _to_compile(spec: GrammarSpec) -> GrammarSpec:
    """Free text before the form needs no compiling: `_matcher` sees to it."""
    return replace(spec, after="", opening="")


def _all_but(token_ids: tuple[int, ...], vocab_size: int) -> BitmaskRow:
    bits = np.ones(num_words(vocab_size) * 32, dtype=np.uint8)
    bits[list(token_ids)] = 0
    return np.packbits(bits, bitorder="little").view(np.int32)
