"""The engine against transformers and PEFT, token for token in float32, and against itself under every schedule."""

import random
from collections import defaultdict
from pathlib import Path

import pytest

from descant_engine import LLM, SamplingParams
from descant_engine.adapters.files import read_adapter
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig
from descant_engine.engine import Engine
from descant_engine.request import EngineRequest

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
OPTIONS = {
    "dtype": "float32",
    "num_blocks": 96,
    "max_model_len": 256,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 256,
}


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(5)
    shared = [rng.randrange(1, 257) for _ in range(40)]
    lengths = [1, 3, 15, 16, 17, 33, 64, 100]
    prompts = [[rng.randrange(1, 257) for _ in range(n)] for n in lengths]
    return [*prompts, shared + prompts[1], shared + prompts[3]]


def token_ids(outputs) -> list[list[int]]:
    return [list(output.token_ids) for output in outputs]


class SteppedEngine:
    """The engine, one step at a time, with what each request has got so far."""

    def __init__(self, model: Path, device: str, adapters: dict[str, Path]) -> None:
        config = resolve(EngineConfig(model=str(model), device=device, enable_lora=True, **OPTIONS))
        self.engine = Engine(config)
        self.manifests = {name: read_adapter(path, config.shape, 64) for name, path in adapters.items()}
        for manifest in self.manifests.values():
            self.engine.register_adapter(manifest)
        self.outputs: dict[str, list[int]] = defaultdict(list)

    def submit(self, request_id: str, prompt: list[int], adapter: str | None) -> None:
        digest = None if adapter is None else self.manifests[adapter].digest
        self.engine.submit(
            EngineRequest(request_id=request_id, prompt_token_ids=tuple(prompt), params=GREEDY, adapter_digest=digest)
        )

    def step(self) -> None:
        for delta in self.engine.step():
            self.outputs[delta.request_id] += delta.token_ids


def make(model: Path, device: str, adapters: dict[str, Path] | None = None, **options: object) -> LLM:
    llm = LLM(str(model), device=device, enable_lora=bool(adapters), **(OPTIONS | options))  # type: ignore[arg-type]
    for name, path in (adapters or {}).items():
        llm.load_adapter(name, path)
    return llm


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {}),
        ("llama", {"tied": True}),
        ("llama", {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 32, "attention_bias": True}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
)
def test_greedy_equals_transformers(family, config, random_model, oracle, prompts, device):
    path = random_model(family, **config)
    outputs = token_ids(make(path, device).generate(prompts, GREEDY))
    reference = oracle(path, device)
    assert all(len(output) == 24 for output in outputs)
    assert [reference.agrees(p, o) for p, o in zip(prompts, outputs, strict=True)] == [True] * len(prompts)


def test_adapters_equal_peft_alone_and_mixed(tiny_llama, tiny_adapters, oracle, prompts, device):
    llm = make(tiny_llama, device, tiny_adapters)
    names: list[str | None] = [None, *tiny_adapters]
    mixed_prompts = [prompt for prompt in prompts for _ in names]
    mixed_names = [name for _ in prompts for name in names]
    mixed = token_ids(llm.generate(mixed_prompts, GREEDY, adapter=mixed_names))

    reference = oracle(tiny_llama, device)
    agreed = [
        reference.agrees(prompt, output, tiny_adapters.get(name))
        for prompt, name, output in zip(mixed_prompts, mixed_names, mixed, strict=True)
    ]
    assert agreed == [True] * len(agreed)
    for name in names:
        of_name = [output for output, other in zip(mixed, mixed_names, strict=True) if other == name]
        assert token_ids(llm.generate(prompts, GREEDY, adapter=name)) == of_name


def test_qwen3_with_an_adapter_equals_peft(random_model, random_adapter, oracle, prompts, device, tmp_path):
    path = random_model("qwen3")
    adapter = random_adapter(tmp_path / "adapter", path, seed=9, rank=5)
    outputs = token_ids(make(path, device, {"a": adapter}).generate(prompts, GREEDY, adapter="a"))
    assert all(oracle(path, device).agrees(p, o, adapter) for p, o in zip(prompts, outputs, strict=True))


@pytest.fixture(scope="module")
def workload(prompts, tiny_adapters) -> tuple[list[list[int]], list[str | None]]:
    names = [None, *tiny_adapters]
    return prompts * 2, [names[i % len(names)] for i in range(len(prompts) * 2)]


@pytest.fixture(scope="module")
def expected(tiny_llama, tiny_adapters, workload, device) -> list[list[int]]:
    """One request at a time."""
    llm = make(tiny_llama, device, tiny_adapters, enable_prefix_caching=False)
    return [token_ids(llm.generate([p], GREEDY, adapter=name))[0] for p, name in zip(*workload, strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enable_prefix_caching": False},
        {"max_num_batched_tokens": 16, "max_num_seqs": 8},
        {"max_num_batched_tokens": 64},
        {"max_num_batched_tokens": 2048},
        {"block_size": 8, "num_blocks": 150},
        {"max_num_seqs": 2},
    ],
    ids=str,
)
def test_no_schedule_changes_the_output(options, tiny_llama, tiny_adapters, workload, expected, device):
    llm = make(tiny_llama, device, tiny_adapters, **options)
    prompts, names = workload
    assert token_ids(llm.generate(prompts, GREEDY, adapter=names)) == expected
    assert token_ids(llm.generate(prompts, GREEDY, adapter=names)) == expected


def test_preemption_does_not_change_the_output(tiny_llama, tiny_adapters, workload, expected, device):
    llm = make(tiny_llama, device, tiny_adapters, num_blocks=44)
    prompts, names = workload
    assert token_ids(llm.generate(prompts, GREEDY, adapter=names)) == expected
    assert llm.stats().num_preemptions > 0


@pytest.mark.parametrize("room", [{"num_blocks": 60}, {"num_blocks": 400, "max_loras": 2}])  # an adapter: 23 blocks
def test_adapters_take_turns_when_they_do_not_fit(room, tiny_llama, random_adapter, prompts, device, tmp_path):
    adapters = {f"a{i}": random_adapter(tmp_path / f"a{i}", tiny_llama, seed=20 + i, rank=16) for i in range(6)}
    alone = [
        token_ids(make(tiny_llama, device, {name: path}).generate(prompts[:4], GREEDY, adapter=name))
        for name, path in adapters.items()
    ]
    llm = make(tiny_llama, device, adapters, **room)
    names = [name for name in adapters for _ in range(4)]
    outputs = token_ids(llm.generate(prompts[:4] * 6, GREEDY, adapter=names))
    assert [outputs[i * 4 : i * 4 + 4] for i in range(6)] == alone
    assert llm.stats().num_adapter_evictions > 0


@pytest.mark.parametrize("budget", [32, 256])
def test_prompts_that_share_a_prefix_within_one_step(budget, tiny_llama, prompts, device):
    beginning = prompts[7][:70]
    alike = [beginning, beginning, [*beginning[:50], 3, 4, 5], beginning[:33]]
    shared = make(tiny_llama, device, max_num_batched_tokens=budget).generate(alike, GREEDY)
    apart = make(tiny_llama, device, enable_prefix_caching=False).generate(alike, GREEDY)
    assert token_ids(shared) == token_ids(apart)


def test_seeded_samples_do_not_depend_on_the_batch(tiny_llama, prompts, device):
    llm = make(tiny_llama, device)
    params = [
        SamplingParams(temperature=1.0, top_p=0.9, seed=seed, max_tokens=16, presence_penalty=0.5, ignore_eos=True)
        for seed in range(len(prompts))
    ]
    together = token_ids(llm.generate(prompts, params))
    alone = [token_ids(llm.generate([p], one))[0] for p, one in zip(prompts, params, strict=True)]
    assert together == alone
    assert token_ids(llm.generate([prompts[3]], params[0])) != token_ids(llm.generate([prompts[3]], params[1]))


def test_aborts_beside_do_not_change_the_output(tiny_llama, tiny_adapters, workload, expected, device):
    """Half of the requests are aborted at random steps; the other half must not notice, and nothing may leak."""
    stepped = SteppedEngine(tiny_llama, device, tiny_adapters)
    rng = random.Random(3)
    for index, (prompt, name) in enumerate(zip(*workload, strict=True)):
        stepped.submit(f"keep-{index}", prompt, name)
        stepped.submit(f"drop-{index}", prompt, name)
    doomed = [f"drop-{index}" for index in range(len(expected))]
    rng.shuffle(doomed)
    while stepped.engine.has_work:
        stepped.step()
        if doomed and rng.random() < 0.7:
            stepped.engine.abort(doomed.pop())
    assert [stepped.outputs[f"keep-{index}"] for index in range(len(expected))] == expected
    stepped.engine.check_integrity()
    assert stepped.engine.stats().num_running == stepped.engine.stats().num_waiting == 0
