"""How much of a step and of the batch a request may take, by who else is there."""

from dataclasses import dataclass
from math import inf

from descant_engine.config import ResolvedConfig
from descant_engine.request import Request
from descant_engine.scheduler.precedence import Precedence
from descant_engine.scheduler.step_draft import StepDraft
from descant_engine.scheduler.step_times import StepTimes, StepWork

RESERVED_SHARE = 32
"""One of so many places and blocks is not for those who run more than their part, nor for lower priorities."""
PROMPT_SHARE = 10
"""One of so many tokens of a step is for the prompts of those who give way,"""
MIN_PROMPT_TOKENS = 512
"""or so many, where steps are small."""
DELAY_BY_SHARES = 0.35
"""By so much may the first tokens of others come later for those who run more than their part,"""
DELAY_BY_LOWER = 0.15
"""and for those of lower priorities."""
LEAST_TOKENS = 16
"""Of prompts, in a step that has nobody else of those who give way: they always get on."""
MAX_STEPS_LEFT_OUT = 4
"""In a row, of running requests whose shares give way: prompts of others may come in every step, without end."""
USUAL_PROMPT_WEIGHT = 0.05
"""Of the latest prompt in the mean of all."""


@dataclass(slots=True)
class _StepRoom:
    """Of the step that is being planned."""

    num_prompt_tokens: int = 0
    has_first_prompt: bool = False
    """Whether some of them belong to somebody who gives way to nobody."""
    num_first: int | None = None
    """Requests in it when everybody who goes first was; None before that."""
    limit_s: float = inf
    """How long it may take for shares beyond their part,"""
    limit_beside_lower_s: float = inf
    """and for lower priorities."""


class Room:
    """Bounds what who comes rarely, or goes first, has to wait for: a place, a block, and steps that others fill."""

    def __init__(self, config: ResolvedConfig, num_blocks: int, precedence: Precedence, times: StepTimes) -> None:
        self._num_places = config.max_num_seqs
        self._num_blocks = num_blocks
        self._max_prompt_tokens = max(config.max_num_batched_tokens // PROMPT_SHARE, MIN_PROMPT_TOKENS)
        self._precedence = precedence
        self._times = times
        self._usual_prompt = 0.0
        """Tokens that newcomers who go first had to compute, on average."""
        self._step = _StepRoom()
        self._num_steps_left_out = 0
        """The latest steps, of those with somebody who gives way, that had nothing of those who give way and run."""

    def begin_step(self) -> None:
        self._step = _StepRoom()

    @property
    def is_rest(self) -> bool:
        """Whether everybody who goes first is in the step, so that the rest of it is for those who give way."""
        return self._step.num_first is not None

    def has_place(self, request: Request, num_running: int) -> bool:
        """Whether the request may join `num_running` others."""
        num_places = self._num_places
        num_unreserved = num_places - num_places // RESERVED_SHARE
        if num_running >= num_unreserved and self._is_kept_out(request):
            num_places = num_unreserved
        return num_running < num_places

    def num_reserved_blocks(self, request: Request) -> int:
        """To be left free when the request comes in."""
        return self._num_blocks // RESERVED_SHARE if self._is_kept_out(request) else 0

    def open_rest(self, step: StepDraft) -> None:
        """Everybody who goes first is in the step: the rest is for those who give way."""
        self._step.num_first = len(step.scheduled)
        if (costs := self._times.costs) is None:
            return
        alone = costs.of(StepWork(1, 0))
        without = max(alone, costs.of(step.work))
        first = alone + costs.of(StepWork(1, max(0, round(self._usual_prompt) - 1)))
        self._step.limit_s = without + DELAY_BY_SHARES * first
        self._step.limit_beside_lower_s = without + DELAY_BY_LOWER * first

    def has_time_for_token(self, request: Request, step: StepDraft) -> bool:
        """For a request that gives way, whether one token of it may be in the step."""
        if self._is_left_out(request):
            return False
        if (costs := self._times.costs) is None or not self._has_rest(step):
            return True
        work = step.work
        return costs.of(StepWork(work.num_requests + 1, work.num_more_tokens)) <= self._limit_s(request)

    def num_prompt_tokens(self, request: Request, step: StepDraft) -> int:
        """How many of the step's tokens the request's prompt may take. Who gives way takes few, and none beside
        somebody who does not, whose first token would wait for them, for up to MAX_STEPS_LEFT_OUT steps.
        """
        if not self._precedence.gives_way(request):
            return step.num_tokens_left
        if self._is_left_out(request):
            return 0
        num_tokens = min(self._max_prompt_tokens - self._step.num_prompt_tokens, step.num_tokens_left)
        return max(min(num_tokens, self._num_tokens_in_time(request, step)), 0)

    def note_prompt(self, request: Request, num_tokens: int) -> None:
        """So many tokens of the request's prompt are put into the step."""
        self._step.num_prompt_tokens += num_tokens
        if not self._precedence.gives_way(request):
            self._step.has_first_prompt = True

    def note_rest(self, step: StepDraft) -> None:
        """Everybody who gives way and runs has had what there is for him."""
        is_left_out = bool(step.postponed) and not self._has_rest(step)
        self._num_steps_left_out = self._num_steps_left_out + 1 if is_left_out else 0

    def note_newcomer(self, request: Request) -> None:
        """A request is admitted, with what the prefix cache had of it."""
        if request.num_preemptions == 0 and not self._precedence.gives_way(request):
            num_tokens = request.num_tokens - request.num_computed_tokens
            self._usual_prompt += USUAL_PROMPT_WEIGHT * (num_tokens - self._usual_prompt)

    def _has_rest(self, step: StepDraft) -> bool:
        """Whether somebody who gives way is in the step."""
        return self._step.num_first is not None and len(step.scheduled) > self._step.num_first

    def _is_left_out(self, request: Request) -> bool:
        """Whether somebody's first token would wait for the request's. Lower priorities may be left out for good."""
        if not self._step.has_first_prompt:
            return False
        return self._num_steps_left_out < MAX_STEPS_LEFT_OUT or self._precedence.is_lower(request)

    def _is_kept_out(self, request: Request) -> bool:
        return self._precedence.is_lower(request) or request.share.is_over_part(self._num_places)

    def _num_tokens_in_time(self, request: Request, step: StepDraft) -> int:
        if (costs := self._times.costs) is None:
            return step.num_tokens_left
        work = step.work
        one_more = costs.of(StepWork(work.num_requests + 1, max(work.num_more_tokens, 1)))
        num_tokens = 1 + (self._limit_s(request) - one_more) / max(costs.more_token, 1e-9)
        least = 0 if self._has_rest(step) else LEAST_TOKENS
        return max(int(min(num_tokens, step.num_tokens_left)), least)

    def _limit_s(self, request: Request) -> float:
        return self._step.limit_beside_lower_s if self._precedence.is_lower(request) else self._step.limit_s
