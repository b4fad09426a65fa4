"""Many adapters in a pool with room for few: the same answers, and who needs no load is not delayed."""

from collections.abc import Callable
from typing import Any

NUM_ADAPTERS = 24
ADAPTER_BLOCKS = 4
KV_BLOCKS = 60
LOAD_STEPS = 3


def _steps_to_first_token(engine: Any, manifest_of: Callable[..., Any]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """A request of the next adapter every third step, a base one every second. (steps until first token, outputs)."""
    engine.runner.load_steps = LOAD_STEPS
    for index in range(NUM_ADAPTERS):
        engine.scheduler.register_adapter(manifest_of(f"a{index}", ADAPTER_BLOCKS))
    added: dict[str, int] = {}
    first: dict[str, int] = {}
    specs = []
    for step in range(400):
        if step < 240 and step % 3 == 0:
            number = step // 3
            adapter = f"a{7 * number % NUM_ADAPTERS}"
            specs.append(engine.add(f"adapted{number}", [3, 4, number % 20], adapter=adapter, max_tokens=5))
            added[f"adapted{number}"] = step
        if step < 240 and step % 2 == 0:
            specs.append(engine.add(f"base{step}", [5, 6, step % 20], max_tokens=5))
            added[f"base{step}"] = step
        engine.step()
        for request_id, output in engine.outputs.items():
            if output and request_id not in first:
                first[request_id] = step - added[request_id]
    for spec in specs:
        engine.check_output(spec)
    return first, engine.outputs


def test_room_for_four_of_twenty_four_adapters_changes_no_answer_and_delays_no_base_request(
    engine_of: Callable[..., Any], manifest_of: Callable[..., Any]
) -> None:
    config: dict[str, Any] = {"steps_ahead": 1, "max_num_seqs": 8, "max_num_batched_tokens": 64}
    config["adapter_host_bytes"] = NUM_ADAPTERS * ADAPTER_BLOCKS * 4 * 512
    everybody = engine_of(KV_BLOCKS + NUM_ADAPTERS * ADAPTER_BLOCKS, NUM_ADAPTERS, **config)
    few = engine_of(KV_BLOCKS + 4 * ADAPTER_BLOCKS, 4, **config)
    easy, answers = _steps_to_first_token(everybody, manifest_of)
    tight, same_answers = _steps_to_first_token(few, manifest_of)
    assert answers == same_answers
    base = [request_id for request_id in easy if request_id.startswith("base")]
    assert max(tight[request_id] for request_id in base) <= max(easy[request_id] for request_id in base) + 1
    assert few.scheduler.stats().num_adapter_evictions > NUM_ADAPTERS
    load = 2 * LOAD_STEPS + 4
    assert max(tight[request_id] for request_id in tight if request_id not in base) <= 4 * load, "nobody starves"
