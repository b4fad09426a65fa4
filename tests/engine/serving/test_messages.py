from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from descant_engine.adapters.manifest import AdapterManifest, ModuleLora, TargetModule
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig
from descant_engine.request import EngineRequest, FinishReason, TokenDelta
from descant_engine.sampling_params import SamplingParams
from descant_engine.serving import messages
from descant_engine.serving.messages import ToEngine, ToFront, engine_reader, frame, front_reader
from descant_engine.speculation.config import SpeculativeConfig, SpeculativeMethod

MANIFEST = AdapterManifest(
    digest="ab" * 32,
    path=Path("/adapters/legal/adapter_model.safetensors"),
    modules=(ModuleLora(3, TargetModule.UP_PROJ, 8, 0.25, "a", "b"),),
)
REQUEST = EngineRequest(
    request_id="r-1",
    prompt_token_ids=(1, 2, 3),
    params=SamplingParams(stop=("x", "y"), seed=-5, temperature=0.5),
    adapter_digest=MANIFEST.digest,
    tenant_salt="ü",
)
TO_ENGINE: list[ToEngine] = [
    messages.Configure(EngineConfig(model="m", max_model_len=7)),
    messages.Submit(REQUEST),
    messages.Abort("r-1"),
    messages.RegisterAdapter(MANIFEST),
    messages.RemoveAdapter(MANIFEST.digest),
    messages.Shutdown(),
]
TO_FRONT: list[ToFront] = [
    messages.Deltas([TokenDelta("r-1", [4, 5], FinishReason.STOP, 5, 2), TokenDelta("r-2", [], None, None, 0, "no")]),
    messages.SubmitRefused("r-1", messages.Refusal.QUEUE_FULL, "1024 wait"),
    messages.AdapterAnswer(MANIFEST.digest, None),
    messages.AdapterAnswer(MANIFEST.digest, "too large"),
    messages.Fatal("no memory"),
]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 200), max_size=60))
def test_messages_survive_any_cut_of_the_stream(sizes: list[int]) -> None:
    stream = b"".join(frame(message) for message in TO_ENGINE)
    reader = engine_reader()
    received = []
    for size in [*sizes, len(stream)]:
        received += list(reader.feed(stream[:size]))
        stream = stream[size:]
    assert received == TO_ENGINE


def test_the_front_reads_what_the_engine_says() -> None:
    assert list(front_reader().feed(b"".join(frame(message) for message in TO_FRONT))) == TO_FRONT


def test_a_resolved_config_crosses_whole(tiny_llama: Path) -> None:
    from descant_engine.scheduler.stats import DraftStats, SchedulerStats

    counts = dict.fromkeys(SchedulerStats.__dataclass_fields__, 0)
    drafts = DraftStats(num_drafts=2, num_accepted_by_place=(2, 1))
    stats = SchedulerStats(**counts | {"block_usage": 0.5, "adapters": (), "drafts": drafts})  # type: ignore[arg-type]
    drafting = SpeculativeConfig(method=SpeculativeMethod.DRAFT_MODEL, model=str(tiny_llama))
    config = resolve(EngineConfig(model=str(tiny_llama), device="cpu", speculative_config=drafting))
    ready = messages.Ready(config, 12, stats)
    assert list(front_reader().feed(frame(ready))) == [ready]


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="object cannot cross"):
        frame(messages.Abort(object()))  # type: ignore[arg-type]
