"""Compiled grammars, and refusals, by their spec: the most recently used, up to a size."""

import time
from collections import OrderedDict
from concurrent.futures import Future
from typing import NamedTuple

from descant_engine.grammar.matcher import CompiledGrammar
from descant_engine.grammar.sandbox_client import GrammarTimedOut
from descant_engine.grammar.spec import GrammarRefused, GrammarSpec

MAX_ENTRIES = 1 << 14
"""Small grammars and refusals have objects around them that no count of bytes knows."""
REFUSAL_BYTES = 1 << 10
"""What a remembered refusal counts for, beside its spec."""
RETRY_SECONDS = 60.0
"""What was refused because it took too long is tried again after so long: the machine may have been busy."""

CompiledFuture = Future[CompiledGrammar]


class _Finished(NamedTuple):
    future: CompiledFuture
    num_bytes: int


class FutureCache:
    """Every call takes the same time, however much is in it. What is still compiling stays: somebody waits for it."""

    def __init__(self, max_bytes: int, max_entries: int = MAX_ENTRIES) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._compiling: OrderedDict[GrammarSpec, CompiledFuture] = OrderedDict()
        """In the order in which they begin, so nearly that in which they end. Some may have ended."""
        self._finished: OrderedDict[GrammarSpec, _Finished] = OrderedDict()
        """The least recently used first."""
        self._num_bytes = 0
        """Of all that is finished."""

    def __len__(self) -> int:
        return len(self._compiling) + len(self._finished)

    def get(self, spec: GrammarSpec) -> CompiledFuture | None:
        if (future := self._compiling.get(spec)) is not None:
            if not future.done():
                return future
            self._finish(spec)
        if (finished := self._finished.get(spec)) is None:
            return None
        if not _is_final(finished.future):
            self._forget(spec)
            return None
        self._finished.move_to_end(spec)
        return finished.future

    def put(self, spec: GrammarSpec, future: CompiledFuture) -> None:
        """In place of what was there."""
        if spec in self._finished:
            self._forget(spec)
        self._compiling[spec] = future
        while (first := next(iter(self._compiling), None)) is not None and self._compiling[first].done():
            self._finish(first)
        while self._num_bytes > self._max_bytes or len(self._finished) > self._max_entries:
            self._forget(next(iter(self._finished)))

    def drop(self, spec: GrammarSpec) -> bool:
        """Cancels and forgets what has not begun to compile; False for anything else."""
        if (future := self._compiling.get(spec)) is None or not future.cancel():
            return False
        del self._compiling[spec]
        return True

    def _finish(self, spec: GrammarSpec) -> None:
        future = self._compiling.pop(spec)
        finished = self._finished[spec] = _Finished(future, _num_bytes(spec, future))
        self._num_bytes += finished.num_bytes

    def _forget(self, spec: GrammarSpec) -> None:
        self._num_bytes -= self._finished.pop(spec).num_bytes


def _is_final(future: CompiledFuture) -> bool:
    """Whether another try would end alike."""
    error = future.exception()
    if isinstance(error, GrammarTimedOut):
        return time.monotonic() - error.since < RETRY_SECONDS
    return error is None or isinstance(error, GrammarRefused)


def _num_bytes(spec: GrammarSpec, future: CompiledFuture) -> int:
    grammar = REFUSAL_BYTES if future.exception() is not None else future.result().num_bytes
    return 4 * len(spec.text) + grammar
