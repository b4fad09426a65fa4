"""Speculation in the whole engine, on small random models: an output is the same with it and without."""

import json
import random
import shutil
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


# A draft model


def draft_model(path: Path, **options) -> SpeculativeConfig:
    return SpeculativeConfig(
        method=SpeculativeMethod.DRAFT_MODEL, model=str(path), num_speculative_tokens=4, adaptive=False, **options
    )


@pytest.fixture(scope="module")
def twin(model: Path, device: str, adapters: dict[str, Path]) -> LLM:
    """The model drafts for itself: whatever has no adapter is right."""
    return make(model, device, draft_model(model), adapters)


@pytest.fixture(scope="module")
def stranger(model: Path, device: str, adapters: dict[str, Path], random_model: Callable[..., Path]) -> LLM:
    other = random_model("llama", initializer_range=0.05, num_hidden_layers=2, hidden_size=48, seed=9)
    return make(model, device, draft_model(other), adapters)


def test_a_model_that_drafts_for_itself_is_always_right(plain, twin, prompts):
    assert ids(twin, prompts, GREEDY) == ids(plain, prompts, GREEDY)
    drafts = twin._engine.stats().drafts
    assert drafts.num_accepted_tokens >= 0.97 * drafts.num_draft_tokens
    assert drafts.num_draft_tokens >= 4 * 40


def test_so_it_is_when_tokens_are_drawn(plain, twin, prompts):
    """The draft model draws with the same random numbers."""
    before = twin._engine.stats().drafts
    params = [
        SamplingParams(temperature=0.9, seed=5, max_tokens=40, ignore_eos=True),
        SamplingParams(temperature=0.8, top_p=0.9, seed=6, max_tokens=40, ignore_eos=True),
        SamplingParams(temperature=1.0, top_k=20, seed=7, max_tokens=40, ignore_eos=True, presence_penalty=0.5),
        SamplingParams(temperature=0.5, seed=8, max_tokens=40, ignore_eos=True, logit_bias={7: 3.0}),
    ]
    assert ids(twin, prompts, params) == ids(plain, prompts, params)
    after = twin._engine.stats().drafts
    num_drafted = after.num_draft_tokens - before.num_draft_tokens
    assert after.num_accepted_tokens - before.num_accepted_tokens >= 0.97 * num_drafted > 80


def test_another_model_changes_nothing(plain, stranger, prompts):
    assert ids(stranger, prompts, GREEDY) == ids(plain, prompts, GREEDY)
    drawn = SamplingParams(temperature=0.8, seed=3, max_tokens=50, ignore_eos=True)
    assert ids(stranger, prompts, drawn) == ids(plain, prompts, drawn)
    drafts = stranger._engine.stats().drafts
    assert 0 < drafts.num_accepted_tokens < drafts.num_draft_tokens
    stranger._engine.check_integrity()


@pytest.mark.parametrize("name", ["one", None])
def test_adapters_are_the_models_alone(plain, twin, stranger, prompts, name):
    for llm in (twin, stranger):
        assert ids(llm, prompts, GREEDY, name) == ids(plain, prompts, GREEDY, name)


def test_many_more_than_the_batch_holds(plain, twin, prompts):
    """Rows are taken by one request after another, prompts are longer than a step, and memory is short."""
    many = [prompt[i % 7 :] + prompts[(i + 1) % 4] for i in range(6) for prompt in prompts]
    assert ids(twin, many, GREEDY) == ids(plain, many, GREEDY)


def test_prompts_that_are_caught_up_with_in_parts(model, device, plain, prompts):
    options = OPTIONS | {"max_num_batched_tokens": 48, "max_num_seqs": 4}
    llm = LLM(model, device=device, speculative_config=draft_model(model), **options)
    long = [prompts[3] * 3, prompts[0] * 3, prompts[2] * 5]
    assert ids(llm, long, GREEDY) == ids(plain, long, GREEDY)
    drafts = llm._engine.stats().drafts
    assert drafts.num_accepted_tokens >= 0.97 * drafts.num_draft_tokens > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": 300}, "a vocabulary of 300 tokens, but"),
        ({"max_position_embeddings": 128}, "a context of 128 tokens, but max_model_len=256"),
    ],
)
def test_a_model_that_cannot_draft_is_refused(model, device, random_model, config, message):
    with pytest.raises(ValueError, match=message):
        make(model, device, draft_model(random_model("llama", **config)))


def test_so_is_one_of_another_vocabulary(model, device, random_model, tmp_path):
    other = shutil.copytree(random_model("llama", num_hidden_layers=1), tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = [token for token, token_id in vocabulary.items() if token_id in (40, 41)]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="another vocabulary: its token 40"):
        make(model, device, draft_model(other))
