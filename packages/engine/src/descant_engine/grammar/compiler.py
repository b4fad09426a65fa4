"""Compiled grammars by their spec: from the cache, or from the sandbox a little later. The engine never waits here."""

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from descant_engine.grammar.build import Backends, needs_xgrammar
from descant_engine.grammar.future_cache import CompiledFuture as CompiledFuture
from descant_engine.grammar.future_cache import FutureCache
from descant_engine.grammar.matcher import CompiledGrammar
from descant_engine.grammar.sandbox import Setup
from descant_engine.grammar.sandbox_client import Sandbox, SandboxFailed
from descant_engine.grammar.spec import BackendName, GrammarSpec
from descant_engine.grammar.vocabulary import Vocabulary

CACHE_BYTES = 256 << 20
COMPILING_THREADS = 4
"""They wait for the sandbox's processes, which are so many at once."""
MAX_PROVISIONAL = 256
"""Of more, those that were built first stay as llguidance built them."""


class GrammarCompiler:
    """Used from one thread, the engine's; what takes long runs in others.

    xgrammar takes longer to load. Until its sandbox is ready, specs are built by llguidance in one of its own, which
    is there in a moment; those that are asked for again later are then built anew.
    """

    def __init__(
        self, vocabulary: Vocabulary, allowed: tuple[BackendName, ...], cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._backends = Backends(vocabulary, allowed)
        self._backends_lock = threading.Lock()
        self._sandbox = self._first_sandbox = Sandbox(Setup(vocabulary, allowed))
        if len(self._backends.names) > 1:
            self._first_sandbox = Sandbox(Setup(vocabulary, (BackendName.LLGUIDANCE,)))
        self._threads = ThreadPoolExecutor(COMPILING_THREADS, thread_name_prefix="grammar")
        self._cache = FutureCache(cache_bytes)
        self._provisional: OrderedDict[GrammarSpec, CompiledFuture | None] = OrderedDict()
        """Built before all libraries were loaded, with what is to take the place of that."""

    def compile(self, spec: GrammarSpec) -> CompiledFuture:
        """Its exception is GrammarRefused, or SandboxFailed. The same spec gives the same future for a long time."""
        self._improve(spec)
        if (future := self._cache.get(spec)) is None:
            future = self._threads.submit(self._compile, spec, self._sandbox_for(spec))
            self._cache.put(spec, future)
        return future

    def drop(self, spec: GrammarSpec) -> None:
        """Nobody waits for it any more: it is not built, unless that has begun."""
        if self._cache.drop(spec) and (better := self._provisional.pop(spec, None)) is not None:
            better.cancel()

    def start(self) -> None:
        """Has the sandbox load its libraries, before anybody needs them."""
        if self._backends.names:
            threading.Thread(target=self._start, name="start-sandbox", daemon=True).start()

    def prepare_next(self) -> bool:
        """Makes one of the libraries ready in this process, which stops it for some tenths of a second; False if
        nothing is left, or another thread is at it."""
        if not self._backends_lock.acquire(blocking=False):
            return False
        try:
            return self._backends.warm_up_next()
        finally:
            self._backends_lock.release()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._sandbox.close()
        self._first_sandbox.close()

    def _sandbox_for(self, spec: GrammarSpec) -> Sandbox:
        if self._sandbox.is_ready or self._first_sandbox is self._sandbox or needs_xgrammar(spec):
            return self._sandbox
        if not self._provisional:
            self.start()
        self._provisional[spec] = None
        if len(self._provisional) > MAX_PROVISIONAL:
            self._provisional.popitem(last=False)
        return self._first_sandbox

    def _start(self) -> None:
        with suppress(SandboxFailed):  # whoever needs it hears of it
            self._sandbox.start()

    def _improve(self, spec: GrammarSpec) -> None:
        """Has a provisional build made anew as soon as that is possible, and takes it once it is there."""
        if spec not in self._provisional or not self._sandbox.is_ready:
            return
        if (better := self._provisional[spec]) is None:
            self._provisional[spec] = self._threads.submit(self._compile, spec, self._sandbox)
        elif better.done():
            del self._provisional[spec]
            self._cache.put(spec, better)

    def _compile(self, spec: GrammarSpec, sandbox: Sandbox) -> CompiledGrammar:
        build = sandbox.build(spec)
        with self._backends_lock:  # they are made on first use
            return self._backends.load(build)
