"""The loop: schedule, execute, update. Scheduler and runner meet here and nowhere else."""

import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.config import ResolvedConfig
from descant_engine.grammar.bitmask import GrammarBitmask
from descant_engine.grammar.spec import BackendName
from descant_engine.request import EngineRequest, TokenDelta
from descant_engine.runner.encoder_runner import EncoderRunner
from descant_engine.runner.model_runner import ModelRunner, PendingStep
from descant_engine.scheduler.admission import RequestRefused
from descant_engine.scheduler.plan import StepPlan
from descant_engine.scheduler.scheduler import Scheduler
from descant_engine.scheduler.stats import SchedulerStats
from descant_engine.speculation.config import MAX_DRAFT_TOKENS_ON_CPU, SpeculativeMethod
from descant_engine.speculation.ngram import NgramProposer
from descant_engine.speculation.proposal import ModelProposer
from descant_engine.speculation.speculation import Speculation

if TYPE_CHECKING:
    from descant_engine.grammar.compiler import GrammarCompiler
    from descant_engine.scheduler.grammar import RequestGrammars

POLL_SECONDS = 0.005
WAKE_SECONDS = 0.001
"""A wait for messages may last longer by so much."""
LAUNCH_DECAY = 0.95


class Refusal(NamedTuple):
    """A request that was taken by `submit` and never got into the queue."""

    request_id: str
    error: BaseException
    """GrammarRefused; anything else is our fault, not the client's."""


class Engine:
    """Token ids in, token ids out. Not thread-safe: one thread owns it.

    On CUDA one step is planned and launched while the one before still runs, so the device never waits for Python;
    results are applied one step late. On the CPU there is nothing to overlap with.
    """

    def __init__(self, config: ResolvedConfig) -> None:
        self.config = config
        self._runner = ModelRunner(config) if config.shape.encoder is None else EncoderRunner(config)
        self._scheduler = Scheduler(
            config, self._runner.num_blocks, self._runner.num_adapter_slots, speculation=_speculation(config)
        )
        self._steps_ahead = 1 if config.device == "cuda" else 0
        self._launched: deque[tuple[StepPlan, PendingStep]] = deque()
        self._compiler: GrammarCompiler | None = None
        self._grammars: RequestGrammars | None = None
        """None until somebody may ask for one."""
        self._refusals: list[Refusal] = []
        self._launch_s = 0.0
        """What it takes to plan and launch a step; forgets long ones slowly."""

    @property
    def num_blocks(self) -> int:
        return self._runner.num_blocks

    @property
    def has_work(self) -> bool:
        return bool(self._launched) or self._scheduler.has_unfinished_requests

    def submit(self, request: EngineRequest) -> None:
        """Raises RequestRefused (it can never be served) or QueueFull; both are ValueErrors fit for the client. One
        whose grammar has to be compiled first may be refused later: see `take_refusals`.
        """
        if request.params.grammar is None:
            self._scheduler.add(request)
            return
        if self._grammars is None:
            raise RequestRefused("the engine was given no vocabulary, which grammars need")
        self._scheduler.expect(request)
        self._grammars.add(request, request.params.grammar)

    def abort(self, request_id: str) -> None:
        if self._grammars is not None:
            self._grammars.forget(request_id)
        self._scheduler.abort(request_id)

    def use_vocabulary(self, tokens: tuple[bytes, ...]) -> None:
        """The bytes of every token, empty for special ones. Only requests with a grammar need it; once is enough.
        A process that compiles them starts."""
        if self._grammars is None:
            # Late: an engine without grammars starts sooner, and needs nothing of what they need.
            from descant_engine.grammar.compiler import GrammarCompiler
            from descant_engine.grammar.vocabulary import Vocabulary
            from descant_engine.scheduler.grammar import RequestGrammars

            vocabulary = Vocabulary.of_model(tokens, self.config.shape.vocab_size, self.config.eos_token_ids)
            self._compiler = GrammarCompiler(vocabulary, _allowed_backends(self.config))
            self._compiler.start()
            self._grammars = RequestGrammars(self._compiler, vocabulary)

    def take_refusals(self) -> list[Refusal]:
        """Requests that were refused since the last call, after `submit` had taken them."""
        refusals, self._refusals = self._refusals, []
        return refusals

    def register_adapter(self, manifest: AdapterManifest) -> None:
        self._scheduler.register_adapter(manifest)

    def remove_adapter(self, digest: str) -> None:
        self._scheduler.remove_adapter(digest)

    def seconds_to_spare(self) -> float:
        """How long `step` may be put off, while the device has enough to do: who comes in that time, and goes before
        others, need not wait for a step that was planned without him. 0 where nobody gives way to anybody."""
        if not self._launched or not self._steps_ahead:
            return 0.0
        return max(0.0, self._scheduler.busy_until - self._launch_s - WAKE_SECONDS - time.monotonic())

    def step(self) -> list[TokenDelta]:
        """Launches the next step and applies the oldest one that is due. Returns what became known."""
        self._queue_compiled()
        loaded = self._follow_all(self._scheduler.finish_loads(self._runner.finished_loads()))
        deltas = self._apply_all() if self._launched and self._scheduler.wants_results else []
        begun = time.monotonic()
        plan = self._scheduler.schedule()
        if plan.is_empty and not self._launched:
            self._wait()
            return loaded + deltas
        if not plan.is_empty:
            forward = self._runner.forward(plan)
            self._launch_s = max(time.monotonic() - begun, LAUNCH_DECAY * self._launch_s)
            bitmask, known = self._bitmask(plan)
            deltas += known
            self._launched.append((plan, self._runner.sample(forward, bitmask)))
        if len(self._launched) > self._steps_ahead or not plan.scheduled:
            deltas += self._apply_oldest()
        return loaded + deltas

    def _bitmask(self, plan: StepPlan) -> tuple[GrammarBitmask | None, list[TokenDelta]]:
        """What grammars allow in a step whose forward pass is under way. That takes the tokens of the steps before it,
        which are applied here; a step without grammars leaves them for later."""
        if self._grammars is None or not self._grammars.concern(plan.scheduled):
            return None, []
        deltas = self._apply_all()
        return self._grammars.bitmask(plan.scheduled), deltas

    def _apply_all(self) -> list[TokenDelta]:
        deltas: list[TokenDelta] = []
        while self._launched:
            deltas += self._apply_oldest()
        return deltas

    def _apply_oldest(self) -> list[TokenDelta]:
        plan, launched = self._launched.popleft()
        return self._follow_all(self._scheduler.update(plan, launched.result()))

    def _follow_all(self, deltas: list[TokenDelta]) -> list[TokenDelta]:
        return deltas if self._grammars is None else [self._follow(self._grammars, delta) for delta in deltas]

    def _follow(self, grammars: "RequestGrammars", delta: TokenDelta) -> TokenDelta:
        if (end := grammars.accept(delta)) is None:
            return delta
        times = self._scheduler.finish(delta.request_id, end.reason)
        return delta._replace(finish_reason=end.reason, error=end.error, times=times)

    def _queue_compiled(self) -> None:
        if self._grammars is None or not self._grammars.num_waiting:
            return
        for request, error in self._grammars.take_compiled():
            if error is None:
                self._scheduler.queue(request.request_id)
            else:
                self._scheduler.abort(request.request_id)
                self._refusals.append(Refusal(request.request_id, error))

    def _wait(self) -> None:
        """Everything that is left waits for a grammar or for an adapter's file."""
        if self._grammars is not None and self._grammars.num_waiting:
            self._grammars.wait(POLL_SECONDS)
        else:
            self._runner.wait_for_adapters(POLL_SECONDS)

    def prepare(self) -> bool:
        """To be called while there is no work: makes ready, in some tenths of a second, something that a step would
        stop for (a CUDA graph, a library of grammars). False if nothing is left."""
        return self._runner.prepare_next() or (self._compiler is not None and self._compiler.prepare_next())

    def stats(self) -> SchedulerStats:
        return self._scheduler.stats()

    def check_integrity(self) -> None:
        """Asserts the bookkeeping's invariants."""
        self._scheduler.check_integrity()

    def close(self) -> None:
        self._runner.close()
        if self._compiler is not None:
            self._compiler.close()


def _speculation(config: ResolvedConfig) -> Speculation | None:
    wanted = config.user.speculative_config
    if wanted is None or config.shape.encoder is not None:
        return None
    proposer = NgramProposer(wanted) if wanted.method is SpeculativeMethod.NGRAM else ModelProposer()
    max_tokens = min(wanted.max_tokens, MAX_DRAFT_TOKENS_ON_CPU) if config.device == "cpu" else wanted.max_tokens
    return Speculation(proposer, max_tokens, adaptive=wanted.adaptive)


def _allowed_backends(config: ResolvedConfig) -> tuple[BackendName, ...]:
    wanted = config.user.structured_output_backend
    return (BackendName.XGRAMMAR, BackendName.LLGUIDANCE) if wanted == "auto" else (BackendName(wanted),)
