"""Speculation in the whole engine, on small random models: an output is the same with it and without."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from descant_engine import LLM, SamplingParams
from descant_engine.grammar.spec import GrammarKind, GrammarSpec
from descant_engine.speculation.config import SpeculativeConfig, SpeculativeMethod

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
OPTIONS = {"dtype": "float32", "num_blocks": 96, "max_model_len": 256, "max_num_seqs": 16}
NGRAM = SpeculativeConfig(method=SpeculativeMethod.NGRAM, adaptive=False, prompt_lookup_min=1)
GREEDY = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(5)
    phrase = [rng.randrange(1, 257) for _ in range(12)]
    return [phrase * 3, phrase, [5, 6] * 12, [rng.randrange(1, 257) for _ in range(50)]]


def make(model: Path, device: str, spec: SpeculativeConfig | None, adapters: dict[str, Path] | None = None) -> LLM:
    llm = LLM(model, device=device, speculative_config=spec, enable_lora=bool(adapters), **OPTIONS)
    for name, path in (adapters or {}).items():
        llm.load_adapter(name, path)
    return llm


@pytest.fixture(scope="module")
def model(random_model: Callable[..., Path]) -> Path:
    """Its small weights make it go round in circles, which is what n-grams are good at."""
    return random_model("llama", initializer_range=0.05)


@pytest.fixture(scope="module")
def adapters(model: Path, random_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("adapters")
    return {name: random_adapter(root / name, model, seed=seed, rank=8) for seed, name in enumerate(("one", "two"))}


@pytest.fixture(scope="module")
def plain(model: Path, device: str, adapters: dict[str, Path]) -> LLM:
    return make(model, device, None, adapters)


@pytest.fixture(scope="module")
def ngram(model: Path, device: str, adapters: dict[str, Path]) -> LLM:
    return make(model, device, NGRAM, adapters)


def num_accepted(llm: LLM) -> int:
    return llm._engine.stats().drafts.num_accepted_tokens


def ids(llm: LLM, prompts: list[list[int]], params, adapter=None) -> list[list[int]]:
    return [list(o.token_ids) for o in llm.generate(prompts, params, adapter=adapter, use_tqdm=False)]


def test_greedy_output_is_the_same(plain, ngram, prompts):
    before = num_accepted(ngram)
    assert ids(ngram, prompts, GREEDY) == ids(plain, prompts, GREEDY)
    assert num_accepted(ngram) > before + 50
    ngram._engine.check_integrity()


def test_so_is_a_drawn_one(plain, ngram, prompts):
    """With every option that looks at the tokens before, some of which are drafts when it looks."""
    params = [
        SamplingParams(temperature=0.5, seed=1, max_tokens=60, ignore_eos=True),
        SamplingParams(temperature=0.4, top_k=3, seed=2, max_tokens=60, ignore_eos=True, frequency_penalty=0.2),
        SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True, repetition_penalty=1.05),
        SamplingParams(temperature=0.0, max_tokens=60, bad_token_sequences=((6, 5, 6),), min_tokens=40),
    ]
    assert ids(ngram, prompts, params) == ids(plain, prompts, params)


def test_adapters_speculate_too(plain, ngram, prompts, adapters):
    names = [None, *adapters]
    for name in names:
        before = num_accepted(ngram)
        assert ids(ngram, prompts, GREEDY, name) == ids(plain, prompts, GREEDY, name)
        assert num_accepted(ngram) > before
    mixed = [names[i % len(names)] for i in range(len(prompts))]
    assert ids(ngram, prompts, GREEDY, mixed) == ids(plain, prompts, GREEDY, mixed)


def test_log_probabilities_of_accepted_tokens(plain, ngram, prompts):
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=2)
    for with_drafts, without in zip(
        ngram.generate(prompts, params, use_tqdm=False), plain.generate(prompts, params, use_tqdm=False), strict=True
    ):
        assert with_drafts.token_ids == without.token_ids
        assert len(with_drafts.logprobs) == 40
        for ours, theirs in zip(with_drafts.logprobs, without.logprobs, strict=True):
            assert ours.logprobs.token_id == theirs.logprobs.token_id
            assert ours.logprobs.logprob == pytest.approx(theirs.logprobs.logprob, abs=1e-4)
            assert [token for token, _ in ours.logprobs.top] == [token for token, _ in theirs.logprobs.top]


def test_stop_strings_and_lengths_cut_within_a_draft(plain, ngram, prompts):
    text = plain.generate(prompts[2:3], GREEDY, use_tqdm=False)[0].text
    for end in (17, 30, 44):
        params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True, stop=(text[end : end + 3],))
        ours, theirs = (llm.generate(prompts[2:3], params, use_tqdm=False)[0] for llm in (ngram, plain))
        assert (ours.text, ours.token_ids, ours.usage) == (theirs.text, theirs.token_ids, theirs.usage)
    for length in range(1, 20):
        params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
        assert ids(ngram, prompts, params) == ids(plain, prompts, params)


def test_rows_with_a_grammar_share_steps_with_drafts(plain, ngram, prompts):
    """They are not drafted for; the masks go to their own samples among those of drafts."""
    letters = GrammarSpec(GrammarKind.REGEX, "[a-f]{40}")
    grammar = SamplingParams(temperature=0.0, max_tokens=60, grammar=letters)
    params = [GREEDY, grammar, GREEDY, grammar]
    ours, theirs = (llm.generate(prompts, params, use_tqdm=False) for llm in (ngram, plain))
    assert [output.token_ids for output in ours] == [output.token_ids for output in theirs]
    assert len(ours[1].text) == 40


def test_samples_of_one_prompt(plain, ngram, prompts):
    params = SamplingParams(n=3, temperature=0.6, seed=4, max_tokens=40, ignore_eos=True)
    assert ids(ngram, prompts, params) == ids(plain, prompts, params)


def test_a_seeded_request_is_the_same_in_any_company(ngram, prompts):
    seeded = SamplingParams(temperature=0.7, seed=11, max_tokens=40, ignore_eos=True)
    alone = ids(ngram, prompts[:1], seeded)[0]
    others = [SamplingParams(temperature=1.0, max_tokens=50, ignore_eos=True)] * 3
    assert ids(ngram, prompts, [seeded, *others])[0] == alone
