"""What the cache keeps, and that putting something in costs the same however much is there."""

import time
from concurrent.futures import Future

import pytest

from descant_engine.grammar.future_cache import REFUSAL_BYTES, CompiledFuture, FutureCache
from descant_engine.grammar.matcher import CompiledGrammar, Matcher
from descant_engine.grammar.sandbox_client import SandboxFailed
from descant_engine.grammar.spec import GrammarKind, GrammarRefused, GrammarSpec

SPEC_BYTES = 20
"""What a spec's five characters count for."""


class Grammar:
    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def matcher(self) -> Matcher:
        raise NotImplementedError


def spec(index: int) -> GrammarSpec:
    return GrammarSpec(GrammarKind.REGEX, f"{index:05}")


def built(num_bytes: int) -> CompiledFuture:
    """It takes so much with its spec."""
    future: CompiledFuture = Future()
    future.set_result(Grammar(num_bytes - SPEC_BYTES))
    return future


def failed(error: Exception) -> CompiledFuture:
    future: Future[CompiledGrammar] = Future()
    future.set_exception(error)
    return future


def kept(cache: FutureCache, count: int) -> list[int]:
    """Looked at from the oldest on, which leaves their order as it was if they were put in so."""
    return [index for index in range(count) if cache.get(spec(index)) is not None]


def test_the_least_recently_used_go_first() -> None:
    cache = FutureCache(max_bytes=300)
    for index in range(3):
        cache.put(spec(index), built(100))
    assert cache.get(spec(0)) is not None
    cache.put(spec(3), built(100))
    assert kept(cache, 4) == [0, 2, 3]
    cache.put(spec(4), built(250))
    assert kept(cache, 5) == [4]


def test_a_size_counts_from_when_it_is_known_and_until_it_is_replaced() -> None:
    cache = FutureCache(max_bytes=300)
    slow: CompiledFuture = Future()
    cache.put(spec(0), slow)
    for index in range(1, 4):
        cache.put(spec(index), built(100))
    assert kept(cache, 4) == [0, 1, 2, 3], "nobody knows yet how large the first one is"
    slow.set_result(Grammar(200 - SPEC_BYTES))
    assert cache.get(spec(0)) is slow
    cache.put(spec(4), built(100))
    assert kept(cache, 5) == [0, 4]
    cache.put(spec(0), built(100))
    cache.put(spec(5), built(100))
    assert kept(cache, 6) == [0, 4, 5]


def test_what_is_still_compiling_stays_and_can_be_dropped() -> None:
    cache = FutureCache(max_bytes=0)
    waiting: CompiledFuture = Future()
    cache.put(spec(0), waiting)
    cache.put(spec(1), built(100))
    cache.put(spec(2), built(100))
    assert cache.get(spec(0)) is waiting
    assert cache.drop(spec(0))
    assert waiting.cancelled()
    assert cache.get(spec(0)) is None
    assert not cache.drop(spec(2))


def test_refusals_are_remembered_up_to_a_number_and_what_merely_failed_is_not() -> None:
    cache = FutureCache(max_bytes=100 * REFUSAL_BYTES, max_entries=3)
    for index in range(5):
        cache.put(spec(index), failed(GrammarRefused("no")))
    assert kept(cache, 5) == [2, 3, 4]
    cache.put(spec(5), failed(SandboxFailed("it ended")))
    assert kept(cache, 6) == [3, 4]
    assert len(cache) == 2


@pytest.mark.parametrize("size", [64 << 10, REFUSAL_BYTES])
def test_a_full_cache_takes_one_more_as_quickly_as_an_empty_one(size: int) -> None:
    cache = FutureCache(max_bytes=4096 * size)
    started = time.thread_time()
    for index in range(12_000):
        cache.put(spec(index), built(size))
    assert time.thread_time() - started < 2, "each was compared with all that were there"
    assert len(cache) == 4096
