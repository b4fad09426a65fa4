"""Decides which requests of a step get drafts and how many tokens, by what that was worth so far.

Two numbers rule it: how often a request's drafts are right, and how long steps take with drafts and without. Where
drafts do not pay none are made, but for a rare one that may show that it would pay again.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from descant_engine.request import Request
from descant_engine.scheduler.plan import StepPlan
from descant_engine.scheduler.stats import DraftStats
from descant_engine.speculation.acceptance import SHARED_MEMORY_TOKENS, AcceptanceRate
from descant_engine.speculation.draft_costs import DraftCosts, StepKind, guessed_ratio, size_class
from descant_engine.speculation.draft_lengths import Candidate, Choice, StepSeconds, choose_lengths, within
from descant_engine.speculation.proposal import NO_PROPOSAL, Proposal, Proposer
from descant_engine.speculation.stake import Stake
from descant_engine.speculation.step_clock import StepClock

FIRST_RATE = 0.5
"""Of the first request; those after it begin with what the ones before had."""
MAX_REQUESTS = 64
"""Larger batches compute more than they wait for memory: drafts would cost what they give, and the host its time."""
PROBE_SHARE = 0.02
"""Of the time of plain steps, so much may go into finding out whether drafts pay again."""
PROBE_STEPS = 3
PROBE_COST = 3.0
"""What a step of them is taken to cost, in plain steps, before it is known."""
PROBE_RATE = 0.7
"""How good a draft model's guesses may have become while nobody looked."""
STEPS_BETWEEN_PAUSES = 128
PAUSE_STEPS = 3
"""After so many steps with drafts come so many without, to measure those: their cost changes with the contexts. More
than one, for steps that are planned ahead cost less."""
NO_CANDIDATE = Candidate(0.0, 0)


@dataclass(slots=True)
class _Counts:
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_by_place: list[int] = field(default_factory=list)

    def count(self, num_drafted: int, num_accepted: int) -> None:
        self.num_drafts += 1
        self.num_draft_tokens += num_drafted
        self.num_accepted_tokens += num_accepted
        self.accepted_by_place += [0] * (num_accepted - len(self.accepted_by_place))
        for place in range(num_accepted):
            self.accepted_by_place[place] += 1


@dataclass(slots=True)
class _Followed:
    """A request with output."""

    rate: AcceptanceRate
    proposal: Proposal = NO_PROPOSAL
    num_known_tokens: int = 0
    """When the proposal was made; it is for no other."""


class Speculation:
    """Of one engine. The scheduler calls it, in the order of its steps.

    Args:
        max_tokens: most tokens of one draft.
        adaptive: False drafts as much as it can, paying or not.
    """

    def __init__(self, proposer: Proposer, max_tokens: int, *, adaptive: bool = True) -> None:
        self._counts = _Counts()
        self._proposer = proposer
        self._max_tokens = max_tokens
        self._is_adaptive = adaptive
        self._followed: dict[str, _Followed] = {}
        self._shared = AcceptanceRate(FIRST_RATE, SHARED_MEMORY_TOKENS)
        self._costs = DraftCosts()
        self._clock = StepClock(self._costs)
        self._stake = Stake()
        self._num_staking = 0
        """Requests of the step whose result is being applied, if its drafts were staked."""
        self._drafting: frozenset[str] = frozenset()
        """Who got drafts in the last step."""
        self._num_steps_on = 0
        self._num_steps_off = 0
        self._probe_seconds = 0.0
        """Saved up; below zero after a probe that took longer."""
        self._probe_step_id = -1
        """The last step that was for finding out."""
        self._num_probes_left = 0
        self._is_probing = False
        """Whether the lengths last chosen are for finding out."""

    # Before a step

    def wants_results(self, running: Iterable[Request]) -> bool:
        """Whether the next step should wait for the results of those before it: only then can anybody get a draft."""
        if self._is_pausing:
            return False
        decoding = [request for request in running if request.output_token_ids]
        return bool(self._drafting) or any(self._lengths(decoding, len(decoding) * self._max_tokens))

    def drafts(self, requests: Sequence[Request], max_tokens: int) -> list[Proposal]:
        """For each of `requests`, of which the step computes one token: what it should check beside it. No more than
        `max_tokens` in all."""
        if self._is_pausing or any(request.num_inflight_samples > 1 for request in requests):
            return [NO_PROPOSAL] * len(requests)
        lengths = self._lengths(requests, max_tokens)
        return [self._proposal(r).first(n) if n else NO_PROPOSAL for r, n in zip(requests, lengths, strict=True)]

    def launched(self, plan: StepPlan, now: float) -> None:
        """The plan is made, with some of the drafts or none."""
        if not plan.scheduled:
            self._clock.stop()
            return
        drafting = frozenset(part.request_id for part in plan.scheduled if part.num_draft_tokens)
        self._clock.launch(plan.step_id, self._kind(plan, drafting), now)
        self._drafting = drafting
        self._count_step(plan.step_id, bool(drafting))

    # After a step

    def arrived(self, plan: StepPlan, now: float) -> None:
        """The plan's result is there."""
        seconds = self._clock.arrive(plan.step_id, now)
        self._num_staking = 0
        if seconds is None:
            return
        has_drafts = any(part.num_draft_tokens for part in plan.scheduled)
        if plan.step_id == self._probe_step_id:
            self._probe_seconds -= seconds
        elif has_drafts:
            if self._is_adaptive:
                self._settle(plan)
        else:
            self._probe_seconds += PROBE_SHARE * seconds
            self._stake.save()

    def follow(self, request: Request, num_drafted: int, num_new: int) -> None:
        """`num_new` tokens of the request became known, from a step with `num_drafted` draft tokens."""
        if num_drafted:
            self._counts.count(num_drafted, num_new - 1)
            if self._num_staking:
                self._stake.won(num_new - 1, self._num_staking)
        if request.is_finished:
            return
        followed = self._followed.get(request.request_id)
        if followed is None:
            followed = self._followed[request.request_id] = _Followed(AcceptanceRate(self._shared.rate))
            self._stake.share_with_newcomer()
        if num_drafted:
            self._observe(followed, num_new - 1, has_wrong=num_new <= num_drafted)
        elif followed.proposal.token_ids and followed.num_known_tokens == request.num_known_tokens - 1:
            # What nobody checked is known by now: a proposal costs nothing to judge.
            is_right = followed.proposal.token_ids[0] == request.output_token_ids[-1]
            self._observe(followed, int(is_right), has_wrong=not is_right)
        if len(self._followed) <= MAX_REQUESTS and request.spec.params.grammar is None:
            followed.proposal = self._proposer.propose(request, self._max_tokens)
            followed.num_known_tokens = request.num_known_tokens

    def forget(self, request_id: str) -> None:
        """The request is over. Unknown ids are ignored."""
        self._followed.pop(request_id, None)
        self._proposer.forget(request_id)

    def counts(self) -> DraftStats:
        counts = self._counts
        return DraftStats(
            num_drafts=counts.num_drafts,
            num_draft_tokens=counts.num_draft_tokens,
            num_accepted_tokens=counts.num_accepted_tokens,
            num_accepted_by_place=tuple(counts.accepted_by_place),
        )

    # What pays

    def _lengths(self, requests: Sequence[Request], max_tokens: int) -> Sequence[int]:
        """How many tokens to draft for each of the requests that a step decodes."""
        self._is_probing = False
        nothing = [0] * len(requests)
        if not requests or len(requests) > MAX_REQUESTS:
            return nothing
        candidates = [self._candidate(request) for request in requests]
        if not self._is_adaptive:
            return within(max_tokens, [candidate.max_tokens for candidate in candidates])
        plain_seconds = self._costs.plain(len(requests))
        if plain_seconds is None or not any(candidate.max_tokens for candidate in candidates):
            return nothing
        choice = self._choice(candidates, max_tokens, plain_seconds)
        if not any(choice.lengths) and self._may_probe(plain_seconds):
            choice = self._probe(candidates, self._most_drafts(len(requests), max_tokens, PROBE_COST * plain_seconds))
            self._is_probing = any(choice.lengths)
        return choice.lengths

    def _choice(self, candidates: Sequence[Candidate], max_tokens: int, plain_seconds: float) -> Choice:
        """What pays most, of what the stake pays for."""
        num_requests = len(candidates)
        seconds = self._seconds_with_drafts(num_requests)
        choice = choose_lengths(candidates, max_tokens, plain_seconds, seconds)
        num_drafts, most_seconds = sum(choice.lengths), self._stake.pays_for(plain_seconds)
        if not num_drafts or self._at_most(num_requests, num_drafts, max(choice.lengths)) <= most_seconds:
            return choice
        affordable = self._most_drafts(num_requests, num_drafts, most_seconds)
        return choose_lengths(candidates, affordable, plain_seconds, seconds)

    def _seconds_with_drafts(self, num_requests: int) -> StepSeconds:
        def seconds(num_tokens: int, longest: int) -> float:
            return self._costs.with_drafts(num_tokens, num_requests, self._num_drafting_steps(longest))

        return seconds

    def _most_drafts(self, num_requests: int, max_tokens: int, most_seconds: float) -> int:
        """How many tokens a step may check beside those of the requests and surely take no longer."""

        def is_too_long(num_drafts: int) -> bool:
            longest = min(-(-num_drafts // num_requests), self._max_tokens)
            return self._at_most(num_requests, num_drafts, longest) > most_seconds

        return bisect_left(range(1, max_tokens + 1), True, key=is_too_long)

    def _at_most(self, num_requests: int, num_drafts: int, longest: int) -> float:
        return self._costs.at_most(num_requests + num_drafts, self._num_drafting_steps(longest))

    def _may_probe(self, plain_seconds: float) -> bool:
        return self._num_probes_left > 0 or self._probe_seconds >= PROBE_STEPS * PROBE_COST * plain_seconds

    def _probe(self, candidates: Sequence[Candidate], max_tokens: int) -> Choice:
        """As if nothing had been measured."""
        if self._proposer.makes_work:
            candidates = [candidate._replace(rate=max(candidate.rate, PROBE_RATE)) for candidate in candidates]
        return choose_lengths(candidates, max_tokens, 1.0, lambda tokens, _: guessed_ratio(tokens, len(candidates)))

    def _candidate(self, request: Request) -> Candidate:
        followed = self._followed.get(request.request_id)
        if followed is None:
            return NO_CANDIDATE
        num_left = request.max_tokens - len(request.output_token_ids) - 1
        return Candidate(followed.rate.rate, max(min(self._proposal(request).num_tokens, num_left), 0))

    def _proposal(self, request: Request) -> Proposal:
        followed = self._followed[request.request_id]
        return followed.proposal if followed.num_known_tokens == request.num_known_tokens else NO_PROPOSAL

    @property
    def _is_pausing(self) -> bool:
        return self._is_adaptive and self._num_steps_on >= STEPS_BETWEEN_PAUSES

    # Bookkeeping

    def _settle(self, plan: StepPlan) -> None:
        """By what such steps take, not by what this one took: what disturbs a step is no fault of drafts."""
        num_requests = len(plan.scheduled)
        plain_seconds = self._costs.plain(num_requests)
        if plain_seconds is None:
            return
        longest = max(part.num_draft_tokens for part in plan.scheduled)
        self._stake.took(self._at_most(num_requests, plan.num_tokens - num_requests, longest), plain_seconds)
        self._num_staking = num_requests

    def _kind(self, plan: StepPlan, drafting: frozenset[str]) -> StepKind | None:
        """None for steps that compute prompts, and for those in which the draft model has to catch up first."""
        if any(not part.samples or part.num_scheduled_tokens > 1 + part.num_draft_tokens for part in plan.scheduled):
            return None
        if self._proposer.makes_work and not drafting <= self._drafting:
            return None
        longest = max(part.num_draft_tokens for part in plan.scheduled)
        return StepKind(self._num_drafting_steps(longest), bool(drafting), size_class(plan.num_tokens))

    def _num_drafting_steps(self, longest: int) -> int:
        return longest if self._proposer.makes_work else 0

    def _observe(self, followed: _Followed, num_right: int, *, has_wrong: bool) -> None:
        followed.rate.observe(num_right, has_wrong)
        self._shared.observe(num_right, has_wrong)

    def _count_step(self, step_id: int, has_drafts: bool) -> None:
        if not has_drafts:
            self._num_steps_off += 1
            if self._num_steps_off >= PAUSE_STEPS:
                self._num_steps_on = 0
            return
        self._num_steps_on += 1
        self._num_steps_off = 0
        if self._is_probing:
            self._num_probes_left = (self._num_probes_left or PROBE_STEPS) - 1
            self._probe_seconds = min(self._probe_seconds, 0.0)
            self._probe_step_id = step_id
