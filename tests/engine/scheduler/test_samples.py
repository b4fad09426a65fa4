"""Several samples of one prompt: it is computed once, and its blocks are held by all of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from descant_engine.request import EngineRequest, samples_of
from descant_engine.sampling_params import SamplingParams

EngineOf = Callable[..., Any]
BLOCK_SIZE = 4


def add_samples(engine: Any, request_id: str, prompt: range, n: int, **params: Any) -> list[EngineRequest]:
    params = {"max_tokens": 6, "ignore_eos": True} | params
    request = EngineRequest(
        request_id=request_id, prompt_token_ids=tuple(prompt), params=SamplingParams(n=n, **params), tenant_salt="salt"
    )
    specs = samples_of(request)
    for spec in specs:
        engine.scheduler.add(spec)
        engine.outputs[spec.request_id] = []
    return list(specs)


@pytest.mark.parametrize("steps_ahead", [0, 1])
@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_a_prompt_is_computed_once_but_for_its_last_block(
    engine_of: EngineOf, steps_ahead: int, enable_prefix_caching: bool
) -> None:
    engine = engine_of(60, steps_ahead=steps_ahead, enable_prefix_caching=enable_prefix_caching)
    specs = add_samples(engine, "r", range(22), 4)
    engine.run()
    for spec in specs:
        engine.check_output(spec)
    # 22 tokens are five full blocks and two tokens; each sample has six outputs, of which the last is not computed.
    assert engine.runner.num_tokens == 22 + 3 * 2 + 4 * 5
    engine.check_is_idle()


def test_a_prompt_that_ends_with_a_block_leaves_one_block_to_each_sample(engine_of: EngineOf) -> None:
    engine = engine_of(60, enable_prefix_caching=False)
    add_samples(engine, "r", range(20), 3, max_tokens=2)
    engine.run()
    # The last token has to be computed for its logits, and its block begins with token 16.
    assert engine.runner.num_tokens == 20 + 2 * 4 + 3


def test_samples_hold_the_same_blocks(engine_of: EngineOf) -> None:
    engine = engine_of(60, enable_prefix_caching=False)
    add_samples(engine, "r", range(20), 8, max_tokens=3)
    engine.step()
    engine.step()
    # Four shared blocks; beside them, what was recomputed and the outputs: two blocks each.
    assert engine.scheduler.stats().block_usage * 60 <= 4 + 8 * 2
    engine.run()
    engine.check_is_idle()


def test_others_do_not_wait_for_a_prompt_that_is_not_theirs(engine_of: EngineOf) -> None:
    engine = engine_of(60, max_num_batched_tokens=8)
    add_samples(engine, "r", range(20), 2)
    other = engine.add("other", [1, 2, 3], max_tokens=2, ignore_eos=True)
    plans = [engine.step() for _ in range(3)]
    assert [{part.request_id for part in plan.scheduled} for plan in plans[:2]] == [{"r"}, {"r"}]
    assert {part.request_id for part in plans[2].scheduled} == {"r", "other"}
    engine.run()
    engine.check_output(other)


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_samples_survive_the_end_of_the_first(engine_of: EngineOf, enable_prefix_caching: bool) -> None:
    engine = engine_of(60, max_num_batched_tokens=8, enable_prefix_caching=enable_prefix_caching)
    first, *others = add_samples(engine, "r", range(20), 3)
    engine.step()
    engine.scheduler.abort(first.request_id)
    engine.run()
    for spec in others:
        engine.check_output(spec)
    engine.check_is_idle()


def test_preempted_samples_come_to_the_same(engine_of: EngineOf) -> None:
    for steps_ahead in (0, 1):
        engine = engine_of(11, steps_ahead=steps_ahead, enable_prefix_caching=False)
        specs = add_samples(engine, "r", range(10), 4, max_tokens=18)
        engine.run()
        for spec in specs:
            engine.check_output(spec)
        assert engine.scheduler.stats().num_preemptions > 0
        engine.check_is_idle()


def test_another_prompt_shares_nothing(engine_of: EngineOf) -> None:
    """Whatever a request says it is a sample of."""
    engine = engine_of(60, enable_prefix_caching=False)
    first, second = add_samples(engine, "r", range(20), 2)
    for change in ({"prompt_token_ids": tuple(range(1, 21))}, {"tenant_salt": "other"}):
        spec = replace(second, request_id=f"with {change}", **change)
        engine.scheduler.add(spec)
        engine.outputs[spec.request_id] = []
        engine.step()
        engine.step()
        parts = [part for plan in engine.plans for part in plan.scheduled if part.request_id == spec.request_id]
        assert parts[0].num_computed_tokens == 0
    engine.run()
    engine.check_output(first)


def test_seeds_follow_from_the_requests() -> None:
    request = EngineRequest(
        request_id="r", prompt_token_ids=(1,), params=SamplingParams(n=3, seed=7, prompt_logprobs=1)
    )
    first, second, third = samples_of(request)
    assert first.params.seed == 7
    assert len({sample.params.seed for sample in (first, second, third)}) == 3
    assert [sample.params.prompt_logprobs for sample in (first, second, third)] == [1, None, None]
    assert [sample.sample_of for sample in (first, second, third)] == [None, "r", "r"]
    unseeded = samples_of(replace(request, params=SamplingParams(n=2)))
    assert [sample.params.seed for sample in unseeded] == [None, None]
