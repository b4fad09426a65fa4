"""Compiled grammars by their spec: from the cache, or from the sandbox a little later. The engine never waits here."""

import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from descant_engine.grammar.build import BackendName, Backends
from descant_engine.grammar.matcher import CompiledGrammar
from descant_engine.grammar.sandbox import Setup
from descant_engine.grammar.sandbox_client import Sandbox
from descant_engine.grammar.spec import GrammarRefused, GrammarSpec
from descant_engine.grammar.vocabulary import Vocabulary

CACHE_BYTES = 256 << 20
REFUSAL_BYTES = 1 << 10
"""What a remembered refusal counts for, beside its spec."""
COMPILING_THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))

CompiledFuture = Future[CompiledGrammar]


class GrammarCompiler:
    """Used from one thread, the engine's; what takes long runs in others."""

    def __init__(
        self, vocabulary: Vocabulary, allowed: tuple[BackendName, ...], cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._backends = Backends(vocabulary, allowed)
        self._backends_lock = threading.Lock()
        self._sandbox = Sandbox(Setup(vocabulary, allowed))
        self._threads = ThreadPoolExecutor(COMPILING_THREADS, thread_name_prefix="grammar")
        self._cache = _FutureCache(cache_bytes)

    def compile(self, spec: GrammarSpec) -> CompiledFuture:
        """Its exception is GrammarRefused, or SandboxFailed. The same spec gives the same future for a long time."""
        if (future := self._cache.get(spec)) is None:
            future = self._threads.submit(self._compile, spec)
            self._cache.put(spec, future)
        return future

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._sandbox.close()

    def _compile(self, spec: GrammarSpec) -> CompiledGrammar:
        build = self._sandbox.build(spec)
        with self._backends_lock:  # they are made on first use
            return self._backends.load(build)


class _FutureCache:
    """The most recently used, up to a size. What is still compiling stays: somebody waits for it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._futures: OrderedDict[GrammarSpec, CompiledFuture] = OrderedDict()

    def get(self, spec: GrammarSpec) -> CompiledFuture | None:
        if (future := self._futures.get(spec)) is None:
            return None
        if future.done() and not _is_final(future):
            del self._futures[spec]
            return None
        self._futures.move_to_end(spec)
        return future

    def put(self, spec: GrammarSpec, future: CompiledFuture) -> None:
        self._futures[spec] = future
        finished = [(known, _num_bytes(known, done)) for known, done in self._futures.items() if done.done()]
        excess = sum(size for _, size in finished) - self._max_bytes
        for known, size in finished:
            if excess <= 0:
                return
            del self._futures[known]
            excess -= size


def _is_final(future: CompiledFuture) -> bool:
    """Whether another try would end alike."""
    error = future.exception()
    return error is None or isinstance(error, GrammarRefused)


def _num_bytes(spec: GrammarSpec, future: CompiledFuture) -> int:
    grammar = REFUSAL_BYTES if future.exception() is not None else future.result().num_bytes
    return 4 * len(spec.text) + grammar
