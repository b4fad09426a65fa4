"""The plan while it is being made."""

from dataclasses import dataclass, field

from descant_engine.request import Request
from descant_engine.scheduler.plan import AdapterMove, AdmittedRequest, ScheduledRequest, StepPlan
from descant_engine.scheduler.queue import order
from descant_engine.scheduler.step_times import StepWork
from descant_engine.speculation.proposal import Proposal


@dataclass(slots=True)
class StepDraft:
    """Counts down the token budget, and keeps which requests were meant: ids may be reused, requests may not."""

    num_tokens_left: int
    begun: float
    """On the scheduler's clock."""
    admitted: list[AdmittedRequest] = field(default_factory=list)
    scheduled: list[ScheduledRequest] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    """Those in `scheduled`."""
    last_admitted: Request | None = None
    """Of those admitted, who came last."""
    num_tokens: int = 0
    """In it so far."""
    postponed: list[Request] = field(default_factory=list)
    """Running requests that give way, in the order of arrival: planned after whoever is admitted, who may have come
    after them."""
    completing: dict[str, Request] = field(default_factory=dict)
    """Those whose last known token this step computes: it samples their next one, or gives their vector."""
    _scheduled_ids: set[str] = field(default_factory=set)

    @property
    def work(self) -> StepWork:
        return StepWork(len(self.scheduled), self.num_tokens - len(self.scheduled))

    def has(self, request: Request) -> bool:
        """Whether the request computes something in this step."""
        return request.request_id in self._scheduled_ids

    def num_tokens_for(self, request: Request) -> int:
        """How many of the request's tokens the step has room for."""
        return min(num_schedulable_tokens(request), self.num_tokens_left)

    def num_computed_before(self, request: Request) -> int:
        """How many of the request's tokens earlier steps have computed."""
        in_this_step = (part.num_computed_tokens for part in self.scheduled if part.request_id == request.request_id)
        return next(in_this_step, request.num_computed_tokens)

    def admits_later_than(self, request: Request) -> bool:
        """Whether somebody who came after the request is admitted in this step."""
        return self.last_admitted is not None and order(request) < order(self.last_admitted)

    def admit(self, request: Request) -> None:
        """Describes the request to the runner in full."""
        if self.last_admitted is None or order(self.last_admitted) < order(request):
            self.last_admitted = request
        self.admitted.append(
            AdmittedRequest(
                request_id=request.request_id,
                token_ids=tuple(request.known_token_ids()),
                num_prompt_tokens=len(request.spec.prompt_token_ids),
                params=request.spec.params,
                seed=request.seed,
                stop_token_ids=request.stop_token_ids,
                adapter_slot=request.adapter_slot,
                pooling=request.spec.pooling,
            )
        )

    def schedule(self, request: Request, num_tokens: int, new_block_ids: tuple[int, ...]) -> None:
        """Puts the next `num_tokens` of the request into the step, and counts them as computed from now on."""
        first = request.num_computed_tokens
        completes = request.compute(num_tokens)
        samples = completes and request.spec.pooling is None
        self.scheduled.append(ScheduledRequest(request.request_id, first, num_tokens, new_block_ids, samples))
        self.requests.append(request)
        self._scheduled_ids.add(request.request_id)
        self.num_tokens_left -= num_tokens
        self.num_tokens += num_tokens
        if completes:
            self.completing[request.request_id] = request

    def add_drafts(self, index: int, proposal: Proposal, new_block_ids: tuple[int, ...]) -> None:
        """Lets the request scheduled at `index`, which samples, check a proposal beside its newest token."""
        part = self.scheduled[index]
        self.scheduled[index] = part._replace(
            num_scheduled_tokens=part.num_scheduled_tokens + proposal.num_tokens,
            new_block_ids=part.new_block_ids + new_block_ids,
            num_draft_tokens=proposal.num_tokens,
            draft_token_ids=proposal.token_ids,
        )
        self.requests[index].check_drafts(proposal.num_tokens)
        self.num_tokens_left -= proposal.num_tokens
        self.num_tokens += proposal.num_tokens

    def finish(self, step_id: int, adapter_moves: tuple[AdapterMove, ...], removed: tuple[str, ...]) -> StepPlan:
        return StepPlan(step_id, adapter_moves, removed, tuple(self.admitted), tuple(self.scheduled))


def num_schedulable_tokens(request: Request) -> int:
    """Known tokens, and one on its way, that are not computed; none once the last output token is on its way, or while
    drafts are checked."""
    if request.num_inflight_drafts:
        return 0
    if len(request.output_token_ids) + request.num_inflight_samples >= request.max_tokens:
        return 0
    return request.num_tokens - request.num_computed_tokens
