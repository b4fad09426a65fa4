"""Requests that are accepted before they can be served: their grammars are being compiled."""

from collections.abc import Callable
from typing import Any

import pytest

from descant_engine.request import EngineRequest
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.admission import QueueFull, RequestRefused


def spec_of(request_id: str, adapter: str | None = None) -> EngineRequest:
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    return EngineRequest(request_id=request_id, prompt_token_ids=(3, 4), params=params, adapter_digest=adapter)


@pytest.fixture
def engine(engine_of: Callable[..., Any], manifest_of: Callable[..., Any]) -> Any:
    engine = engine_of(40, 2, max_num_queued_requests=2)
    engine.scheduler.register_adapter(manifest_of("a"))
    return engine


def test_nothing_of_it_runs_before_it_is_queued(engine: Any) -> None:
    engine.scheduler.expect(spec := spec_of("r"))
    engine.outputs["r"] = []
    assert all(engine.step().is_empty for _ in range(3))
    assert (engine.scheduler.stats().num_waiting, engine.scheduler.stats().num_waiting_for_grammar) == (1, 1)
    engine.scheduler.queue("r")
    engine.run()
    engine.check_output(spec)
    engine.check_is_idle()


def test_its_adapter_stays_though_it_is_removed_meanwhile(engine: Any) -> None:
    engine.scheduler.expect(spec := spec_of("r", "a"))
    engine.outputs["r"] = []
    engine.scheduler.remove_adapter("a")
    engine.scheduler.queue("r")
    engine.run()
    engine.check_output(spec)
    with pytest.raises(RequestRefused, match="no adapter"):
        engine.scheduler.add(spec_of("later", "a"))


def test_it_may_be_aborted(engine: Any) -> None:
    engine.scheduler.expect(spec_of("r", "a"))
    engine.scheduler.abort("r")
    assert not engine.scheduler.has_unfinished_requests
    engine.check_is_idle()


def test_what_can_never_be_served_is_refused_at_once(engine: Any) -> None:
    with pytest.raises(RequestRefused, match="no adapter"):
        engine.scheduler.expect(spec_of("r", "unknown"))
    engine.scheduler.expect(spec_of("r"))
    with pytest.raises(RequestRefused, match="under way already"):
        engine.scheduler.expect(spec_of("r"))


def test_it_counts_as_one_that_waits(engine: Any) -> None:
    engine.scheduler.expect(spec_of("expected"))
    engine.add("queued", [3, 4], max_tokens=3, ignore_eos=True)
    for join in (engine.scheduler.expect, engine.scheduler.add):
        with pytest.raises(QueueFull):
            join(spec_of("one too many"))
