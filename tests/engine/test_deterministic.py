"""deterministic=True on a GPU: the same bits of every log-probability, whatever the batch and the schedule are."""

import random
from pathlib import Path

import pytest

from descant_engine import LLM, SamplingParams

pytestmark = pytest.mark.gpu
PARAMS = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=2)
OPTIONS = {"dtype": "bfloat16", "device": "cuda", "deterministic": True, "max_model_len": 256, "num_blocks": 400}


@pytest.fixture(scope="module")
def work(tiny_adapters: dict[str, Path]) -> tuple[list[list[int]], list[str | None]]:
    rng = random.Random(11)
    prompts = [[rng.randrange(1, 257) for _ in range(n)] for n in (1, 2, 15, 16, 17, 40, 64, 100, 33, 5, 70, 18)]
    names = [None, *tiny_adapters]
    return prompts, [names[index % len(names)] for index in range(len(prompts))]


def run(model: Path, adapters: dict[str, Path], prompts: list[list[int]], names: list[str | None], **options: object):
    llm = LLM(str(model), enable_lora=True, **(OPTIONS | options))
    for name, path in adapters.items():
        llm.load_adapter(name, path)
    outputs = llm.generate(prompts, PARAMS, adapter=names)
    return [(output.token_ids, output.logprobs) for output in outputs]


def test_the_batch_does_not_change_a_bit(tiny_llama, tiny_adapters, work):
    prompts, names = work
    together = run(tiny_llama, tiny_adapters, prompts, names)
    assert together == run(tiny_llama, tiny_adapters, prompts, names)
    for index in (0, 3, 7, 11):
        assert run(tiny_llama, tiny_adapters, [prompts[index]], [names[index]]) == [together[index]]


@pytest.mark.parametrize(
    "options",
    [{"max_num_batched_tokens": 16}, {"max_num_seqs": 3}, {"enable_prefix_caching": False}, {"num_blocks": 40}],
    ids=["small chunks", "few at once", "no prefix cache", "preemption"],
)
def test_the_schedule_does_not_change_a_bit(options, tiny_llama, tiny_adapters, work):
    expected = run(tiny_llama, tiny_adapters, *work)
    assert run(tiny_llama, tiny_adapters, *work, **options) == expected
