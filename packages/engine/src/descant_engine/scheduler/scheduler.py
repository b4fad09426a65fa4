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
from math import ceil
from random import Random

from descant_engine.adapter import AdapterManifest
from descant_engine.cache.adapter_cache import AdapterCache
from descant_engine.cache.block_pool import BlockPool, count_holders
from descant_engine.cache.kv_cache import KvCache
from descant_engine.config import ResolvedConfig
from descant_engine.request import (
    NO_LOGPROBS,
    EngineRequest,
    FinishReason,
    Request,
    RequestStatus,
    RequestTimes,
    SampleLogprobs,
    TokenDelta,
)
from descant_engine.scheduler.adapter_loading import AdapterLoading
from descant_engine.scheduler.admission import QueueFull, RequestRefused, accept, first_sample_of
from descant_engine.scheduler.batch import Batch
from descant_engine.scheduler.drafts import add_drafts
from descant_engine.scheduler.integrity import check_requests, count_adapters
from descant_engine.scheduler.plan import AdapterEvent, AdapterMoveKind, StepPlan, StepResult
from descant_engine.scheduler.precedence import Precedence
from descant_engine.scheduler.room import Room
from descant_engine.scheduler.sampled import append, by_request
from descant_engine.scheduler.shares import Shares, cost_of
from descant_engine.scheduler.stats import NO_DRAFTS, SchedulerStats
from descant_engine.scheduler.step_draft import StepDraft, num_schedulable_tokens
from descant_engine.scheduler.step_times import StepTimes
from descant_engine.scheduler.waiting import WaitingRequests
from descant_engine.speculation.speculation import Speculation

SPARE_BLOCK_SHARE = 0.01
"""Kept free for the growth of running requests when something new comes in, so that it is not preempted at once."""


class Scheduler:
    """Owns every request's status. Not thread-safe.

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
        self._pool = BlockPool(num_blocks)
        self._kv = KvCache(
            self._pool,
            config.user.block_size,
            config.user.model,
            enable_prefix_caching=config.caches_prefixes,
        )
        self._adapters = AdapterCache(config, self._pool, num_adapter_slots if config.user.enable_lora else 0)
        self._speculation = speculation
        self._seeds = Random(config.user.seed)
        self._requests: dict[str, Request] = {}
        self._waiting = WaitingRequests()
        self._shares = Shares()
        self._loading = AdapterLoading(self._adapters, self._waiting)
        self._precedence = Precedence(config.max_num_seqs)
        self._running = Batch(self._kv, self._adapters, self._precedence, config.user.block_size)
        self._step_times = StepTimes()
        self._room = Room(config, num_blocks, self._precedence, self._step_times)
        self._sampling: dict[int, dict[str, Request]] = {}
        """Step id -> who is being sampled in it, for steps whose results are due."""
        self._clock = clock
        self._now = clock()
        """Read once for each step and each result, which is exact enough for all that happens in it."""
        self._num_steps = 0
        self._num_arrivals = 0
        self._num_preemptions = 0

    def add(self, spec: EngineRequest) -> None:
        """Queues a request.

        Raises:
            RequestRefused: it can never be served.
            QueueFull: max_num_queued_requests wait already.
        """
        if spec.request_id in self._requests:
            raise RequestRefused(f"a request with id {spec.request_id!r} is under way already")
        limit = self._config.user.max_num_queued_requests
        if len(self._waiting) >= limit:
            raise QueueFull(f"{len(self._waiting)} requests wait already, and max_num_queued_requests={limit}")
        request = accept(spec, self._config, self._pool_tokens(spec.adapter_digest), self._num_arrivals, self._seeds)
        request.first_sample = first_sample_of(spec, self._requests)
        self._num_arrivals += 1
        self._requests[spec.request_id] = request
        request.arrived = self._clock()
        request.share = self._shares.join(request, self._num_steps)
        self._precedence.join(request, request.arrived)
        if spec.adapter_digest is not None:
            self._adapters.add_user(spec.adapter_digest)
        self._wait(request)

    def abort(self, request_id: str) -> None:
        """Ends a request at any moment; its samples on their way are dropped. Unknown ids are ignored."""
        if (request := self._requests.get(request_id)) is not None:
            self._finish(request, FinishReason.ABORT)

    def finish(self, request_id: str, reason: FinishReason) -> None:
        """Ends a request for a reason that lies outside, such as its grammar. Unknown ids are ignored."""
        if (request := self._requests.get(request_id)) is not None:
            self._finish(request, reason)

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
        step = StepDraft(self._config.max_num_batched_tokens)
        self._waiting.set_aside(self._precedence.shares)
        self._schedule_running(step)
        self._resume_held(step)
        blocked = self._admit(step)
        self._waiting.put_back()
        if step.postponed or self._precedence.is_needed:
            self._room.open_rest(step)
            self._schedule_postponed(step)
            blocked = blocked or self._admit(step)
            self._waiting.put_back()
        self._park_displaced()
        self._loading.bring(step, blocked, self._num_spare_blocks)
        for request in step.requests:
            self._kv.cache_full_blocks(request)
        if step.sampling:
            self._sampling[self._num_steps] = step.sampling
        if step.scheduled:
            self._step_times.planned(self._num_steps, step.work, self._now)
        plan = step.finish(self._num_steps, self._adapters.take_moves(), self._running.take_removed())
        if self._speculation is not None:
            self._speculation.launched(plan, self._now)
        return plan

    def update(self, plan: StepPlan, result: StepResult) -> list[TokenDelta]:
        """Applies a step's outcome; results come in the order of their plans. Returns what is new, per request."""
        deltas = []
        self._now = self._clock()
        self._step_times.ended(plan.step_id, self._now)
        sampling = self._sampling.pop(plan.step_id, {})
        if self._speculation is not None:
            self._speculation.arrived(plan, self._now)
        for request_id, token_ids in by_request(result.sampled):
            request = sampling[request_id]
            request.num_inflight_samples -= 1
            if not request.is_finished:
                deltas.append(self._append(request, token_ids, result.logprobs.get(request_id, NO_LOGPROBS)))
        for request_id, vector in result.pooled.items():
            if not (request := sampling[request_id]).is_finished:
                deltas.append(self._finish_pooled(request, vector))
        for event in result.adapter_events:
            deltas += self._apply_adapter_event(event)
        return deltas

    def finish_loads(self, events: Sequence[AdapterEvent]) -> list[TokenDelta]:
        """Applies moves that are over, whatever steps are under way: nobody waits for their results as well."""
        if events:
            self._now = self._clock()
        return [delta for event in events for delta in self._apply_adapter_event(event)]

    @property
    def has_unfinished_requests(self) -> bool:
        return bool(self._requests)

    @property
    def has_schedulable_work(self) -> bool:
        """False if, until another result is applied or a request arrives, `schedule` would return an empty plan."""
        return (
            self._running.has_removed
            or self._adapters.has_moves
            or any(num_schedulable_tokens(request) for request in self._running)
            or any(not self._waits_for_load(request) for request in self._waiting)
        )

    @property
    def busy_until(self) -> float:
        """Until when, on the clock, the device has enough to do, if it is worth to wait with the next plan for who may
        come: he would have to wait for a step that is planned without him. 0 if it is not, or can't be told.
        """
        return self._step_times.busy_until() if self._precedence.is_needed else 0.0

    @property
    def wants_results(self) -> bool:
        """Whether the next plan is better made when the results of all steps under way are applied."""
        return self._speculation is not None and self._speculation.wants_results(self._running)

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_waiting_for_adapter=self._waiting.num_parked,
            num_below_default=self._precedence.num_below(0),
            num_queued_tokens=sum(r.num_tokens - r.num_computed_tokens for r in self._requests.values()),
            block_usage=1 - self._pool.num_free_blocks / self._pool.num_blocks,
            prefix_query_tokens=self._kv.num_query_tokens,
            prefix_hit_tokens=self._kv.num_hit_tokens,
            num_preemptions=self._num_preemptions,
            num_adapter_loads=self._adapters.num_loads,
            num_adapter_evictions=self._adapters.num_evictions,
            adapters=self._adapters.residency(),
            drafts=NO_DRAFTS if self._speculation is None else self._speculation.counts(),
        )

    def check_integrity(self) -> None:
        """Asserts every invariant of requests, blocks and adapters. For tests, and for when nothing else is to do."""
        check_requests(self._requests, self._waiting, self._running.requests, self._sampling.values())
        assert len(self._running) <= self._config.max_num_seqs
        alive = list(self._requests.values())
        self._kv.check_integrity(alive)
        self._pool.check_integrity(count_holders([*(r.block_ids for r in alive), *self._adapters.held_blocks()]))
        self._adapters.check_integrity(count_adapters(alive), count_adapters(self._running))

    def _schedule_running(self, step: StepDraft) -> None:
        """One token for everybody who decodes, before any prompt takes what is left. Who gives way comes later."""
        prompts = []
        index = 0
        is_anybody_later = self._precedence.is_needed
        running = self._running.requests
        while index < len(running) and step.num_tokens_left > 0:
            request = running[index]
            num_tokens = num_schedulable_tokens(request)
            if is_anybody_later and num_tokens and self._precedence.gives_way(request):
                step.postponed.append(request)
            elif num_tokens == 1:
                if not self._schedule_token(step, request):
                    break
            elif num_tokens > 1:
                prompts.append(request)
            index += 1
        if self._speculation is not None:
            add_drafts(step, self._speculation, self._kv, self._pool)
        for request in prompts:
            if self._room.is_over_part(request.share):
                step.postponed.append(request)
            else:
                self._schedule_prompt(step, request)

    def _schedule_token(self, step: StepDraft, request: Request) -> bool:
        """False if there are no blocks for it: it was preempted."""
        new_block_ids = self._grow(request, request.num_computed_tokens + 1)
        if new_block_ids is None:
            return False
        self._compute(step, request, 1, new_block_ids)
        return True

    def _schedule_postponed(self, step: StepDraft) -> None:
        """Tokens of those who decode, as many as there is time for, and then prompts."""
        prompts = []
        for request in step.postponed:
            if request.status is not RequestStatus.RUNNING:
                continue
            if num_schedulable_tokens(request) > 1:
                prompts.append(request)
            elif step.num_tokens_left > 0 and self._room.has_time_for_token(request, step):
                self._schedule_token(step, request)
        for request in prompts:
            self._schedule_prompt(step, request)
        self._room.note_rest(step)
        step.postponed.clear()

    def _schedule_prompt(self, step: StepDraft, request: Request) -> None:
        """A long prompt leaves half of the step to a waiting request that has had less."""
        if request.status is not RequestStatus.RUNNING or step.num_tokens_left == 0:
            return
        num_tokens = min(step.num_tokens_for(request), self._room.num_prompt_tokens(request, step))
        first = self._waiting.first()
        if first is not None and first.share.is_ahead_of(request.share):
            num_tokens = min(num_tokens, max(step.num_tokens_left // 2, 1))
        if num_tokens > 0:
            self._room.note_prompt(request, num_tokens, step)
            self._compute(step, request, num_tokens, ())

    def _compute(self, step: StepDraft, request: Request, num_tokens: int, new_block_ids: tuple[int, ...]) -> None:
        request.share.charge(cost_of(request, num_tokens))
        step.schedule(request, num_tokens, new_block_ids)

    def _grow(self, request: Request, num_tokens: int) -> tuple[int, ...] | None:
        """Blocks for a running request, at the cost of the last in line; None if that is itself."""
        num_new_blocks = self._kv.num_new_blocks(request, num_tokens)
        if num_new_blocks == 0:
            return ()
        while not self._adapters.make_room(num_new_blocks):
            last = self._running.last
            self._preempt(last)
            if last is request:
                return None
        return self._kv.grow(request, num_tokens)

    def _preempt(self, request: Request) -> None:
        self._running.leave(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self._wait(request)
        self._num_preemptions += 1

    def _wait(self, request: Request) -> None:
        """Puts a new or preempted request into its line."""
        digest = request.spec.adapter_digest
        request.status = RequestStatus.PREEMPTED if request.num_preemptions else RequestStatus.WAITING
        self._waiting.add(request)
        if digest is not None and not self._adapters.is_usable(digest):
            request.status = RequestStatus.WAITING_FOR_ADAPTER
            self._park(digest)

    def _park(self, digest: str) -> None:
        for request in self._waiting.park(digest):
            request.status = RequestStatus.WAITING_FOR_ADAPTER

    def _unpark(self, digest: str) -> None:
        for request in self._waiting.unpark(digest):
            request.status = RequestStatus.PREEMPTED if request.num_preemptions else RequestStatus.WAITING

    def _park_displaced(self) -> None:
        """Adapters that had to give way in this step are to be brought again, if somebody waits for them."""
        for digest in self._adapters.take_displaced():
            self._park(digest)

    def _resume_held(self, step: StepDraft) -> None:
        for request in self._waiting.held:
            if not _waits_for_prompt(request, step):
                self._waiting.resume(request)

    def _admit(self, step: StepDraft) -> Request | None:
        """Lets waiting requests in, in the order of `WaitingRequests.first`. Returns the first that found no room for
        its tokens: everybody waits with it, so that it will.
        """
        while step.num_tokens_left > 0 and (request := self._waiting.first()) is not None:
            if len(self._running) >= self._config.max_num_seqs and not self._displace(step, request):
                return None
            digest = request.spec.adapter_digest
            if not self._has_place(step, request):
                return None
            if self._loading.closes_admission_to(request):
                if not self._loading.is_open_to_base:
                    return None
                self._waiting.set_aside((request.share,))
                continue
            if digest is not None and not self._adapters.is_usable(digest):
                self._park(digest)
            elif _waits_for_prompt(request, step):
                self._waiting.hold(request)
            else:
                request.share.serve()
                if not self._try_admit(step, request):
                    return request
        return None

    def _displace(self, step: StepDraft, request: Request) -> bool:
        """Whether somebody of lower priority, who is not in the step yet, left the batch for the request."""
        if step.is_rest or not len(self._running):
            return False
        last = self._running.last
        if not self._precedence.is_lower(last) or last.spec.priority <= request.spec.priority:
            return False
        self._preempt(last)
        return True

    def _has_place(self, step: StepDraft, request: Request) -> bool:
        if not step.is_rest and self._comes_later(step, request):
            return False
        return self._room.has_place(request, len(self._running)) and self._room.num_prompt_tokens(request, step) > 0

    def _comes_later(self, step: StepDraft, request: Request) -> bool:
        """Whether it is admitted, if at all, to the rest of the step."""
        return self._precedence.is_lower(request) or (bool(step.postponed) and self._room.is_over_part(request.share))

    def _try_admit(self, step: StepDraft, request: Request) -> bool:
        """Admits a request with blocks for all its known tokens, or leaves it as it was."""
        if request.num_inflight_samples > 0:
            return False  # preempted a moment ago: its newest tokens are not known yet
        if self._config.shape.encoder is not None and request.num_tokens > step.num_tokens_left:
            return False  # to be computed whole
        digest = request.spec.adapter_digest
        if digest is not None:
            request.adapter_content = self._adapters.content_digest(digest)
        self._kv.acquire_prefix(request)
        num_new_blocks = self._kv.num_new_blocks(request, request.num_known_tokens)
        num_spare_blocks = self._num_spare_blocks + self._room.num_reserved_blocks(request)
        while not self._adapters.make_room(num_new_blocks + num_spare_blocks, spared=digest):
            if not self._displace(step, request):
                self._kv.free(request)
                return False
        num_tokens = self._room.num_prompt_tokens(request, step)
        if self._config.shape.encoder is not None:
            num_tokens = request.num_tokens  # whole, in a step that has room for it
        self._waiting.remove(request)
        self._running.enter(request, self._now)
        self._room.note_newcomer(request)
        self._kv.grow(request, request.num_known_tokens)
        step.admit(request)
        num_tokens = min(step.num_tokens_for(request), num_tokens)
        self._room.note_prompt(request, num_tokens, step)
        self._compute(step, request, num_tokens, tuple(request.block_ids))
        self._kv.cache_full_blocks(request)  # for whoever is admitted after it, in this step already
        return True

    def _append(self, request: Request, token_ids: tuple[int, ...], logprobs: SampleLogprobs) -> TokenDelta:
        is_first = request.first_token is None
        if is_first:
            request.first_token = self._now
        num_drafted = request.num_inflight_drafts
        new = append(request, token_ids)
        if new.finish_reason is not None:
            self._finish(request, new.finish_reason)
        if self._speculation is not None:
            self._speculation.follow(request, num_drafted, len(new.token_ids))
        return TokenDelta(
            request_id=request.request_id,
            token_ids=new.token_ids,
            finish_reason=new.finish_reason,
            stop_token_id=new.stop_token_id,
            num_cached_tokens=request.num_cached_tokens,
            logprobs=logprobs.first(len(new.token_ids)),
            times=self._times(request) if is_first or request.is_finished else None,
        )

    def _finish_pooled(self, request: Request, vector: bytes) -> TokenDelta:
        request.num_inflight_samples -= 1
        request.first_token = self._now
        self._finish(request, FinishReason.STOP)
        return TokenDelta(
            request_id=request.request_id,
            token_ids=(),
            finish_reason=request.finish_reason,
            stop_token_id=None,
            num_cached_tokens=request.num_cached_tokens,
            times=self._times(request),
            pooled=vector,
        )

    def _apply_adapter_event(self, event: AdapterEvent) -> list[TokenDelta]:
        """A failed load ends the requests that wait for it; a later request tries again."""
        self._adapters.apply(event)
        if event.error is None:
            if event.kind is AdapterMoveKind.LOAD_DEVICE:
                self._unpark(event.digest)
            return []
        failed = self._waiting.of_adapter(event.digest)
        for request in failed:
            self._finish(request, FinishReason.ERROR)
        return [
            TokenDelta(r.request_id, (), r.finish_reason, None, r.num_cached_tokens, event.error, times=self._times(r))
            for r in failed
        ]

    def _times(self, request: Request) -> RequestTimes:
        return request.times(self._now if request.is_finished else None)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        if request.status is RequestStatus.RUNNING:
            self._running.leave(request)
        else:
            self._waiting.remove(request)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        self._kv.forget(request)
        if self._speculation is not None:
            self._speculation.forget(request.request_id)
        del self._requests[request.request_id]
        self._shares.leave(request.share)
        self._precedence.leave(request, self._now)
        if request.spec.adapter_digest is not None:
            self._adapters.drop_user(request.spec.adapter_digest)

    def _waits_for_load(self, request: Request) -> bool:
        digest = request.spec.adapter_digest
        return digest is not None and self._adapters.is_loading(digest)

    def _pool_tokens(self, adapter_digest: str | None) -> int:
        """How many tokens' KV the pool holds beside an adapter."""
        num_blocks = self._pool.num_blocks
        if adapter_digest is not None:
            if adapter_digest not in self._adapters:
                raise RequestRefused(f"no adapter with digest {adapter_digest} is registered")
            num_blocks -= self._adapters.num_blocks(adapter_digest)
        return num_blocks * self._config.user.block_size

    @property
    def _num_spare_blocks(self) -> int:
        return ceil(self._pool.num_blocks * SPARE_BLOCK_SHARE) if len(self._running) else 0


def _waits_for_prompt(request: Request, step: StepDraft) -> bool:
    """Whether the blocks that it will share with its request's first sample have not been computed yet."""
    first = request.first_sample
    if first is None or first.is_finished or request.wants_whole_prompt:
        return False
    return step.num_computed_before(first) < len(request.spec.prompt_token_ids)
