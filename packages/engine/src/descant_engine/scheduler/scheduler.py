"""Decides each step: which requests run, how many of their tokens, in which blocks, with which adapters.

There is no prefill and no decode phase. Every request has `num_computed_tokens`, which catches up with its tokens; a
step is {request: how many}. Chunked prefill, prefix hits and preemption by recompute fall out of that one rule
(the idea is vLLM V1's; continuous batching is Orca's, OSDI 2022).

Plans may run ahead of results. `schedule` counts a sample on its way as a token that exists and may schedule it as
the next step's input; `update` supplies its id later, to the very request that was scheduled, whatever became of it
in the meantime.
"""

import time
from collections.abc import Callable, Sequence
from random import Random

from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.cache.block_pool import count_holders
from descant_engine.cache.caches import Caches
from descant_engine.config import ResolvedConfig
from descant_engine.request import NO_LOGPROBS, EngineRequest, FinishReason, Request, RequestTimes, TokenDelta
from descant_engine.scheduler.admission import QueueFull, RequestRefused, accept, first_sample_of
from descant_engine.scheduler.integrity import check_requests, count_adapters
from descant_engine.scheduler.outcomes import Outcomes
from descant_engine.scheduler.plan import AdapterEvent, StepPlan, StepResult
from descant_engine.scheduler.precedence import Precedence
from descant_engine.scheduler.room import Room
from descant_engine.scheduler.sampled import by_request
from descant_engine.scheduler.stats import NO_DRAFTS, SchedulerStats
from descant_engine.scheduler.step_draft import StepDraft
from descant_engine.scheduler.step_planner import StepPlanner
from descant_engine.scheduler.step_times import StepTimes
from descant_engine.scheduler.unfinished import UnfinishedRequests
from descant_engine.speculation.speculation import Speculation


class Scheduler:
    """The engine's view of it: requests and results go in, plans and deltas come out. Not thread-safe.

    `StepPlanner` fills a step, `Outcomes` says what came of it, and `UnfinishedRequests` owns every request's status.

    Args:
        num_blocks: size of the block pool.
        num_adapter_slots: rows of the runner's adapter tables; how many adapters can be on the device at once.
        speculation: None if nothing is ever drafted.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        num_blocks: int,
        num_adapter_slots: int,
        clock: Callable[[], float] = time.monotonic,
        speculation: Speculation | None = None,
    ) -> None:
        self._config = config
        caches = Caches.of(config, num_blocks, num_adapter_slots)
        self._pool, self._kv, self._adapters = caches
        self._speculation = speculation
        self._seeds = Random(config.user.seed)
        self._precedence = Precedence(config.max_num_seqs)
        self._unfinished = UnfinishedRequests(caches, self._precedence, speculation, config.user.block_size)
        self._step_times = StepTimes()
        room = Room(config, num_blocks, self._precedence, self._step_times)
        self._planner = StepPlanner(config, self._unfinished, caches, self._precedence, room, speculation)
        self._outcomes = Outcomes(self._unfinished, self._adapters, speculation)
        self._completing: dict[int, dict[str, Request]] = {}
        """Step id -> whom it gives a token or a vector, for steps whose results are due."""
        self._clock = clock
        self._now = clock()
        """Read once for each step and each result, which is exact enough for all that happens in it."""
        self._num_steps = 0
        self._num_arrivals = 0

    def add(self, spec: EngineRequest) -> None:
        """Queues a request.

        Raises:
            RequestRefused: it can never be served.
            QueueFull: max_num_queued_requests wait already.
        """
        self.expect(spec)
        self.queue(spec.request_id)

    def expect(self, spec: EngineRequest) -> None:
        """Takes a request that is to be queued later, when its grammar is compiled. Raises as `add` does."""
        if spec.request_id in self._unfinished.by_id:
            raise RequestRefused(f"a request with id {spec.request_id!r} is under way already")
        limit, num_waiting = self._config.user.max_num_queued_requests, self._unfinished.num_waiting
        if num_waiting >= limit:
            raise QueueFull(f"{num_waiting} requests wait already, and max_num_queued_requests={limit}")
        request = accept(spec, self._config, self._pool_tokens(spec.adapter_digest), self._num_arrivals, self._seeds)
        request.first_sample = first_sample_of(spec, self._unfinished.by_id)
        request.arrived = self._clock()
        self._num_arrivals += 1
        self._unfinished.join(request, self._num_steps)

    def queue(self, request_id: str) -> None:
        """An expected request can be served from now on."""
        self._unfinished.queue(self._unfinished.by_id[request_id])

    def abort(self, request_id: str) -> None:
        """Ends a request at any moment; its samples on their way are dropped. Unknown ids are ignored."""
        self.finish(request_id, FinishReason.ABORT)

    def finish(self, request_id: str, reason: FinishReason) -> RequestTimes | None:
        """Ends a request for a reason that lies outside, such as its grammar. Unknown ids are ignored."""
        if (request := self._unfinished.by_id.get(request_id)) is None:
            return None
        self._unfinished.finish(request, reason, self._now)
        return request.times(self._now)

    def register_adapter(self, manifest: AdapterManifest) -> None:
        """Raises ValueError, with the numbers, for an adapter that can never be served."""
        self._adapters.register(manifest)

    def remove_adapter(self, digest: str) -> None:
        """Refuses new requests for it; those accepted finish, then its memory is freed."""
        self._adapters.remove(digest)

    def schedule(self) -> StepPlan:
        """The next step, on the assumption that every step before it has run. May be empty."""
        self._num_steps += 1
        self._now = self._clock()
        self._precedence.begin_step(self._now)
        step = StepDraft(self._config.max_num_batched_tokens, self._now)
        self._planner.fill(step)
        for request in step.requests:
            self._kv.cache_full_blocks(request)
        if step.completing:
            self._completing[self._num_steps] = step.completing
        if step.scheduled:
            self._step_times.planned(self._num_steps, step.work, self._now)
        plan = step.finish(self._num_steps, self._adapters.take_moves(), self._unfinished.running.take_removed())
        if self._speculation is not None:
            self._speculation.launched(plan, self._now)
        return plan

    def update(self, plan: StepPlan, result: StepResult) -> list[TokenDelta]:
        """Applies a step's outcome; results come in the order of their plans. Returns what is new, per request."""
        deltas = []
        now = self._now = self._clock()
        outcomes = self._outcomes
        self._step_times.ended(plan.step_id, now)
        completing = self._completing.pop(plan.step_id, {})
        if self._speculation is not None:
            self._speculation.arrived(plan, now)
        for request_id, token_ids in by_request(result.sampled):
            request = completing[request_id]
            request.land()
            if not request.is_finished:
                logprobs = result.logprobs.get(request_id, NO_LOGPROBS)
                deltas.append(outcomes.sampled(request, token_ids, logprobs, now))
        for request_id, vector in result.pooled.items():
            request = completing[request_id]
            request.land()
            if not request.is_finished:
                deltas.append(outcomes.pooled(request, vector, now))
        return deltas

    def finish_loads(self, events: Sequence[AdapterEvent]) -> list[TokenDelta]:
        """Applies moves that are over, whatever steps are under way: nobody waits for their results as well."""
        if events:
            self._now = self._clock()
        return [delta for event in events for delta in self._outcomes.moved(event, self._now)]

    @property
    def has_unfinished_requests(self) -> bool:
        return len(self._unfinished) > 0

    @property
    def busy_until(self) -> float:
        """Until when, on the clock, the device has enough to do, if it is worth to wait with the next plan for who may
        come: he would have to wait for a step that is planned without him. 0 if it is not, or can't be told.
        """
        return self._step_times.busy_until() if self._precedence.is_needed else 0.0

    @property
    def wants_results(self) -> bool:
        """Whether the next plan is better made when the results of all steps under way are applied."""
        return self._speculation is not None and self._speculation.wants_results(self._unfinished.running)

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_running=len(self._unfinished.running),
            num_waiting=self._unfinished.num_waiting,
            num_waiting_for_grammar=self._unfinished.num_waiting_for_grammar,
            num_waiting_for_adapter=self._unfinished.waiting.num_parked,
            num_below_default=self._precedence.num_below(0),
            num_queued_tokens=sum(r.num_tokens - r.num_computed_tokens for r in self._unfinished),
            block_usage=1 - self._pool.num_free_blocks / self._pool.num_blocks,
            prefix_query_tokens=self._kv.num_query_tokens,
            prefix_hit_tokens=self._kv.num_hit_tokens,
            num_preemptions=self._unfinished.num_preemptions,
            num_adapter_loads=self._adapters.num_loads,
            num_adapter_evictions=self._adapters.num_evictions,
            adapters=self._adapters.residency(),
            drafts=NO_DRAFTS if self._speculation is None else self._speculation.counts(),
        )

    def check_integrity(self) -> None:
        """Asserts every invariant of requests, blocks and adapters. For tests, and for when nothing else is to do."""
        unfinished, running = self._unfinished, self._unfinished.running
        check_requests(unfinished.by_id, unfinished.waiting, running.requests, self._completing.values())
        assert len(running) <= self._config.max_num_seqs
        alive = list(unfinished)
        self._kv.check_integrity(alive)
        self._pool.check_integrity(count_holders([*(r.block_ids for r in alive), *self._adapters.held_blocks()]))
        self._adapters.check_integrity(count_adapters(alive), count_adapters(running))

    def _pool_tokens(self, adapter_digest: str | None) -> int:
        """How many tokens' KV the pool holds beside an adapter."""
        num_blocks = self._pool.num_blocks
        if adapter_digest is not None:
            if adapter_digest not in self._adapters:
                raise RequestRefused(f"no adapter with digest {adapter_digest} is registered")
            num_blocks -= self._adapters.num_blocks(adapter_digest)
        return num_blocks * self._config.user.block_size
