"""Log-probabilities against transformers and PEFT in float32: within 1e-4, of prompts and outputs, on any schedule."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from descant_engine import LLM, SamplingParams
from descant_engine.outputs import RequestOutput
from descant_engine.request import TokenLogprobs

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
OPTIONS = {
    "dtype": "float32",
    "num_blocks": 96,
    "max_model_len": 256,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 256,
}
TOLERANCE = 1e-4
NUM_TOP = 4
SCORED = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=NUM_TOP, prompt_logprobs=NUM_TOP)


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(9)
    shared = [rng.randrange(1, 257) for _ in range(40)]
    return [*([rng.randrange(1, 257) for _ in range(n)] for n in (1, 2, 16, 17, 60)), shared, [*shared, 7, 8, 9]]


def make(model: Path, device: str, adapters: dict[str, Path] | None = None, **options: object) -> LLM:
    llm = LLM(str(model), device=device, enable_lora=bool(adapters), **(OPTIONS | options))  # type: ignore[arg-type]
    for name, path in (adapters or {}).items():
        llm.load_adapter(name, path)
    return llm


@dataclass(frozen=True)
class Expected:
    """The reference's log-probabilities [n, vocab] in float64, and how far its own float32 is from them at most.

    Random weights and adapters are badly conditioned: in float32 the reference itself may be wrong by more than 1e-4.
    """

    exact: torch.Tensor
    noise: float

    @classmethod
    def of(cls, reference: Any, token_ids: list[int], adapter: Path | None) -> "Expected":
        exact = reference.logprobs_of(token_ids, adapter, torch.float64)
        return cls(exact, float((reference.logprobs_of(token_ids, adapter) - exact).abs().max()))

    def check(self, scores: Sequence[TokenLogprobs], token_ids: Sequence[int], first: int) -> None:
        """That `scores` are those of `token_ids`, which come after position `first`."""
        assert [score.token_id for score in scores] == list(token_ids)
        within = max(TOLERANCE, 3 * self.noise)
        for place, score in enumerate(scores, start=first):
            row = self.exact[place]
            own = float(row[score.token_id])
            assert score.logprob == pytest.approx(own, abs=within)
            assert int((row > own + within).sum()) < score.rank <= 1 + int((row > own - within).sum())
            likeliest = row.topk(len(score.top)).values.tolist()
            assert [value for _, value in score.top] == pytest.approx(likeliest, abs=within)
            for token_id, value in score.top:
                assert value == pytest.approx(float(row[token_id]), abs=within)


def check_all(output: RequestOutput, prompt: list[int], expected: Expected) -> None:
    expected.check(output.prompt_logprobs, prompt[1:], first=0)
    assert all(len(score.top) == NUM_TOP for score in output.prompt_logprobs)
    expected.check([token.logprobs for token in output.logprobs], output.token_ids, first=len(prompt) - 1)


def test_prompts_and_outputs_of_base_and_adapters(tiny_llama, tiny_adapters, oracle, prompts, device):
    llm = make(tiny_llama, device, tiny_adapters)
    names = [None, *tiny_adapters]
    outputs = llm.generate(
        [prompt for prompt in prompts for _ in names],
        SCORED,
        adapter=[n for _ in prompts for n in names],
        use_tqdm=False,
    )
    reference = oracle(tiny_llama, device)
    noises = []
    for number, output in enumerate(outputs):
        prompt, adapter = prompts[number // len(names)], names[number % len(names)]
        path = None if adapter is None else tiny_adapters[adapter]
        expected = Expected.of(reference, [*prompt, *output.token_ids], path)
        check_all(output, prompt, expected)
        noises.append(expected.noise)
    assert sorted(noises)[len(noises) // 2] < TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 32, "max_num_seqs": 4},
        {"enable_prefix_caching": False},
        {"num_blocks": 7, "max_model_len": 96},
    ],
    ids=["chunks", "no prefix cache", "preemption"],
)
def test_schedules_change_nothing(tiny_llama, prompts, device, options):
    """Every prompt twice: the second could find the first one's blocks. Few blocks don't hold all that run at once."""
    expected = make(tiny_llama, device).generate(prompts, SCORED, use_tqdm=False)
    llm = make(tiny_llama, device, **options)
    outputs = llm.generate([*prompts, *prompts], SCORED, use_tqdm=False)
    for output, wanted in zip(outputs, [*expected, *expected], strict=True):
        assert output.token_ids == wanted.token_ids
        for scores, wanted_scores in (
            (output.prompt_logprobs, wanted.prompt_logprobs),
            ([t.logprobs for t in output.logprobs], [t.logprobs for t in wanted.logprobs]),
        ):
            assert [s.logprob for s in scores] == pytest.approx([s.logprob for s in wanted_scores], abs=TOLERANCE)
    if "num_blocks" in options:
        assert llm.stats().num_preemptions > 0


def test_a_scored_prompt_is_computed_whole_and_still_leaves_its_blocks(tiny_llama, prompts, device):
    llm = make(tiny_llama, device)
    plain = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    for params, num_cached in [(plain, 0), (SCORED, 0), (plain, 48)]:
        (output,) = llm.generate([prompts[4]], params, use_tqdm=False)
        assert output.usage.cached_tokens == num_cached
    assert len(output.prompt_logprobs) == len(output.logprobs) == 0


def test_rows_that_ask_for_different_numbers_share_a_batch(tiny_llama, prompts, device):
    params = [
        SamplingParams(max_tokens=4, seed=number, ignore_eos=True, logprobs=wanted, prompt_logprobs=None)
        for number, wanted in enumerate([None, 0, 3, 20])
    ]
    outputs = make(tiny_llama, device).generate([prompts[3]] * 4, params, use_tqdm=False)
    assert [[len(token.logprobs.top) for token in output.logprobs] for output in outputs] == [
        [],
        [0] * 4,
        [3] * 4,
        [20] * 4,
    ]


def test_sampled_tokens_have_their_own_rank(tiny_llama, prompts, device):
    (output,) = make(tiny_llama, device).generate(
        [prompts[3]],
        SamplingParams(temperature=2.0, seed=1, max_tokens=32, ignore_eos=True, logprobs=20),
        use_tqdm=False,
    )
    ranks = [token.logprobs.rank for token in output.logprobs]
    assert max(ranks) > 1
    for token in output.logprobs:
        top = token.logprobs.top
        assert all(higher[1] >= lower[1] for higher, lower in pairwise(top))
        if token.logprobs.rank <= 20:
            assert top[token.logprobs.rank - 1][1] == token.logprobs.logprob
