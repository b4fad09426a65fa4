"""Prompt look-up against the plain definition: of the places that end alike, what follows at the two that agree
furthest."""

import random
import time

import pytest

from descant_engine.request import EngineRequest, Request
from descant_engine.sampling_params import SamplingParams
from descant_engine.speculation.config import SpeculativeConfig, SpeculativeMethod
from descant_engine.speculation.ngram import MAX_PLACES, MAX_TOKENS_AT_ONCE, NgramProposer, SuffixIndex


def by_definition(tokens: list[int], min_match: int, max_match: int, num_tokens: int) -> tuple[int, ...]:
    """Every earlier place is compared; none is forgotten."""

    def agreement(place: int) -> int:
        longest = min(max_match, place + 1)
        return next((n for n in range(longest) if tokens[place - n] != tokens[-1 - n]), longest)

    places = [place for place in range(len(tokens) - 1) if agreement(place) >= min_match]
    # The latest among those whose last `min_match` tokens agree, as far back as an index looks.
    candidates = places[::-1][:MAX_PLACES]
    if not candidates:
        return ()
    found = []
    for place in sorted(candidates, key=lambda place: (agreement(place), place))[-2:]:
        following = tokens[place + 1 :]
        found.append(tuple(following[index % len(following)] for index in range(num_tokens)))
    alike = next((n for n in range(num_tokens) if found[0][n] != found[-1][n]), num_tokens)
    return found[-1][:alike]


@pytest.mark.parametrize(("min_match", "max_match"), [(1, 1), (1, 4), (2, 3), (3, 8)])
def test_it_finds_what_the_definition_does(min_match, max_match):
    rng = random.Random(min_match * 10 + max_match)
    index = SuffixIndex(min_match, max_match)
    tokens: list[int] = []
    num_found = 0
    for place in range(400):
        tokens.append(rng.randrange(4) if place % 40 < 10 else tokens[place - 20])
        index.extend(tokens[-1:])
        found = index.continuation(7)
        assert found == by_definition(tokens, min_match, max_match, 7)
        num_found += bool(found)
    assert 90 < num_found < 400


def test_the_longest_agreements_win_over_the_latest():
    index = SuffixIndex(2, 8)
    index.extend([1, 2, 3, 4, 50, 1, 2, 3, 4, 50, 9, 3, 4, 60, 1, 2, 3, 4])
    assert index.continuation(1) == (50,)


def test_it_ends_where_what_is_alike_ends():
    index = SuffixIndex(2, 8)
    index.extend([1, 2, 3, 70, 4, 5, 1, 2, 3, 80, 4, 5, 1, 2])
    assert index.continuation(8) == (3,)
    index.extend([3])
    assert index.continuation(8) == ()
    index.extend([90, 4, 5])
    assert index.continuation(8) == (1, 2, 3)


def test_a_text_that_repeats_itself_is_taken_to_go_on():
    index = SuffixIndex(2, 8)
    index.extend([7, 8, 9] * 3)
    assert index.continuation(8) == (7, 8, 9, 7, 8, 9, 7, 8)


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3, 4]])
def test_nothing_repeated_gives_nothing(tokens):
    index = SuffixIndex(2, 8)
    index.extend(tokens)
    assert index.continuation(4) == ()


def make_request(prompt: list[int]) -> Request:
    spec = EngineRequest(request_id="a", prompt_token_ids=tuple(prompt), params=SamplingParams())
    return Request(spec=spec, max_tokens=100, seed=0)


def make_proposer() -> NgramProposer:
    return NgramProposer(SpeculativeConfig(method=SpeculativeMethod.NGRAM))


def test_the_proposer_follows_a_request():
    proposer, request = make_proposer(), make_request([5, 6, 7, 8])
    assert proposer.propose(request, 4).num_tokens == 0
    request.output_token_ids += [5, 6]
    assert proposer.propose(request, 4).token_ids == (7, 8, 5, 6)
    request.output_token_ids += [7, 8, 1]
    assert proposer.propose(request, 4).num_tokens == 0
    proposer.forget("a")
    assert proposer.propose(make_request([1, 2, 1, 2]), 2).token_ids == (1, 2)


def test_a_long_prompt_is_taken_in_over_several_steps():
    rng = random.Random(0)
    prompt = [rng.randrange(50_000) for _ in range(5 * MAX_TOKENS_AT_ONCE)]
    proposer, request = make_proposer(), make_request([*prompt, *prompt[:3]])
    num_steps = 1
    while not proposer.propose(request, 4).num_tokens:
        num_steps += 1
        assert num_steps < 10
    assert num_steps == 6
    assert proposer.propose(request, 4).token_ids == tuple(prompt[3:7])


@pytest.mark.slow
def test_a_look_up_costs_the_same_in_any_text():
    """CPU time of this thread, so that neighbours do not count; the longer text is 64 times as long."""

    def seconds(length: int) -> float:
        rng = random.Random(1)
        index = SuffixIndex(2, 16)
        index.extend(rng.randrange(30) for _ in range(length))
        began = time.thread_time()
        for token in range(2000):
            index.extend([token % 30])
            index.continuation(8)
        return time.thread_time() - began

    assert min(seconds(1 << 16) for _ in range(3)) < 4 * min(seconds(1 << 10) for _ in range(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": SpeculativeMethod.DRAFT_MODEL}, "draft_model"),
        ({"method": SpeculativeMethod.NGRAM, "model": "m"}, "'m'"),
        ({"method": SpeculativeMethod.NGRAM, "num_speculative_tokens": 0}, "num_speculative_tokens"),
        ({"method": SpeculativeMethod.NGRAM, "num_speculative_tokens": 65}, "65"),
        ({"method": SpeculativeMethod.NGRAM, "prompt_lookup_min": 5, "prompt_lookup_max": 4}, "prompt_lookup_min"),
        ({"method": SpeculativeMethod.NGRAM, "prompt_lookup_min": 0}, "prompt_lookup_min"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpeculativeConfig(**options)
