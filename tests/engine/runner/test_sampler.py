"""The sampler against plain definitions of each option, and its promise that a draw depends on its own request only."""

import pytest
import torch

from descant_engine.runner.request_states import RequestStates
from descant_engine.runner.sampler import Sampler
from descant_engine.runner.sampling_states import SampleRows
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.plan import AdmittedRequest, StepPlan

VOCAB = 50


def admit(request_id: str, tokens: list[int], num_prompt: int, *, seed: int = 0, stop: tuple[int, ...] = (), **options):
    return AdmittedRequest(request_id, tuple(tokens), num_prompt, SamplingParams(**options), seed, stop, -1)


def sample(requests: list[AdmittedRequest], logits: torch.Tensor) -> list[int]:
    """One sample for each request, in the given order, in one batch."""
    states = RequestStates(8, 64, 16, logits.device)
    sampler = Sampler(logits.device)
    states.apply(StepPlan(0, (), (), tuple(requests), ()))
    for request in requests:
        sampler.add(states.row(request.request_id), request)
    rows = [states.row(r.request_id) for r in requests]
    return sampler.sample(logits.clone(), batch_of(rows, [len(r.token_ids) for r in requests], states)).tolist()


def batch_of(rows: list[int], lengths: list[int], states: RequestStates) -> SampleRows:
    device = states.device
    return SampleRows(
        tuple(rows), tuple(lengths), torch.tensor(rows, device=device), torch.tensor(lengths, device=device), states
    )


def draws(logits: torch.Tensor, num_draws: int = 400, **options) -> list[int]:
    """Tokens drawn at `num_draws` different positions of one request."""
    states = RequestStates(1, 4, 16, logits.device)
    sampler = Sampler(logits.device)
    request = admit("a", [1], 1, seed=7, **options)
    states.apply(StepPlan(0, (), (), (request,), ()))
    sampler.add(0, request)
    return [
        sampler.sample(logits[None].clone(), batch_of([0], [position], states)).item()
        for position in range(1, num_draws + 1)
    ]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def logits(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(0)).to(request.param) * 2


def test_greedy_takes_the_largest(logits):
    assert sample([admit("a", [1, 2], 2, temperature=0.0)], logits[None]) == [logits.argmax().item()]


def test_frequencies_follow_the_softmax(logits):
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2], device=logits.device))
    counts = torch.bincount(torch.tensor(draws(logits, 4000)), minlength=3) / 4000
    assert torch.allclose(counts, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


def test_temperature_sharpens():
    logits = torch.log(torch.tensor([0.6, 0.4]))
    share = draws(logits, 2000, temperature=0.5).count(0) / 2000
    assert share == pytest.approx(0.36 / (0.36 + 0.16), abs=0.04)


def test_top_k_keeps_the_k_likeliest(logits):
    assert set(draws(logits, top_k=3)) <= set(logits.topk(3).indices.tolist())
    assert set(draws(logits, top_k=1)) == {logits.argmax().item()}


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9])
def test_top_p_keeps_the_nucleus(logits, top_p):
    probabilities, order = logits.softmax(0).sort(descending=True)
    size = int((probabilities.cumsum(0) < top_p).sum()) + 1
    assert set(draws(logits, top_p=top_p)) <= set(order[:size].tolist())


def test_top_p_reaches_beyond_its_fast_prefix():
    flat = torch.zeros(5000)
    flat[:100] = 0.01
    assert max(draws(flat, 50, top_p=0.999)) >= 1024


def test_min_p_is_relative_to_the_likeliest(logits):
    allowed = (logits.softmax(0) >= 0.2 * logits.softmax(0).max()).nonzero().flatten().tolist()
    assert set(draws(logits, min_p=0.2)) <= set(allowed)


def test_repetition_penalty_covers_prompt_and_output(logits):
    logits = torch.tensor([[2.0, 1.9, -1.0, 1.8]], device=logits.device)
    request = admit("a", [0, 1], 1, temperature=0.0, repetition_penalty=1.5)
    assert sample([request], logits) == [3]


def test_presence_and_frequency_cover_the_output_only(logits):
    logits = torch.tensor([[2.0, 1.9, 1.0, 1.0]], device=logits.device)
    in_prompt = admit("a", [0, 0], 2, temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0)
    assert sample([in_prompt], logits) == [0]
    in_output = admit("a", [3, 0], 1, temperature=0.0, presence_penalty=0.5)
    assert sample([in_output], logits) == [1]
    once = admit("a", [3, 0], 1, temperature=0.0, frequency_penalty=0.06)
    twice = admit("a", [3, 0, 0], 1, temperature=0.0, frequency_penalty=0.06)
    assert (sample([once], logits), sample([twice], logits)) == ([0], [1])


def test_min_tokens_masks_every_stop_token(logits):
    logits = torch.tensor([[9.0, 8.0, 1.0]], device=logits.device)
    early = admit("a", [2, 2], 1, temperature=0.0, min_tokens=2, stop=(0, 1))
    late = admit("a", [2, 2, 2], 1, temperature=0.0, min_tokens=2, stop=(0, 1))
    assert sample([early], logits) == [2]
    assert sample([late], logits) == [0]


def test_a_draw_does_not_depend_on_the_batch(logits):
    mine = admit("a", [1, 2, 3], 3, seed=42, temperature=0.9, top_p=0.95)
    others = [
        admit("b", [4], 1, seed=42),
        admit("c", [5, 5], 2, temperature=0.0),
        admit("d", [6], 1, seed=3, presence_penalty=1.0),
    ]
    alone = sample([mine], logits[None])
    stacked = torch.stack([torch.randn_like(logits), logits, torch.randn_like(logits), torch.randn_like(logits)])
    assert sample([others[0], mine, *others[1:]], stacked)[1] == alone[0]


def test_rows_are_reused_without_leaking_options(logits):
    states = RequestStates(1, 64, 16, logits.device)
    sampler = Sampler(logits.device)
    first = admit("a", [1], 1, top_k=1, repetition_penalty=2.0, min_tokens=3, stop=(4,))
    second = admit("b", [1], 1, temperature=0.0, stop=(4,))
    for plan, request in [((), first), (("a",), second)]:
        states.apply(StepPlan(0, (), tuple(plan), (request,), ()))
        sampler.add(0, request)
    assert sampler.sample(logits[None].clone(), batch_of([0], [1], states)).item() == logits.argmax().item()


def greedy(logits: torch.Tensor, tokens: list[int], num_prompt: int, **options) -> int:
    (token,) = sample([admit("a", tokens, num_prompt, temperature=0.0, **options)], logits[None])
    return token


def test_logit_bias_adds_to_single_tokens(logits):
    best, second = logits.topk(2).indices.tolist()
    assert greedy(logits, [1], 1, logit_bias={best: -100.0}) == second
    assert greedy(logits, [1], 1, logit_bias={7: 100.0}) == 7
    assert greedy(logits, [1], 1, logit_bias={best: -100.0, second: -100.0, 3: 99.0}) == 3


def test_allowed_tokens_forbid_all_others(logits):
    allowed = logits.topk(10, largest=False).indices.tolist()
    assert greedy(logits, [1], 1, allowed_token_ids=tuple(allowed)) == max(allowed, key=lambda token: logits[token])
    assert set(draws(logits, allowed_token_ids=tuple(allowed), temperature=2.0)) <= set(allowed)


def test_a_bad_sequence_is_broken_before_its_last_token(logits):
    best, second = logits.topk(2).indices.tolist()
    assert greedy(logits, [1], 1, bad_token_sequences=((best,),)) == second
    begun = {"bad_token_sequences": ((4, 5, best), (9, 9, 9, 9, 9, 9, 9, 9), (5, best), (3,))}
    assert greedy(logits, [1, 4, 5], 1, **begun) == second
    assert greedy(logits, [1, 5], 1, **begun) == second
    assert greedy(logits, [1, 6], 1, **begun) == best
    # What the prompt says is nobody's output.
    assert greedy(logits, [1, 4, 5], 3, **begun) == best
    assert greedy(logits, [4, 5, 6], 2, bad_token_sequences=((5, 6, best),)) == best


def test_rows_of_every_kind_share_a_batch(logits):
    """Each row gets what it gets alone, whoever is beside it and in whatever order."""
    torch.manual_seed(1)
    requests = [
        admit("greedy", [1], 1, temperature=0.0),
        admit("hot", [1, 2], 2, seed=1, temperature=2.0),
        admit("nucleus", [3], 1, seed=2, top_p=0.5),
        admit("few", [3, 3], 1, seed=3, top_k=4, temperature=0.7),
        admit("min-p", [3], 1, seed=4, min_p=0.1, top_p=0.99, top_k=20),
        admit("biased", [2, 2, 9], 1, seed=5, logit_bias={3: 5.0, 4: -5.0}, frequency_penalty=1.0),
        admit("allowed", [2], 1, seed=6, allowed_token_ids=(1, 2, 3)),
        admit("bad", [2, 7], 1, seed=7, bad_token_sequences=((7, 8), (1,)), min_tokens=5, stop=(0,)),
    ]
    rows = torch.randn(len(requests), VOCAB).to(logits.device) * 2
    alone = [sample([request], row[None])[0] for request, row in zip(requests, rows, strict=True)]
    order = [5, 2, 7, 0, 6, 1, 4, 3]
    together = sample([requests[i] for i in order], rows[order])
    assert together == [alone[i] for i in order]


def test_a_mask_wins_over_every_feature(logits):
    states = RequestStates(1, 4, 16, logits.device)
    sampler = Sampler(logits.device)
    request = admit("a", [1], 1, temperature=0.0, logit_bias={7: 100.0})
    states.apply(StepPlan(0, (), (), (request,), ()))
    sampler.add(0, request)

    def only_token_3(scores: torch.Tensor) -> None:
        kept = scores[:, 3].clone()
        scores.fill_(-torch.inf)
        scores[:, 3] = kept

    assert sampler.sample(logits[None].clone(), batch_of([0], [1], states), only_token_3).item() == 3


def test_a_row_of_nan_stays_inside_the_vocabulary(logits):
    requests = [admit("a", [1], 1, seed=3), admit("b", [1], 1, seed=3)]
    rows = torch.stack([torch.full_like(logits, torch.nan), logits])
    broken, healthy = sample(requests, rows)
    assert 0 <= broken < VOCAB
    assert healthy == sample(requests[:1], logits[None])[0]


def test_an_impossible_token_is_never_drawn(logits):
    logits = torch.full_like(logits, -torch.inf)
    logits[[3, 40]] = 0.0
    assert set(draws(logits, 300)) == {3, 40}
