"""When drafts are made, and how long: a batch of foretold outputs, in simulated time that drafts save or cost."""

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from descant_engine.request import EngineRequest, Request, RequestStatus
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.plan import ScheduledRequest, StepPlan
from descant_engine.speculation.config import SpeculativeConfig, SpeculativeMethod
from descant_engine.speculation.ngram import NgramProposer
from descant_engine.speculation.proposal import ModelProposer, Proposal
from descant_engine.speculation.speculation import Speculation

StepSeconds = Callable[[int], float]
"""Tokens of a step -> seconds."""
ROOM = 512


def waits_for_memory(num_tokens: int) -> float:
    """As a small batch does: sixteen tokens take less than twice as long as one."""
    return 0.02 + 0.001 * num_tokens


def computes(num_tokens: int) -> float:
    """As a large batch does: twice the tokens, twice the time."""
    return 0.02 * num_tokens


CPU_STEPS = ((1, 0.034), (8, 0.043), (16, 0.066), (32, 0.096), (64, 0.178), (128, 0.335), (4096, 10.3))
"""docs/results/speculative.md: tokens and seconds; the last, for prompts, as those before it go on."""


def as_on_a_cpu(num_tokens: int) -> float:
    """Waits for memory up to eight tokens, and computes beyond."""
    (fewer, less), (more, longer) = next(pair for pair in pairwise(CPU_STEPS) if num_tokens <= pair[1][0])
    return less + (longer - less) * (num_tokens - fewer) / (more - fewer)


class Batch:
    """What scheduler and runner do with one batch after another; counts its seconds, and those without drafts."""

    def __init__(self, speculation: Speculation, seconds: StepSeconds, noise: float = 0.0) -> None:
        self.speculation = speculation
        self.seconds = seconds
        self.draft_seconds = 0.0
        """Of the draft model, for each token."""
        self.num_drafted = 0
        self.lengths: list[int] = []
        """The longest draft of each step."""
        self._rng = random.Random(3)
        self._noise = noise
        self._now = 0.0
        self._num_steps = 0
        self._num_requests = 0

    def gain(self, texts: Sequence[tuple[list[int], list[int]]]) -> float:
        """Runs requests of these prompts and outputs to their ends. Returns seconds without drafts, over those with."""
        requests = [self._request(prompt, output) for prompt, output in texts]
        longest = max(len(output) for _, output in texts)
        plain = sum(self.seconds(sum(len(output) > place for _, output in texts)) for place in range(1, longest))
        spent = 0.0
        self._run_prompts(requests, texts)
        running = list(zip(requests, (output for _, output in texts), strict=True))
        while running := [(request, output) for request, output in running if not request.is_finished]:
            spent += self._step(running)
        return plain / spent

    def _request(self, prompt: list[int], output: list[int]) -> Request:
        self._num_requests += 1
        spec = EngineRequest(
            request_id=str(self._num_requests), prompt_token_ids=tuple(prompt), params=SamplingParams()
        )
        return Request(spec=spec, max_tokens=len(output), seed=0, status=RequestStatus.RUNNING)

    def _run_prompts(self, requests: Sequence[Request], texts: Sequence[tuple[list[int], list[int]]]) -> None:
        parts = [ScheduledRequest(r.request_id, 0, r.num_known_tokens, (), True) for r in requests]
        self._pass(parts, self.seconds(sum(r.num_known_tokens for r in requests)))
        for request, (_, output) in zip(requests, texts, strict=True):
            request.output_token_ids.append(output[0])
            self.speculation.follow(request, 0, 1)

    def _step(self, running: Sequence[tuple[Request, list[int]]]) -> float:
        """Returns how long it takes when nothing disturbs it."""
        proposals = self.speculation.drafts([request for request, _ in running], ROOM)
        parts = [
            ScheduledRequest(r.request_id, r.num_known_tokens - 1, 1 + p.num_tokens, (), True, p.num_tokens)
            for (r, _), p in zip(running, proposals, strict=True)
        ]
        longest = max(proposal.num_tokens for proposal in proposals)
        seconds = self.seconds(sum(part.num_scheduled_tokens for part in parts)) + longest * self.draft_seconds
        self._pass(parts, seconds)
        self.lengths.append(longest)
        for (request, output), proposal in zip(running, proposals, strict=True):
            self._follow(request, output, proposal)
        return seconds

    def _pass(self, parts: Sequence[ScheduledRequest], seconds: float) -> None:
        self._num_steps += 1
        plan = StepPlan(self._num_steps, (), (), (), tuple(parts))
        self.speculation.launched(plan, self._now)
        self._now += seconds * (1 + self._rng.random() ** 4 * self._noise)
        self.speculation.arrived(plan, self._now)

    def _follow(self, request: Request, output: list[int], proposal: Proposal) -> None:
        rest = output[len(request.output_token_ids) :]
        right = 0
        # A draft model's tokens are not known here: foretold outputs say by 0 where it is wrong.
        drafts = proposal.token_ids or [token or -1 for token in rest[: proposal.num_tokens]]
        while right < min(len(drafts), len(rest) - 1) and drafts[right] == rest[right]:
            right += 1
        self.num_drafted += proposal.num_tokens
        request.output_token_ids += rest[: right + 1]
        if len(request.output_token_ids) == len(output):
            request.status = RequestStatus.FINISHED
            self.speculation.forget(request.request_id)
        self.speculation.follow(request, proposal.num_tokens, right + 1)


def by_ngrams(max_tokens: int = 15) -> Speculation:
    return Speculation(NgramProposer(SpeculativeConfig(method=SpeculativeMethod.NGRAM)), max_tokens)


def by_model() -> Speculation:
    return Speculation(ModelProposer(), 5)


def repeating(seed: int, length: int = 120) -> tuple[list[int], list[int]]:
    """An output that is the prompt again and again, but for every twentieth token."""
    rng = random.Random(seed)
    phrase = [rng.randrange(1, 5000) for _ in range(40)]
    output = [phrase[place % 40] if place % 20 else rng.randrange(1, 5000) for place in range(length)]
    return phrase, output


def ordinary(seed: int, length: int = 120) -> tuple[list[int], list[int]]:
    """Any two tokens have stood before in this order, and what follows them is anything."""
    rng = random.Random(seed)
    text = [rng.randrange(1, 7) for _ in range(80 + length)]
    return text[:80], text[80:]


def breaking_off(seed: int, length: int = 96) -> tuple[list[int], list[int]]:
    """An output that looks like the prompt again, but for every third token: the longer a draft, the less of it."""
    rng = random.Random(seed)
    phrase = [rng.randrange(1, 5000) for _ in range(60)]
    return phrase * 2, [phrase[place % 60] if place % 3 else rng.randrange(1, 5000) for place in range(length)]


def drafted_by_model(share_right: float, seed: int, length: int = 200) -> tuple[list[int], list[int]]:
    rng = random.Random(seed)
    return [1] * 8, [int(rng.random() < share_right) for _ in range(length)]


@pytest.mark.parametrize("noise", [0.0, 3.0])
@pytest.mark.parametrize("at_once", [1, 4])
def test_texts_that_repeat_themselves_gain(noise, at_once):
    batch = Batch(by_ngrams(), waits_for_memory, noise)
    batch.gain([repeating(0)])
    assert batch.gain([repeating(1 + seed) for seed in range(at_once)]) > 2


@pytest.mark.parametrize("noise", [0.0, 3.0])
@pytest.mark.parametrize("at_once", [1, 8])
@pytest.mark.parametrize("seconds", [waits_for_memory, computes])
def test_others_lose_nothing(noise, at_once, seconds):
    batch = Batch(by_ngrams(), seconds, noise)
    gains = [batch.gain([ordinary(10 * run + seed) for seed in range(at_once)]) for run in range(12)]
    assert len(gains) / sum(1 / gain for gain in gains) > 0.98
    assert min(gains[2:]) > 0.9, "a single one loses what it takes to find out, at most"
    assert batch.num_drafted > 0 or at_once > 1


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("num_earlier", [0, 1, 4])
@pytest.mark.parametrize("text", [ordinary, breaking_off])
def test_finding_out_what_eight_at_once_cost_takes_three_percent_at_most(text, num_earlier, noise):
    """Of a new engine's first eight, also where texts before them were nearly always right."""
    batch = Batch(by_ngrams(), as_on_a_cpu, noise)
    if num_earlier:
        batch.gain([repeating(seed) for seed in range(num_earlier)])
    assert batch.gain([text(100 + seed, 96) for seed in range(8)]) > 0.97


def test_the_first_text_that_repeats_itself_gains():
    assert Batch(by_ngrams(), as_on_a_cpu).gain([repeating(0)]) > 2.5
    assert Batch(by_ngrams(), as_on_a_cpu).gain([repeating(seed) for seed in range(4)]) > 1.2


def test_where_every_token_costs_the_same_nobody_drafts_for_long():
    """However right drafts are: 2 % of the time, for finding out, is the most."""
    batch = Batch(by_ngrams(), computes)
    gains = [batch.gain([repeating(seed)]) for seed in range(25)][1:]
    assert len(gains) / sum(1 / gain for gain in gains) > 0.97
    assert sum(map(bool, batch.lengths[len(batch.lengths) // 2 :])) < 0.05 * len(batch.lengths)


def test_it_goes_on_where_a_text_begins_to_repeat_itself():
    (prompt, first), (phrase, later) = ordinary(1, 100), repeating(2, 160)
    batch = Batch(by_ngrams(), waits_for_memory)
    batch.gain([ordinary(3)])
    assert batch.gain([(prompt, first + phrase + later)]) > 1.3
    assert batch.gain([(phrase, later[:60] + first)]) > 1.1


def test_lengths_follow_what_is_right():
    batch = Batch(by_model(), waits_for_memory)
    batch.draft_seconds = 0.001
    batch.gain([drafted_by_model(0.95, 0), drafted_by_model(0.95, 1)])
    long = batch.lengths[-20:]
    batch.gain([drafted_by_model(0.55, 2), drafted_by_model(0.55, 3)])
    short = [length for length in batch.lengths[-60:] if length]
    assert max(long) == 5
    assert sum(short) / len(short) < 4 <= sum(long) / len(long)


@pytest.mark.parametrize(("share_right", "least"), [(0.9, 1.5), (0.5, 0.97), (0.05, 0.97)])
def test_a_draft_model_that_is_seldom_right_is_left_alone(share_right, least):
    batch = Batch(by_model(), waits_for_memory, noise=1.0)
    batch.draft_seconds = 0.004
    gains = [batch.gain([drafted_by_model(share_right, seed)]) for seed in range(8)]
    assert min(gains[2:]) > least


def test_a_draft_model_comes_back_when_it_is_right_again():
    batch = Batch(by_model(), waits_for_memory)
    batch.draft_seconds = 0.002
    for seed in range(4):
        batch.gain([drafted_by_model(0.0, seed)])
    assert batch.lengths[-1] == 0
    gains = [batch.gain([drafted_by_model(0.95, seed, 400)]) for seed in range(4)]
    assert gains[-1] > 1.5


def test_results_are_waited_for_only_where_there_is_something_to_draft():
    """Elsewhere plans go ahead of results, as they do without speculation."""
    speculation = by_ngrams()
    batch = Batch(speculation, waits_for_memory)
    batch.gain([repeating(0)])
    idle, busy = (batch._request(prompt, [7] * 100) for prompt in ([1, 2, 3], [4, 5, 6] * 4))
    for request, token in ((idle, 9), (busy, 4)):
        request.output_token_ids.append(token)
        speculation.follow(request, 0, 1)
    batch._pass([ScheduledRequest(idle.request_id, 3, 1, (), True)], 0.02)
    assert not speculation.wants_results([idle])
    assert speculation.wants_results([busy])
