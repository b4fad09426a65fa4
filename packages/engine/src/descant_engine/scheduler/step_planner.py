"""Fills one step: who gets how many of its tokens, in which blocks; see `scheduler` for the one rule."""

from math import ceil

from descant_engine.cache.caches import Caches
from descant_engine.config import ResolvedConfig
from descant_engine.request import Request, RequestStatus
from descant_engine.scheduler.adapter_loading import AdapterLoading
from descant_engine.scheduler.drafts import add_drafts
from descant_engine.scheduler.precedence import Precedence
from descant_engine.scheduler.room import Room
from descant_engine.scheduler.shares import charge
from descant_engine.scheduler.step_draft import StepDraft, num_schedulable_tokens
from descant_engine.scheduler.unfinished import UnfinishedRequests
from descant_engine.speculation.speculation import Speculation

SPARE_BLOCK_SHARE = 0.01
"""Kept free for the growth of running requests when something new comes in, so that it is not preempted at once."""


class StepPlanner:
    """Decides only: statuses change in `UnfinishedRequests`, blocks and adapters are the caches'."""

    def __init__(
        self,
        config: ResolvedConfig,
        unfinished: UnfinishedRequests,
        caches: Caches,
        precedence: Precedence,
        room: Room,
        speculation: Speculation | None,
    ) -> None:
        self._max_num_seqs = config.max_num_seqs
        self._is_encoder = config.shape.encoder is not None
        self._unfinished = unfinished
        self._waiting = unfinished.waiting
        self._running = unfinished.running
        self._pool, self._kv, self._adapters = caches
        self._precedence = precedence
        self._room = room
        self._speculation = speculation
        self._loading = AdapterLoading(caches.adapters, unfinished.waiting)

    def fill(self, step: StepDraft) -> None:
        """Puts into an empty step all that it has room for, and starts what adapters need."""
        self._room.begin_step()
        self._waiting.set_aside(self._precedence.shares)
        self._schedule_running(step)
        self._resume_held(step)
        blocked = self._admit(step)
        self._waiting.put_back()
        if self._precedence.is_needed:
            self._room.open_rest(step)
            self._schedule_postponed(step)
            blocked = blocked or self._admit(step)
            self._waiting.put_back()
        self._park_displaced()
        self._loading.bring(step, blocked, self._num_spare_blocks)

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
            self._schedule_prompt(step, request)

    def _schedule_token(self, step: StepDraft, request: Request) -> bool:
        """False if there are no blocks for it: it was preempted."""
        new_block_ids = self._grow(step, request, request.num_computed_tokens + 1)
        if new_block_ids is None:
            return False
        self._compute(step, request, 1, new_block_ids)
        return True

    def _schedule_postponed(self, step: StepDraft) -> None:
        """Tokens of those who decode, as many as there is time for, and then prompts."""
        prompts = []
        for request in step.postponed:
            if request.status is not RequestStatus.RUNNING or step.has(request):
                continue  # preempted since, and perhaps admitted again
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
        if request.status is not RequestStatus.RUNNING or step.has(request) or step.num_tokens_left == 0:
            return
        num_tokens = min(step.num_tokens_for(request), self._room.num_prompt_tokens(request, step))
        first = self._waiting.first()
        if first is not None and first.share.is_ahead_of(request.share):
            num_tokens = min(num_tokens, max(step.num_tokens_left // 2, 1))
        if num_tokens > 0:
            self._room.note_prompt(request, num_tokens)
            self._compute(step, request, num_tokens, ())

    def _compute(self, step: StepDraft, request: Request, num_tokens: int, new_block_ids: tuple[int, ...]) -> None:
        charge(request, num_tokens)
        step.schedule(request, num_tokens, new_block_ids)

    def _grow(self, step: StepDraft, request: Request, num_tokens: int) -> tuple[int, ...] | None:
        """Blocks for a running request, at the cost of the last in line; None if that is itself."""
        num_new_blocks = self._kv.num_new_blocks(request, num_tokens)
        if num_new_blocks == 0:
            return ()
        while not self._adapters.make_room(num_new_blocks):
            last = self._last_in_line(step)
            self._unfinished.preempt(last)
            if last is request:
                return None
        return self._kv.grow(request, num_tokens)

    def _last_in_line(self, step: StepDraft) -> Request:
        """Who has to give up his blocks: the last of those who give way, or else the last of all. Nobody who is in the
        step: its plan holds his blocks, and who gives way is planned after others who came later."""
        outside = [request for request in reversed(self._running.requests) if not step.has(request)]
        return next(filter(self._precedence.gives_way, outside), outside[0])

    def _park_displaced(self) -> None:
        """Adapters that had to give way in this step are to be brought again, if somebody waits for them."""
        for digest in self._adapters.take_displaced():
            self._unfinished.park(digest)

    def _resume_held(self, step: StepDraft) -> None:
        for request in self._waiting.held:
            if not _waits_for_prompt(request, step):
                self._waiting.resume(request)

    def _admit(self, step: StepDraft) -> Request | None:
        """Lets waiting requests in, in the order of `WaitingRequests.first`. Returns the first that found no room for
        its tokens: everybody waits with it, so that it will.
        """
        while step.num_tokens_left > 0 and (request := self._waiting.first()) is not None:
            if len(self._running) >= self._max_num_seqs and not self._displace(step, request):
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
                self._unfinished.park(digest)
            elif _waits_for_prompt(request, step):
                self._waiting.hold(request)
            else:
                request.share.serve()
                if not self._try_admit(step, request):
                    return request
        return None

    def _displace(self, step: StepDraft, request: Request) -> bool:
        """Whether somebody of lower priority, who is not in the step yet, left the batch for the request."""
        if self._room.is_rest or not len(self._running):
            return False
        last = self._running.last
        if not self._precedence.is_lower(last) or last.spec.priority <= request.spec.priority:
            return False
        self._unfinished.preempt(last)
        return True

    def _has_place(self, step: StepDraft, request: Request) -> bool:
        if self._precedence.is_lower(request) and not self._room.is_rest:
            return False
        return self._room.has_place(request, len(self._running)) and self._room.num_prompt_tokens(request, step) > 0

    def _try_admit(self, step: StepDraft, request: Request) -> bool:
        """Admits a request with blocks for all its known tokens, or leaves it as it was."""
        if request.num_inflight_samples > 0:
            return False  # preempted a moment ago: its newest tokens are not known yet
        if self._is_encoder and request.num_tokens > step.num_tokens_left:
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
        if self._is_encoder:
            num_tokens = request.num_tokens  # whole, in a step that has room for it
        self._unfinished.admit(request, step.begun)
        self._room.note_newcomer(request)
        self._kv.grow(request, request.num_known_tokens)
        step.admit(request)
        num_tokens = min(step.num_tokens_for(request), num_tokens)
        self._room.note_prompt(request, num_tokens)
        self._compute(step, request, num_tokens, tuple(request.block_ids))
        self._kv.cache_full_blocks(request)  # for whoever is admitted after it, in this step already
        return True

    @property
    def _num_spare_blocks(self) -> int:
        return ceil(self._pool.num_blocks * SPARE_BLOCK_SHARE) if len(self._running) else 0


def _waits_for_prompt(request: Request, step: StepDraft) -> bool:
    """Whether the blocks that it will share with its request's first sample have not been computed yet."""
    first = request.first_sample
    if first is None or first.is_finished or request.wants_whole_prompt:
        return False
    return step.num_computed_before(first) < len(request.spec.prompt_token_ids)
