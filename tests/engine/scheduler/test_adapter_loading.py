"""Adapters come from their files as fast as their requests could be admitted."""

from collections.abc import Callable
from typing import Any

NUM_REQUESTS = 160
ADMITTED_A_STEP = 8
LOAD_STEPS = 1
"""A read, and a copy, is over in the step after it began."""


def _steps(engine: Any, run: str) -> int:
    """Of requests that each have an adapter of their own, and arrive at once."""
    specs = [
        engine.add(f"{run}{i}", [3 + i % 20, *range(7)], adapter=f"a{i}", max_tokens=10, ignore_eos=True, salt=run)
        for i in range(NUM_REQUESTS)
    ]
    num_steps: int = engine.run()
    for spec in specs:
        engine.check_output(spec)
    return num_steps


def test_a_batch_fills_from_files_as_fast_as_from_the_device(
    engine_of: Callable[..., Any], manifest_of: Callable[..., Any]
) -> None:
    tokens = ADMITTED_A_STEP * (8 + 10)
    engine = engine_of(900, NUM_REQUESTS, steps_ahead=1, max_num_seqs=NUM_REQUESTS, max_num_batched_tokens=tokens)
    for i in range(NUM_REQUESTS):
        engine.scheduler.register_adapter(manifest_of(f"a{i}"))
    engine.runner.load_steps = LOAD_STEPS
    cold = _steps(engine, "cold")
    resident = _steps(engine, "resident")
    assert engine.scheduler.stats().num_adapter_loads == NUM_REQUESTS
    assert resident >= NUM_REQUESTS // ADMITTED_A_STEP / 2
    way = 2 * (LOAD_STEPS + 2)
    assert cold <= resident + way + 2, "only the first waits for its adapter"
