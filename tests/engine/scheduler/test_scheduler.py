"""Each rule of the scheduler by itself; `test_scheduler_properties` has them all at once."""

from collections.abc import Callable
from typing import Any

import pytest

from descant_engine.cache.adapter_cache import AdapterTier
from descant_engine.request import FinishReason, RequestTimes, TokenDelta
from descant_engine.scheduler.adapter_loading import LONG_PATIENCE_STEPS
from descant_engine.scheduler.adapter_loading import PATIENCE_STEPS as ADAPTER_PATIENCE_STEPS
from descant_engine.scheduler.admission import QueueFull, RequestRefused
from descant_engine.scheduler.plan import AdapterMoveKind, StepPlan, StepResult

EngineOf = Callable[..., Any]
EOS = 2


def _scheduled(plan: StepPlan) -> dict[str, int]:
    return {request.request_id: request.num_scheduled_tokens for request in plan.scheduled}


@pytest.mark.parametrize("steps_ahead", [0, 1, 2])
def test_outputs_are_the_same_whatever_is_beside_them(engine_of: EngineOf, steps_ahead: int) -> None:
    engine = engine_of(40, steps_ahead=steps_ahead)
    specs = [engine.add(f"r{i}", range(3, 8 + i), max_tokens=20, ignore_eos=i % 2 == 0) for i in range(9)]
    engine.run()
    for spec in specs:
        engine.check_output(spec)
    engine.check_is_idle()


def test_a_long_prompt_is_cut_into_chunks_and_samples_once_it_is_whole(engine_of: EngineOf) -> None:
    engine = engine_of(40, max_num_batched_tokens=8)
    engine.add("r", range(20), max_tokens=2, ignore_eos=True)
    plans = [engine.step() for _ in range(4)]
    assert [_scheduled(plan) for plan in plans] == [{"r": 8}, {"r": 8}, {"r": 4}, {"r": 1}]
    assert [plan.scheduled[0].samples for plan in plans] == [False, False, True, True]


def test_running_requests_go_before_a_new_prompt_which_gets_the_rest_of_the_budget(engine_of: EngineOf) -> None:
    engine = engine_of(40, max_num_batched_tokens=8)
    engine.add("old", range(4), max_tokens=9, ignore_eos=True)
    engine.step()
    engine.add("new", range(30, 42), max_tokens=2, ignore_eos=True)
    assert [_scheduled(engine.step()) for _ in range(3)] == [
        {"old": 1, "new": 7},
        {"old": 1, "new": 5},
        {"old": 1, "new": 1},
    ]


def test_no_more_than_max_num_seqs_run(engine_of: EngineOf) -> None:
    engine = engine_of(40, max_num_seqs=2)
    for i in range(3):
        engine.add(f"r{i}", [3, 4], max_tokens=3, ignore_eos=True)
    assert _scheduled(engine.step()).keys() == {"r0", "r1"}
    engine.run()
    assert engine.finished.keys() == {"r0", "r1", "r2"}


def test_priority_then_arrival_decides_who_is_first(engine_of: EngineOf) -> None:
    engine = engine_of(40, max_num_seqs=1)
    for request_id, priority in (("later", 1), ("second", 0), ("third", 0), ("first", -1)):
        engine.add(request_id, [3, 4], max_tokens=1, priority=priority)
    engine.run()
    assert list(engine.finished) == ["first", "second", "third", "later"]


# --- asynchrony


def _result(plan: StepPlan, **tokens: int) -> StepResult:
    sampled = tuple((s.request_id, tokens[s.request_id]) for s in plan.scheduled if s.samples)
    return StepResult(plan.step_id, sampled)


def test_a_step_is_planned_before_the_token_it_starts_from_is_known(engine_of: EngineOf) -> None:
    engine = engine_of(40, steps_ahead=1)
    engine.add("r", [3, 4], max_tokens=3, ignore_eos=True)
    first, second = engine.scheduler.schedule(), engine.scheduler.schedule()
    assert second.scheduled[0][:3] == ("r", 2, 1)
    assert second.scheduled[0].samples
    assert not second.admitted
    assert first.step_id < second.step_id


def test_nothing_is_planned_beyond_max_tokens(engine_of: EngineOf) -> None:
    engine = engine_of(40, steps_ahead=3)
    engine.add("r", [3, 4], max_tokens=2, ignore_eos=True)
    assert [len(engine.scheduler.schedule().scheduled) for _ in range(4)] == [1, 1, 0, 0]


@pytest.mark.parametrize("steps_ahead", [1, 2])
def test_samples_after_the_end_are_ignored_and_the_request_ends_once(engine_of: EngineOf, steps_ahead: int) -> None:
    scheduler = (engine := engine_of(40, steps_ahead=steps_ahead)).scheduler
    engine.add("r", [3, 4], max_tokens=20)
    plans = [scheduler.schedule() for _ in range(steps_ahead + 1)]
    deltas = [delta for plan in plans for delta in scheduler.update(plan, _result(plan, r=EOS))]
    assert [delta._replace(times=None) for delta in deltas] == [TokenDelta("r", (EOS,), FinishReason.STOP, EOS, 0)]
    assert scheduler.schedule().removed == ("r",)
    scheduler.check_integrity()


def test_a_late_sample_never_reaches_a_new_request_of_the_same_id(engine_of: EngineOf) -> None:
    engine = engine_of(40, steps_ahead=1)
    engine.add("r", [3, 4], max_tokens=20, ignore_eos=True)
    engine.step()
    late = engine.launched[0]
    engine.scheduler.abort("r")
    spec = engine.add("r", [5, 6], max_tokens=5, ignore_eos=True)
    engine.step()
    assert engine.launched[0] is not late
    engine.run()
    engine.check_output(spec)


def test_a_sample_of_a_preempted_request_still_counts(engine_of: EngineOf) -> None:
    engine = engine_of(6, steps_ahead=1)
    specs = [engine.add(f"r{i}", [3, 4, 5 + i], max_tokens=16, ignore_eos=True) for i in range(2)]
    engine.run()
    assert engine.scheduler.stats().num_preemptions > 0
    for spec in specs:
        engine.check_output(spec)


def test_a_preempted_request_may_end_with_the_sample_on_its_way(engine_of: EngineOf) -> None:
    engine = engine_of(5, steps_ahead=1, max_num_batched_tokens=32)
    engine.add("old", range(3, 10), max_tokens=9, ignore_eos=True)
    engine.add("young", range(13, 20), max_tokens=9)
    before, plan = engine.scheduler.schedule(), engine.scheduler.schedule()
    while "young" not in plan.removed:
        engine.scheduler.update(before, _result(before, old=5, young=5))
        before, plan = plan, engine.scheduler.schedule()
    assert _scheduled(plan) == {"old": 1}
    deltas = engine.scheduler.update(before, _result(before, old=5, young=EOS))
    assert [(delta.request_id, delta.finish_reason) for delta in deltas] == [
        ("old", None),
        ("young", FinishReason.STOP),
    ]
    engine.scheduler.check_integrity()
    assert engine.scheduler.stats().num_waiting == 0
    assert not engine.scheduler.schedule().admitted


def test_a_preempted_request_is_not_resumed_before_its_newest_token_is_known(engine_of: EngineOf) -> None:
    engine = engine_of(5, steps_ahead=2, max_num_batched_tokens=32)
    engine.add("old", range(3, 10), max_tokens=9, ignore_eos=True)
    young = engine.add("young", range(13, 20), max_tokens=9, ignore_eos=True)
    while "young" not in engine.step().removed:
        pass
    engine.scheduler.abort("old")
    assert not engine.step().admitted
    engine.run()
    engine.check_output(young)


def test_aborting_frees_the_blocks_at_once(engine_of: EngineOf) -> None:
    engine = engine_of(8, steps_ahead=1, enable_prefix_caching=False)
    engine.add("running", range(3, 12), max_tokens=5)
    engine.step()
    engine.add("waiting", range(30), max_tokens=2)
    assert engine.scheduler.stats().block_usage == 3 / 8
    for request_id in ("running", "waiting", "running", "never-heard-of"):
        engine.scheduler.abort(request_id)
        engine.scheduler.check_integrity()
    assert engine.scheduler.stats().block_usage == 0
    assert not engine.scheduler.has_unfinished_requests
    engine.run()
    assert engine.outputs == {"running": [], "waiting": []}


# --- the end of a request


def test_stop_tokens_count_only_from_min_tokens_on(engine_of: EngineOf) -> None:
    engine = engine_of(40)
    every_token = tuple(range(23))
    specs = [
        engine.add("at-once", [3], max_tokens=9, stop_token_ids=every_token),
        engine.add("fourth", [4], max_tokens=9, min_tokens=4, stop_token_ids=every_token),
        engine.add("never", [5], max_tokens=9, ignore_eos=True),
    ]
    engine.run()
    assert [len(engine.outputs[spec.request_id]) for spec in specs] == [1, 4, 9]
    for spec in specs:
        engine.check_output(spec)


def test_the_context_ends_a_request_of_no_given_length(engine_of: EngineOf) -> None:
    engine = engine_of(40, max_model_len=24)
    spec = engine.add("r", range(3, 10), ignore_eos=True)
    engine.run()
    assert len(engine.outputs["r"]) == 24 - 7
    engine.check_output(spec)


def test_a_small_pool_ends_a_request_of_no_given_length(engine_of: EngineOf) -> None:
    engine = engine_of(3)
    engine.add("r", range(3, 10), ignore_eos=True)
    engine.run()
    assert len(engine.outputs["r"]) == 3 * 4 + 1 - 7
    assert engine.finished["r"].finish_reason is FinishReason.LENGTH


def test_times_come_with_the_first_token_and_the_end(engine_of: EngineOf) -> None:
    engine = engine_of(40, max_num_seqs=1)
    ticks = iter(range(1, 1000))
    engine.scheduler = type(engine.scheduler)(engine.config, 40, 0, clock=lambda: next(ticks))
    engine.add("first", [3, 4], max_tokens=3, ignore_eos=True)
    engine.add("second", [3, 4], max_tokens=1, ignore_eos=True)
    deltas = [delta for _ in range(4) for delta in _update(engine.scheduler)]
    assert [(delta.request_id, delta.times) for delta in deltas] == [
        ("first", RequestTimes(arrived=2, scheduled=4, first_token=5)),
        ("first", None),
        ("first", RequestTimes(arrived=2, scheduled=4, first_token=5, finished=9)),
        ("second", RequestTimes(arrived=3, scheduled=10, first_token=11, finished=11)),
    ]


def _update(scheduler: Any) -> list[TokenDelta]:
    plan = scheduler.schedule()
    return list(scheduler.update(plan, _result(plan, **dict.fromkeys(("first", "second"), 5))))


# --- what is refused


@pytest.mark.parametrize(
    ("prompt", "params", "named"),
    [
        ([], {}, "empty"),
        (range(64), {"max_tokens": 1}, "64 tokens, but the context holds 64"),
        (range(41), {}, "41 prompt tokens and 1 output tokens can never fit.*40 tokens"),
        (range(30), {"max_tokens": 12}, "30 prompt tokens and 12 output tokens can never fit.*40 tokens"),
    ],
)
def test_what_can_never_fit_is_refused_with_the_numbers(
    engine_of: EngineOf, prompt: Any, params: dict[str, Any], named: str
) -> None:
    engine = engine_of(10)
    with pytest.raises(RequestRefused, match=named):
        engine.add("r", prompt, **params)
    assert not engine.scheduler.has_unfinished_requests
    engine.scheduler.check_integrity()


@pytest.mark.parametrize(("num_prompt_tokens", "max_tokens"), [(30, 11), (40, 1)])
def test_what_just_fits_is_served(engine_of: EngineOf, num_prompt_tokens: int, max_tokens: int) -> None:
    engine = engine_of(10)
    spec = engine.add("r", range(num_prompt_tokens), max_tokens=max_tokens, ignore_eos=True)
    engine.run()
    engine.check_output(spec)


def test_a_full_queue_and_a_doubled_id_are_refused(engine_of: EngineOf) -> None:
    engine = engine_of(10, max_num_queued_requests=2)
    engine.add("a", [3])
    with pytest.raises(RequestRefused, match="'a' is under way"):
        engine.add("a", [3])
    engine.add("b", [3])
    with pytest.raises(QueueFull, match="max_num_queued_requests=2"):
        engine.add("c", [3])
    engine.step()
    engine.add("c", [3])


# --- memory


@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_the_youngest_is_preempted_and_nobody_starves(engine_of: EngineOf, steps_ahead: int) -> None:
    engine = engine_of(8, steps_ahead=steps_ahead)
    specs = [engine.add(f"r{i}", [3, 4, 5, i], max_tokens=22, ignore_eos=True) for i in range(6)]
    engine.run()
    assert engine.scheduler.stats().num_preemptions > 0
    assert list(engine.finished) == [spec.request_id for spec in specs], "first come, first served"
    for spec in specs:
        engine.check_output(spec)
    engine.check_is_idle()


def test_a_new_request_leaves_room_for_those_running_to_grow(engine_of: EngineOf) -> None:
    engine = engine_of(6)
    engine.add("running", range(3, 10), max_tokens=7, ignore_eos=True)
    engine.step()
    engine.add("new", range(30, 46), max_tokens=1)
    assert not engine.step().admitted, "two blocks are held and four are asked for, which would leave none"
    engine.run()
    assert engine.scheduler.stats().num_preemptions == 0


def test_an_equal_prompt_is_not_computed_twice(engine_of: EngineOf) -> None:
    engine = engine_of(40, max_num_batched_tokens=64)
    prompt = range(3, 20)
    engine.add("first", prompt, max_tokens=2, ignore_eos=True)
    engine.step()
    engine.add("second", prompt, max_tokens=2, ignore_eos=True)
    assert _scheduled(engine.step()) == {"first": 1, "second": 1}
    engine.run()
    assert engine.finished["second"].num_cached_tokens == 16
    stats = engine.scheduler.stats()
    assert (stats.prefix_query_tokens, stats.prefix_hit_tokens) == (34, 16)


def test_an_equal_prompt_is_not_computed_twice_within_a_step_either(engine_of: EngineOf) -> None:
    engine = engine_of(40, max_num_batched_tokens=64)
    for request_id in ("first", "second", "third"):
        engine.add(request_id, range(3, 20), max_tokens=2, ignore_eos=True)
    assert _scheduled(engine.step()) == {"first": 17, "second": 1, "third": 1}
    engine.run()
    assert engine.outputs["first"] == engine.outputs["second"] == engine.outputs["third"]


def test_a_chunk_is_shared_as_far_as_it_goes(engine_of: EngineOf) -> None:
    engine = engine_of(40, max_num_batched_tokens=10)
    for request_id in ("first", "second"):
        engine.add(request_id, range(3, 11), max_tokens=2, ignore_eos=True)
    assert _scheduled(engine.step()) == {"first": 8, "second": 2}
    engine.run()
    assert engine.outputs["first"] == engine.outputs["second"]


def test_the_last_prompt_token_is_always_computed(engine_of: EngineOf) -> None:
    engine = engine_of(40)
    for request_id in ("first", "second"):
        engine.add(request_id, range(3, 11), max_tokens=1)
        engine.run()
    assert engine.finished["second"].num_cached_tokens == 4


@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_generated_tokens_are_cached_too(engine_of: EngineOf, steps_ahead: int) -> None:
    engine = engine_of(40, steps_ahead=steps_ahead)
    engine.add("turn-1", range(3, 9), max_tokens=7, ignore_eos=True)
    engine.run()
    engine.add("turn-2", [*range(3, 9), *engine.outputs["turn-1"], 1, 1], max_tokens=1)
    engine.run()
    assert engine.finished["turn-2"].num_cached_tokens == 12


@pytest.mark.parametrize("other", [{"salt": "another tenant"}, {"adapter": "an-adapter"}], ids=["tenant", "adapter"])
def test_prefixes_are_not_shared_across(
    engine_of: EngineOf, manifest_of: Callable[..., Any], other: dict[str, str]
) -> None:
    engine = engine_of(40, 2)
    engine.scheduler.register_adapter(manifest_of("an-adapter"))
    engine.add("first", range(3, 20), max_tokens=2)
    engine.run()
    engine.add("other", range(3, 20), max_tokens=2, **other)
    engine.add("other-again", range(3, 20), max_tokens=2, **other)
    engine.run()
    assert engine.finished["other"].num_cached_tokens == 0
    assert engine.finished["other-again"].num_cached_tokens == 16


def test_without_prefix_caching_nothing_is_shared(engine_of: EngineOf) -> None:
    engine = engine_of(40, enable_prefix_caching=False)
    for request_id in ("first", "second"):
        engine.add(request_id, range(3, 20), max_tokens=2)
        engine.run()
    assert engine.finished["second"].num_cached_tokens == 0
    assert engine.scheduler.stats().prefix_query_tokens == 0


# --- seeds


def test_seeds_are_the_client_s_or_drawn_reproducibly(engine_of: EngineOf) -> None:
    def seeds(engine_seed: int) -> list[int]:
        engine = engine_of(40, seed=engine_seed)
        engine.add("given", [3], seed=-7)
        engine.add("drawn", [3])
        engine.add("drawn-too", [3])
        return [admitted.seed for admitted in engine.step().admitted]

    assert seeds(1) == seeds(1)
    assert seeds(1)[0] == -7
    assert len({*seeds(1), *seeds(2)}) == 5


# --- adapters


def test_a_request_waits_for_its_adapter_while_others_run(engine_of: EngineOf, manifest_of: Callable[..., Any]) -> None:
    engine = engine_of(40, 2)
    engine.runner.load_steps = 5
    engine.scheduler.register_adapter(manifest_of("a", 2))
    adapted = engine.add("adapted", range(3, 9), adapter="a", max_tokens=4, ignore_eos=True)
    base = engine.add("base", range(3, 9), max_tokens=4, ignore_eos=True)
    assert _scheduled(engine.step()).keys() == {"base"}
    assert engine.scheduler.stats().num_waiting_for_adapter == 1
    engine.run()
    for spec in (adapted, base):
        engine.check_output(spec)
    assert list(engine.finished) == ["base", "adapted"]
    engine.check_is_idle()


def test_adapters_of_queued_requests_are_loaded_ahead(engine_of: EngineOf, manifest_of: Callable[..., Any]) -> None:
    engine = engine_of(40, 2, max_num_seqs=1)
    engine.scheduler.register_adapter(manifest_of("a", 2))
    engine.add("base", range(3, 9), max_tokens=8, ignore_eos=True)
    engine.add("adapted", range(3, 9), adapter="a", max_tokens=2, ignore_eos=True)
    for _ in range(4):
        engine.step()
    assert engine.scheduler.stats().num_running == 1
    assert engine.runner.slots
    engine.run()


def test_a_failed_load_ends_its_requests_and_a_later_one_tries_again(
    engine_of: EngineOf, manifest_of: Callable[..., Any]
) -> None:
    engine = engine_of(40, 2)
    engine.scheduler.register_adapter(manifest_of("a"))
    base = engine.add("base", [3, 4], max_tokens=3)
    for kind in (AdapterMoveKind.LOAD_HOST, AdapterMoveKind.LOAD_DEVICE):
        engine.runner.failing = {(kind, "a")}
        for i in range(2):
            engine.add(f"{kind}-{i}", [3, 4], adapter="a", max_tokens=3)
        engine.run()
        for i in range(2):
            delta = engine.finished[f"{kind}-{i}"]
            assert (delta.finish_reason, delta.error) == (FinishReason.ERROR, "a is broken")
    engine.runner.failing = set()
    again = engine.add("again", [3, 4], adapter="a", max_tokens=3)
    engine.run()
    for spec in (base, again):
        engine.check_output(spec)
    engine.check_is_idle()


def test_a_failed_copy_is_tried_again_from_the_file(engine_of: EngineOf, manifest_of: Callable[..., Any]) -> None:
    engine = engine_of(40, 2)
    engine.scheduler.register_adapter(manifest_of("a"))
    engine.runner.failing = {(AdapterMoveKind.LOAD_DEVICE, "a")}
    engine.add("first", [3, 4], adapter="a", max_tokens=3)
    engine.run()
    engine.step()
    assert not engine.runner.host
    assert engine.scheduler.stats().block_usage == 0
    engine.add("second", [3, 4], adapter="a", max_tokens=3)
    engine.run()
    assert _moves(engine, AdapterMoveKind.LOAD_HOST) == ["a", "a"]


def _moves(engine: Any, kind: AdapterMoveKind) -> list[str]:
    return [move.manifest.digest for plan in engine.plans for move in plan.adapter_moves if move.kind is kind]


def test_no_adapter_takes_the_room_that_a_request_before_it_waits_for(
    engine_of: EngineOf, manifest_of: Callable[..., Any]
) -> None:
    engine = engine_of(10, 2)
    engine.scheduler.register_adapter(manifest_of("a", 3))
    engine.add("running", range(16), max_tokens=4, ignore_eos=True)
    engine.add("blocked", range(20, 50), max_tokens=2, ignore_eos=True)
    engine.add("adapted", [3, 4], adapter="a", max_tokens=2, ignore_eos=True)
    while "blocked" not in [admitted.request_id for admitted in engine.step().admitted]:
        assert _moves(engine, AdapterMoveKind.LOAD_DEVICE) == []
    assert _moves(engine, AdapterMoveKind.LOAD_HOST) == ["a"]
    engine.run()


def test_room_in_the_pool_goes_to_adapters_in_the_order_of_their_requests(
    engine_of: EngineOf, manifest_of: Callable[..., Any]
) -> None:
    engine = engine_of(12, 4)
    engine.scheduler.register_adapter(manifest_of("large", 8))
    engine.scheduler.register_adapter(manifest_of("small", 2))
    engine.add("running", range(16), max_tokens=9, ignore_eos=True)
    for name in ("large", "small"):
        engine.add(name, [3, 4], adapter=name, max_tokens=2, ignore_eos=True)
    engine.run()
    assert _moves(engine, AdapterMoveKind.LOAD_DEVICE) == ["large", "small"]


def test_a_copy_that_waits_for_the_pool_is_not_pushed_out_of_host_memory(
    engine_of: EngineOf, manifest_of: Callable[..., Any]
) -> None:
    engine = engine_of(12, 4, adapter_host_bytes=8 * 4 * 512)
    for name in ("a", "b"):
        engine.scheduler.register_adapter(manifest_of(name, 6))
    engine.add("running", range(28), max_tokens=9, ignore_eos=True)
    for name in ("a", "b"):
        engine.add(name, [3, 4], adapter=name, max_tokens=2, ignore_eos=True)
    engine.run()
    assert _moves(engine, AdapterMoveKind.LOAD_HOST) == ["a", "b"]


def test_a_copy_under_way_keeps_its_source(engine_of: EngineOf, manifest_of: Callable[..., Any]) -> None:
    engine = engine_of(20, 4, adapter_host_bytes=8 * 4 * 512)
    for name in ("a", "b"):
        engine.scheduler.register_adapter(manifest_of(name, 6))
    engine.add("a", [3, 4], adapter="a", max_tokens=2)
    while not _moves(engine, AdapterMoveKind.LOAD_DEVICE):
        engine.step()
        engine.runner.load_steps = 9
    engine.scheduler.abort("a")
    engine.add("b", [3, 4], adapter="b", max_tokens=2)
    engine.run()  # the runner asserts that what is dropped is not being copied
    assert engine.finished.keys() == {"b"}


def test_more_adapters_than_fit_take_turns(engine_of: EngineOf, manifest_of: Callable[..., Any]) -> None:
    engine = engine_of(14, 12, steps_ahead=1)
    specs = []
    for i in range(12):
        engine.scheduler.register_adapter(manifest_of(f"a{i}", 4))
        specs.append(engine.add(f"r{i}", range(3, 9), adapter=f"a{i}", max_tokens=6, ignore_eos=True))
    engine.run()
    for spec in specs:
        engine.check_output(spec)
    assert engine.scheduler.stats().num_adapter_evictions >= 9
    engine.check_is_idle()


def test_more_adapters_than_slots_take_turns(engine_of: EngineOf, manifest_of: Callable[..., Any]) -> None:
    engine = engine_of(60, 2)
    specs = []
    for i in range(7):
        engine.scheduler.register_adapter(manifest_of(f"a{i}"))
        specs.append(engine.add(f"r{i}", range(3, 9), adapter=f"a{i}", max_tokens=6, ignore_eos=True))
    engine.run()
    for spec in specs:
        engine.check_output(spec)


def test_host_memory_is_bounded_and_turns_are_taken_there_too(
    engine_of: EngineOf, manifest_of: Callable[..., Any]
) -> None:
    engine = engine_of(60, 8, adapter_host_bytes=5 * 4 * 512)  # 5 blocks
    specs = []
    for i in range(7):
        engine.scheduler.register_adapter(manifest_of(f"a{i}", 2))
        specs.append(engine.add(f"r{i}", range(3, 9), adapter=f"a{i}", max_tokens=6, ignore_eos=True))
    for _ in range(200):
        engine.step()
        assert len(engine.runner.host) <= 2
    for spec in specs:
        engine.check_output(spec)


@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_a_waiting_adapter_is_not_passed_by_forever(
    engine_of: EngineOf, manifest_of: Callable[..., Any], steps_ahead: int
) -> None:
    """Two resident adapters have new requests all the time; a third one wants in."""
    engine = engine_of(16, 8, steps_ahead=steps_ahead)
    for name in ("a", "b"):
        engine.scheduler.register_adapter(manifest_of(name, 4))
    engine.scheduler.register_adapter(manifest_of("c", 5))
    for i in range(4):
        engine.add(f"warm{i}", [3, 4, i], adapter="ab"[i % 2], max_tokens=6, ignore_eos=True)
    for _ in range(5):
        engine.step()
    patient = engine.add("patient", [3, 4, 5], adapter="c", max_tokens=4, ignore_eos=True)
    for i in range(20 * ADAPTER_PATIENCE_STEPS):
        engine.add(f"r{i}", [3, 4, i % 20], adapter="ab"[i % 2], max_tokens=8, ignore_eos=True)
        engine.step()
        if "patient" in engine.finished:
            break
    engine.check_output(patient)
    engine.run()


def test_who_has_had_less_goes_past_a_waiting_adapter_for_longer_but_not_forever(
    engine_of: EngineOf, manifest_of: Callable[..., Any]
) -> None:
    """Both slots are a quiet tenant's; another one, who has many requests to the base, waits for a third adapter."""
    engine = engine_of(80, 2, max_num_seqs=16, max_num_batched_tokens=64)
    for name in ("a", "b", "c"):
        engine.scheduler.register_adapter(manifest_of(name, 2))
    for i in range(2):
        engine.add(f"warm{i}", [3, 4, i], adapter="ab"[i], tenant="quiet", max_tokens=6, ignore_eos=True)
    for _ in range(5):
        engine.step()
    engine.add("patient", [3, 4, 5], adapter="c", tenant="busy", max_tokens=4, ignore_eos=True)
    num_steps = 0
    while "patient" not in engine.finished and num_steps < 4 * LONG_PATIENCE_STEPS:
        engine.add(
            f"quiet{num_steps}", [3, 4], adapter="ab"[num_steps % 2], tenant="quiet", max_tokens=8, ignore_eos=True
        )
        for i in range(4):
            engine.add(f"busy{num_steps}-{i}", [3] * 8, tenant="busy", max_tokens=1)
        engine.step()
        num_steps += 1
    assert ADAPTER_PATIENCE_STEPS < num_steps < 2 * LONG_PATIENCE_STEPS
    engine.run()


def test_prompts_in_every_step_leave_something_to_who_gives_way(engine_of: EngineOf) -> None:
    """One tenant runs more than his part; another one's prompts come in every step, of one token's answer each."""
    engine = engine_of(80, 0, max_num_seqs=16, max_num_batched_tokens=64)
    for i in range(14):
        engine.add(f"long{i}", [3, 4], tenant="long", max_tokens=8, ignore_eos=True)
    for i in range(200):
        for j in range(2):
            engine.add(f"short{i}-{j}", [3] * 8, tenant="short", max_tokens=1)
        engine.step()
    assert {f"long{i}" for i in range(14)} <= engine.finished.keys()


def test_who_waits_for_a_slot_keeps_no_base_request_waiting(
    engine_of: EngineOf, manifest_of: Callable[..., Any]
) -> None:
    """Both slots are adapters' that always run; the third one is out of patience. It closes the batch to those."""
    engine = engine_of(80, 2, max_num_seqs=16, max_num_batched_tokens=64)
    for name in ("a", "b", "c"):
        engine.scheduler.register_adapter(manifest_of(name, 2))
    for i in range(2):
        engine.add(f"warm{i}", [3, 4, i], adapter="ab"[i], max_tokens=6, ignore_eos=True)
    for _ in range(5):
        engine.step()
    engine.add("patient", [3, 4, 5], adapter="c", max_tokens=4, ignore_eos=True)
    closed = []
    for i in range(4 * ADAPTER_PATIENCE_STEPS):
        engine.add(f"r{i}", [3, 4, i % 20], adapter="ab"[i % 2], max_tokens=8, ignore_eos=True)
        engine.add(f"base{i}", [3, 4, i % 20], max_tokens=1)
        admitted = {one.request_id for one in engine.step().admitted}
        if f"r{i}" not in admitted:
            closed.append(f"base{i}" in admitted)
        if "patient" in engine.finished:
            break
    assert "patient" in engine.finished
    assert len(closed) > 1
    assert all(closed), "the base takes no slot"
    engine.run()


def test_standing_in_line_is_not_being_overtaken(engine_of: EngineOf, manifest_of: Callable[..., Any]) -> None:
    """A long queue for room must not make everybody in it impatient: others may still go where there is room."""
    engine = engine_of(20, 4, max_model_len=128, max_lora_rank=128)
    engine.scheduler.register_adapter(manifest_of("large", 13))
    engine.add("running", range(28), max_tokens=44, ignore_eos=True)
    engine.add("adapted", [3, 4], adapter="large", max_tokens=2)
    for _ in range(ADAPTER_PATIENCE_STEPS + 4):
        engine.step()
    engine.add("base", [3, 4], max_tokens=1)
    assert [admitted.request_id for admitted in engine.step().admitted] == ["base"]
    engine.run()


def test_adapters_are_copied_side_by_side(engine_of: EngineOf, manifest_of: Callable[..., Any]) -> None:
    """60 adapters where 20 fit, each copy taking four steps: the pool is kept busy, no copy waits for another."""
    engine = engine_of(100, 64, steps_ahead=1, max_num_seqs=16, max_num_batched_tokens=64)
    engine.runner.load_steps = 4
    for i in range(60):
        engine.scheduler.register_adapter(manifest_of(f"a{i}", 1 + i % 7))
    specs = [
        engine.add(f"r{i}", range(i % 9, 12), adapter=f"a{7 * i % 60}", max_tokens=1 + i % 20, ignore_eos=True)
        for i in range(180)
    ]
    num_steps = engine.run()
    for spec in specs:
        engine.check_output(spec)
    num_loads = len(_moves(engine, AdapterMoveKind.LOAD_DEVICE))
    assert num_loads <= 180, "an adapter that was loaded served somebody"
    assert num_steps < 2 * num_loads, "one after the other, each load alone takes five steps"


def test_a_slow_file_closes_admission_for_nobody(engine_of: EngineOf, manifest_of: Callable[..., Any]) -> None:
    engine = engine_of(16, 8)
    engine.scheduler.register_adapter(manifest_of("slow", 4))
    engine.runner.load_steps = 4 * ADAPTER_PATIENCE_STEPS
    engine.add("adapted", [3, 4], adapter="slow", max_tokens=2, ignore_eos=True)
    for i in range(3 * ADAPTER_PATIENCE_STEPS):
        engine.add(f"base{i}", [3, 4], max_tokens=1)
        assert f"base{i}" in _scheduled(engine.step())
    engine.run()


def test_waiting_for_host_memory_closes_admission_for_nobody(
    engine_of: EngineOf, manifest_of: Callable[..., Any]
) -> None:
    engine = engine_of(16, 8, adapter_host_bytes=4 * 4 * 512)
    engine.runner.load_steps = 3 * ADAPTER_PATIENCE_STEPS
    for name in ("slow", "next"):
        engine.scheduler.register_adapter(manifest_of(name, 4))
        engine.add(name, [3, 4], adapter=name, max_tokens=2, ignore_eos=True)
    for i in range(2 * ADAPTER_PATIENCE_STEPS):
        engine.add(f"base{i}", [3, 4], max_tokens=1)
        assert f"base{i}" in _scheduled(engine.step())
    engine.run()


def test_patience_ends_only_where_waiting_helps(engine_of: EngineOf, manifest_of: Callable[..., Any]) -> None:
    """An adapter out of patience loses its host copy to one of higher priority: its file must be read again first."""
    engine = engine_of(20, 4, max_model_len=128, adapter_host_bytes=14 * 4 * 512, max_lora_rank=128)
    for name in ("patient", "urgent"):
        engine.scheduler.register_adapter(manifest_of(name, 13))
    engine.add("running", range(28), max_tokens=44, ignore_eos=True)
    engine.add("patient", [3, 4], adapter="patient", max_tokens=2)
    engine.step()
    engine.step()
    for i in range(ADAPTER_PATIENCE_STEPS):
        engine.add(f"overtakes-{i}", [3, 4], max_tokens=1)
        assert engine.step().admitted
    engine.add("closed-out", [3, 4], max_tokens=1)
    assert not engine.step().admitted
    engine.runner.load_steps = 3
    engine.add("urgent", [3, 4], adapter="urgent", max_tokens=2, priority=-1)
    engine.step()
    assert [admitted.request_id for admitted in engine.step().admitted] == ["closed-out"]
    engine.run()


def test_cold_prefixes_make_room_for_an_adapter_and_idle_adapters_for_kv(
    engine_of: EngineOf, manifest_of: Callable[..., Any]
) -> None:
    engine = engine_of(10, 4)
    engine.scheduler.register_adapter(manifest_of("a", 6))
    engine.add("fills-the-cache", range(3, 35), max_tokens=8, ignore_eos=True)
    engine.run()
    adapted = engine.add("adapted", [3, 4], adapter="a", max_tokens=3)
    engine.run()
    assert engine.scheduler.stats().num_adapter_loads == 1
    base = engine.add("base", range(3, 35), max_tokens=8, ignore_eos=True)
    engine.run()
    assert engine.scheduler.stats().num_adapter_evictions == 1
    for spec in (adapted, base):
        engine.check_output(spec)


@pytest.mark.parametrize("prefixes_are_reused", [True, False])
def test_of_prefixes_and_idle_adapters_the_less_worthy_goes_first(
    engine_of: EngineOf, manifest_of: Callable[..., Any], prefixes_are_reused: bool
) -> None:
    """An adapter is quickly copied again from host memory: it goes before prefixes, unless nobody asks for those."""
    engine = engine_of(13, 4)
    engine.scheduler.register_adapter(manifest_of("a", 4))
    for prompt in (range(3, 20), range(3, 20) if prefixes_are_reused else range(20, 22)):
        engine.add("user", prompt, max_tokens=1)
        engine.run()
    engine.add("adapted", [3, 4], adapter="a", max_tokens=1)
    engine.run()
    engine.add("newcomer", range(30, 53), max_tokens=1)
    engine.run()
    assert engine.scheduler.stats().num_adapter_evictions == prefixes_are_reused
    engine.add("again", range(3, 20), max_tokens=1)
    engine.run()
    assert (engine.finished["again"].num_cached_tokens == 16) is prefixes_are_reused


def test_a_removed_adapter_serves_whom_it_has_and_is_then_forgotten(
    engine_of: EngineOf, manifest_of: Callable[..., Any]
) -> None:
    engine = engine_of(20, 4)
    engine.scheduler.register_adapter(manifest_of("a", 2))
    spec = engine.add("r", [3, 4], adapter="a", max_tokens=9, ignore_eos=True)
    for _ in range(4):
        engine.step()
    engine.scheduler.remove_adapter("a")
    with pytest.raises(RequestRefused, match="no adapter with digest a"):
        engine.add("late", [3, 4], adapter="a")
    engine.run()
    engine.check_output(spec)
    engine.check_is_idle()
    assert not engine.runner.slots
    assert not engine.runner.host
    assert engine.scheduler.stats().adapters == ()


def test_a_removed_adapter_that_is_on_its_way_is_dropped_when_it_arrives(
    engine_of: EngineOf, manifest_of: Callable[..., Any]
) -> None:
    engine = engine_of(20, 4)
    engine.runner.load_steps = 3
    engine.scheduler.register_adapter(manifest_of("a", 2))
    engine.add("r", [3, 4], adapter="a")
    engine.step()
    engine.scheduler.abort("r")
    engine.scheduler.remove_adapter("a")
    for _ in range(6):
        engine.step()
    assert not engine.runner.host
    assert engine.scheduler.stats().adapters == ()


def test_a_request_that_cannot_fit_beside_its_adapter_is_refused(
    engine_of: EngineOf, manifest_of: Callable[..., Any]
) -> None:
    engine = engine_of(10, 4)
    engine.scheduler.register_adapter(manifest_of("a", 8))
    with pytest.raises(RequestRefused, match="holds 8 tokens beside its adapter"):
        engine.add("r", range(9), adapter="a", max_tokens=2)
    engine.add("base", range(9), max_tokens=2)
    engine.run()


@pytest.mark.parametrize(
    ("num_blocks", "config", "named"),
    [
        (8, {}, "8 blocks and its request at least one more, but the pool has only 8"),
        (20, {"max_lora_rank": 63}, "lora_rank 64 exceeds max_lora_rank=63"),
        (20, {"adapter_host_bytes": 4 * 512 * 8 - 1}, "adapter_host_bytes=16383"),
    ],
)
def test_adapters_that_can_never_be_served_are_refused_with_the_numbers(
    engine_of: EngineOf, manifest_of: Callable[..., Any], num_blocks: int, config: dict[str, Any], named: str
) -> None:
    engine = engine_of(num_blocks, 4, **config)
    with pytest.raises(ValueError, match=named):
        engine.scheduler.register_adapter(manifest_of("a", 8))


def test_without_lora_adapters_are_refused(engine_of: EngineOf, manifest_of: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="enable_lora"):
        engine_of(20, 0).scheduler.register_adapter(manifest_of("a"))


def test_stats_say_where_each_adapter_is(engine_of: EngineOf, manifest_of: Callable[..., Any]) -> None:
    engine = engine_of(20, 1)
    for name in ("a", "b", "c"):
        engine.scheduler.register_adapter(manifest_of(name))
    for name in ("a", "b"):
        engine.add(name, [3, 4], adapter=name, max_tokens=2)
        engine.run()
    stats = engine.scheduler.stats()
    assert {r.digest: (r.tier.value, r.num_requests) for r in stats.adapters} == {
        "a": ("host", 0),
        "b": ("device", 0),
        "c": ("registered", 0),
    }
    assert (stats.num_adapter_loads, stats.num_adapter_evictions) == (2, 1)
    assert [stats.num_adapters(tier) for tier in AdapterTier] == [1, 1, 1]


def test_stats_tell_what_nobody_waits_for(engine_of: EngineOf) -> None:
    engine = engine_of(40, 0, max_num_seqs=2)
    for i, priority in enumerate((0, -1, 5, 1000, 1000)):
        engine.add(f"r{i}", [3, 4], priority=priority, max_tokens=2, ignore_eos=True)
    engine.step()
    assert engine.scheduler.stats().num_below_default == 3
    engine.run()
    assert engine.scheduler.stats().num_below_default == 0
