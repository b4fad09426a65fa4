"""Values at the very edge of what is accepted, and adapters of nonsense, concern their own request only."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig
from descant_engine.engine import Engine
from descant_engine.frontend import Frontend
from descant_engine.request import EngineRequest, Owner
from descant_engine.sampling_params import SamplingParams

MAX_MODEL_LEN = 32
VOCAB_SIZE = 264
NUM_BLOCKS = 64
"""So few that every block is used more than once."""
EVERY_TOKEN = tuple(range(VOCAB_SIZE))
EXTREMES: list[dict[str, Any]] = [
    {"min_tokens": 5, "stop_token_ids": EVERY_TOKEN},
    {"min_tokens": 5, "stop_token_ids": EVERY_TOKEN, "temperature": 0.0},
    {"min_tokens": 5, "stop_token_ids": EVERY_TOKEN, "top_p": 5e-324, "min_p": 1.0, "top_k": 3},
    {"min_tokens": 2**31 - 1, "max_tokens": 2**31 - 1},
    {"seed": -(2**63)},
    {"seed": 2**63 - 1},
    {"repetition_penalty": 5e-324},
    {"repetition_penalty": 1e-45, "top_p": 0.5, "min_p": 5e-324},
    {"repetition_penalty": 5e-324, "temperature": 0.0},
    {"repetition_penalty": 10.0, "presence_penalty": -2.0, "frequency_penalty": 2.0},
    {"temperature": 1.0000001e-5, "top_k": 1},
    {"temperature": 2e-5, "top_p": 1e-300},
    {"top_k": 2**31 - 1, "top_p": 0.9999999999},
]


@pytest.fixture
def frontend(tiny_llama: Path) -> Frontend:
    config = EngineConfig(
        model=str(tiny_llama), device="cpu", enable_lora=True, max_model_len=MAX_MODEL_LEN, num_blocks=NUM_BLOCKS
    )
    return Frontend(resolve(config))


def run(engine: Engine, requests: list[EngineRequest]) -> dict[str, list[int]]:
    """Submits them together and steps until they have ended."""
    for request in requests:
        engine.submit(request)
    outputs: dict[str, list[int]] = {request.request_id: [] for request in requests}
    num_unfinished = len(requests)
    for _ in range(5000):
        for delta in engine.step():
            outputs[delta.request_id] += delta.token_ids
            num_unfinished -= delta.finish_reason is not None
        if not num_unfinished:
            break
    assert num_unfinished == 0
    engine.check_integrity()
    return outputs


def test_no_accepted_value_ends_the_engine(frontend: Frontend) -> None:
    engine = Engine(frontend.config)
    longest = (VOCAB_SIZE - 1,) * (MAX_MODEL_LEN - 1)
    requests = [
        frontend.request(
            prompt,
            SamplingParams(**fields),
            request_id=f"{n}/{m}",
            owner=Owner(tenant_salt="\0é" * 999, priority=priority),
        )
        for m, (prompt, priority) in enumerate([((1,), -(2**31)), (longest, 2**31 - 1)])
        for n, fields in enumerate(EXTREMES)
    ]
    outputs = run(engine, requests)
    engine.close()
    assert all(tokens and set(tokens) <= set(EVERY_TOKEN) for tokens in outputs.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_an_adapter_of_nonsense_spoils_no_other_request(
    frontend: Frontend, tiny_adapters: dict[str, Path], tmp_path: Path, value: float
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_adapters["all"], folder)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: torch.full_like(w, value) for name, w in weights.items()}, folder / "adapter_model.safetensors")
    engine = Engine(frontend.config)
    manifest = frontend.read_adapter(folder)
    frontend.name_adapter("broken", manifest)
    greedy = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)

    def base(n: int) -> EngineRequest:
        return frontend.request(tuple(range(n, n + 9)), greedy, request_id=f"base{n}", owner=Owner(tenant_salt=str(n)))

    clean = run(engine, [base(n) for n in range(8)])
    engine.close()
    engine = Engine(frontend.config)
    engine.register_adapter(manifest)
    broken = [
        frontend.request(tuple(range(n, n + 19)), greedy, request_id=f"broken{n}", adapter="broken") for n in range(8)
    ]
    mixed = run(engine, [request for pair in zip(broken, [base(n) for n in range(8)], strict=True) for request in pair])
    # The blocks that the broken ones have left are used again, their old content still in them.
    later = run(engine, [base(n) for n in range(8)])
    engine.close()
    assert {name: mixed[name] for name in clean} == clean
    assert later == clean
