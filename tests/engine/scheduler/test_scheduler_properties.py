"""All rules at once: random requests, aborts, adapters that come, go, dawdle and fail, in pools that are too small.

After every step the scheduler's invariants hold; the runner of `conftest` checks that no token's past and no adapter's
block is ever overwritten while in use. In the end everything has finished with exactly the tokens it would have had
alone, and every block is free.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from descant_engine.request import EngineRequest, FinishReason
from descant_engine.scheduler.admission import RequestRefused
from descant_engine.scheduler.plan import AdapterMoveKind

ADAPTERS = {"a": 1, "b": 2, "c": 3, "d": 3, "e": 5}
"""Name -> blocks."""
MAX_MODEL_LEN = 40


class SchedulerMachine(RuleBasedStateMachine):
    engine_of: Callable[..., Any]
    manifest_of: Callable[..., Any]

    def __init__(self) -> None:
        super().__init__()
        self.specs: dict[str, EngineRequest] = {}
        self.may_fail: set[str] = set()
        self.num_added = 0

    @initialize(
        num_blocks=st.integers(7, 40),
        num_slots=st.integers(1, 5),
        steps_ahead=st.integers(0, 2),
        max_num_seqs=st.one_of(st.integers(1, 5), st.integers(8, 16)),
        max_num_batched_tokens=st.integers(1, 24),
        enable_prefix_caching=st.booleans(),
        host_blocks=st.integers(5, 14),
    )
    def start(self, num_blocks: int, num_slots: int, host_blocks: int, **config: Any) -> None:
        self.engine = self.engine_of(
            num_blocks, num_slots, max_model_len=MAX_MODEL_LEN, adapter_host_bytes=host_blocks * 4 * 512, **config
        )
        for name, size in ADAPTERS.items():
            self.engine.scheduler.register_adapter(self.manifest_of(name, size))

    @rule(
        prefix=st.integers(0, 2),
        prefix_len=st.integers(0, 20),
        tail=st.lists(st.integers(0, 22), min_size=1, max_size=6),
        adapter=st.sampled_from([None, None, *ADAPTERS]),
        params=st.fixed_dictionaries(
            {"max_tokens": st.integers(1, 14), "ignore_eos": st.booleans(), "min_tokens": st.integers(0, 1)}
        ),
        priority=st.sampled_from([0, 0, 0, 1]),
        tenant=st.sampled_from(["often", "often", "rarely"]),
    )
    def add(
        self, prefix: int, prefix_len: int, tail: list[int], adapter: str | None, params: dict[str, Any], **rank: Any
    ) -> None:
        self.add_prompt([*range(prefix, prefix + prefix_len), *tail], adapter=adapter, **rank, **params)

    @precondition(lambda self: self.engine.scheduler.stats().num_waiting < 20)
    @rule(num_requests=st.integers(5, 12), max_tokens=st.integers(8, 30), adapter=st.sampled_from([None, "a"]))
    def flood(self, num_requests: int, max_tokens: int, adapter: str | None) -> None:
        """One share runs more than its part of a large batch, and its answers grow into what is left of the pool."""
        for tail in range(num_requests):
            self.add_prompt([1, 2, tail], adapter=adapter, tenant="often", max_tokens=max_tokens, ignore_eos=True)

    def add_prompt(self, prompt: list[int], **options: Any) -> None:
        request_id = f"r{self.num_added}"
        try:
            spec = self.engine.add(request_id, prompt, **options)
        except RequestRefused:
            return
        self.num_added += 1
        self.specs[request_id] = spec

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.engine.step()
        self.check_fairness()

    @precondition(lambda self: self.specs)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.specs)))
        self.engine.scheduler.abort(request_id)
        self.engine.scheduler.check_integrity()
        if request_id not in self.engine.finished:
            del self.specs[request_id]

    @rule(load_steps=st.integers(0, 7))
    def change_speed_of_loads(self, load_steps: int) -> None:
        self.engine.runner.load_steps = load_steps

    @rule(name=st.sampled_from(sorted(ADAPTERS)), kind=st.sampled_from(["LOAD_HOST", "LOAD_DEVICE"]))
    def break_adapter(self, name: str, kind: str) -> None:
        self.may_fail.add(name)
        self.engine.runner.failing.add((AdapterMoveKind[kind], name))

    @rule()
    def mend_adapters(self) -> None:
        self.engine.runner.failing.clear()

    @rule(name=st.sampled_from(sorted(ADAPTERS)))
    def reload_adapter(self, name: str) -> None:
        self.engine.scheduler.remove_adapter(name)
        self.engine.scheduler.check_integrity()
        self.engine.scheduler.register_adapter(self.manifest_of(name, ADAPTERS[name]))
        self.engine.scheduler.check_integrity()

    @rule(name=st.sampled_from(sorted(ADAPTERS)))
    def remove_adapter(self, name: str) -> None:
        self.engine.scheduler.remove_adapter(name)
        self.engine.scheduler.check_integrity()

    def check_fairness(self) -> None:
        """Whoever is first in line makes progress: with nothing under way, an empty plan would be for ever."""
        engine = self.engine
        if engine.scheduler.has_unfinished_requests and not engine.launched and not engine.runner.under_way:
            assert any(not engine.step().is_empty for _ in range(2)), "a standstill"

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.run(max_steps=10_000)
        for request_id, spec in self.specs.items():
            delta = self.engine.finished[request_id]
            if delta.finish_reason is FinishReason.ERROR:
                assert spec.adapter_digest in self.may_fail
                assert self.engine.outputs[request_id] == self.foretold_beginning(request_id)
            else:
                self.engine.check_output(spec)
        self.engine.check_is_idle()

    def foretold_beginning(self, request_id: str) -> list[int]:
        """A preempted request may fail in the middle, when its adapter cannot be loaded again."""
        output = self.engine.outputs[request_id]
        return self.engine.foretold(self.specs[request_id])[: len(output)]


@pytest.mark.slow
def test_everything_at_once(engine_of: Callable[..., Any], manifest_of: Callable[..., Any]) -> None:
    class Machine(SchedulerMachine):
        pass

    Machine.engine_of = staticmethod(engine_of)
    Machine.manifest_of = staticmethod(manifest_of)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=250,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
