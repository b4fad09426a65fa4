"""Speculation in the whole engine, on small random models: an output is the same with it and without."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from descant_engine import LLM, SamplingParams
from descant_engine.grammar.spec import GrammarKind, GrammarSpec
from descant_engine.speculation.config import SpeculativeConfig, SpeculativeMethod

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
OPTIONS = {"dtype": "float32", "num_blocks": 96, "max_model_len": 256, "max_num_seqs": 16}
SMALL = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 3}
CIRCLES = SMALL | {"num_key_value_heads": 1, "initializer_range": 0.05}
"""Small weights make a model go round in circles, which is what n-grams are good at."""
NGRAM = SpeculativeConfig(method=SpeculativeMethod.NGRAM, adaptive=False, prompt_lookup_min=1)
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
ADAPTERS = [None, "one", "two"]


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
    return random_model("llama", **CIRCLES)


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


@pytest.fixture(scope="module")
def greedy(plain: LLM, prompts: list[list[int]]) -> dict[str | None, list[list[int]]]:
    """Without drafts, by adapter."""
    return {name: ids(plain, prompts, GREEDY, name) for name in ADAPTERS}


def num_accepted(llm: LLM) -> int:
    return llm.stats().drafts.num_accepted_tokens


def ids(llm: LLM, prompts: list[list[int]], params, adapter=None) -> list[list[int]]:
    return [list(o.token_ids) for o in llm.generate(prompts, params, adapter=adapter, use_tqdm=False)]


def test_greedy_output_is_the_same(greedy, ngram, prompts):
    before = num_accepted(ngram)
    assert ids(ngram, prompts, GREEDY) == greedy[None]
    assert num_accepted(ngram) > before + 40
    ngram._engine.check_integrity()


def test_so_is_a_drawn_one(plain, ngram, prompts):
    """With every option that looks at the tokens before, some of which are drafts when it looks."""
    params = [
        SamplingParams(temperature=0.5, seed=1, max_tokens=40, ignore_eos=True),
        SamplingParams(temperature=0.4, top_k=3, seed=2, max_tokens=40, ignore_eos=True, frequency_penalty=0.2),
        SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, repetition_penalty=1.05),
        SamplingParams(temperature=0.0, max_tokens=40, bad_token_sequences=((6, 5, 6),), min_tokens=30),
    ]
    assert ids(ngram, prompts, params) == ids(plain, prompts, params)


def test_adapters_speculate_too(greedy, ngram, prompts):
    for name in ADAPTERS[1:]:
        before = num_accepted(ngram)
        assert ids(ngram, prompts, GREEDY, name) == greedy[name] != greedy[None]
        assert num_accepted(ngram) > before
    mixed = [ADAPTERS[i % len(ADAPTERS)] for i in range(len(prompts))]
    assert ids(ngram, prompts, GREEDY, mixed) == [greedy[name][i] for i, name in enumerate(mixed)]


def test_log_probabilities_of_accepted_tokens(plain, ngram, prompts):
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=2)
    for with_drafts, without in zip(
        ngram.generate(prompts, params, use_tqdm=False), plain.generate(prompts, params, use_tqdm=False), strict=True
    ):
        assert with_drafts.token_ids == without.token_ids
        assert len(with_drafts.logprobs) == 24
        for ours, theirs in zip(with_drafts.logprobs, without.logprobs, strict=True):
            assert ours.logprobs.token_id == theirs.logprobs.token_id
            assert ours.logprobs.logprob == pytest.approx(theirs.logprobs.logprob, abs=1e-4)
            assert [token for token, _ in ours.logprobs.top] == [token for token, _ in theirs.logprobs.top]


def test_stop_strings_and_lengths_cut_within_a_draft(plain, ngram, prompts, greedy):
    text = plain.generate(prompts[2:3], GREEDY, use_tqdm=False)[0].text
    stops = [
        SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, stop=(text[end : end + 3],))
        for end in (9, 17, 30)
    ]
    ours, theirs = (llm.generate(prompts[2:3] * 3, stops, use_tqdm=False) for llm in (ngram, plain))
    for cut, expected in zip(ours, theirs, strict=True):
        assert (cut.text, cut.token_ids, cut.usage) == (expected.text, expected.token_ids, expected.usage)
    lengths = range(1, 20)
    params = [SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True) for length in lengths]
    assert ids(ngram, prompts[:1] * len(lengths), params) == [greedy[None][0][:length] for length in lengths]


def test_rows_with_a_grammar_share_steps_with_drafts(greedy, ngram, prompts):
    """They are not drafted for; the masks go to their own samples among those of drafts."""
    grammar = SamplingParams(temperature=0.0, max_tokens=30, grammar=GrammarSpec(GrammarKind.REGEX, "[a-f]{20}"))
    alone = ngram.generate(prompts[1:2], grammar, use_tqdm=False)[0]
    mixed = ngram.generate(prompts, [GREEDY, grammar, GREEDY, GREEDY], use_tqdm=False)
    assert len(alone.text) == 20
    assert [list(output.token_ids) for output in mixed] == [
        greedy[None][0],
        list(alone.token_ids),
        *greedy[None][2:],
    ]


def test_samples_of_one_prompt(plain, ngram, prompts):
    params = SamplingParams(n=3, temperature=0.6, seed=4, max_tokens=24, ignore_eos=True)
    assert ids(ngram, prompts[:2], params) == ids(plain, prompts[:2], params)


def test_a_seeded_request_is_the_same_in_any_company(ngram, prompts):
    seeded = SamplingParams(temperature=0.7, seed=11, max_tokens=30, ignore_eos=True)
    alone = ids(ngram, prompts[:1], seeded)[0]
    others = [SamplingParams(temperature=1.0, max_tokens=40, ignore_eos=True)] * 3
    assert ids(ngram, prompts, [seeded, *others])[0] == alone


@pytest.mark.parametrize("drafting", ["ngram", "cousin"])
def test_what_is_drawn_has_the_models_own_distribution(request, drafting, model, greedy, prompts, oracle):
    """Chi-square of the first three tokens, the second and third of which were drafted, rightly and wrongly; expected
    is what transformers says of every three of the two likeliest tokens."""
    llm = request.getfixturevalue(drafting)
    prompt, num_requests, temperature = prompts[2] + greedy[None][2], 500, 0.7
    before = llm.stats().drafts
    params = [
        SamplingParams(temperature=temperature, top_k=2, seed=seed, max_tokens=4, ignore_eos=True)
        for seed in range(num_requests)
    ]
    seen = Counter(tuple(tokens[:3]) for tokens in ids(llm, [prompt] * num_requests, params))
    after = llm.stats().drafts
    num_drafted = after.num_draft_tokens - before.num_draft_tokens
    assert 0.1 * num_drafted < after.num_accepted_tokens - before.num_accepted_tokens < 0.9 * num_drafted

    expected = {tokens: num_requests * p for tokens, p in three_tokens(oracle(model), prompt, temperature).items()}
    assert sum(seen[tokens] for tokens in expected) == num_requests
    cells = [(seen[tokens], often) for tokens, often in expected.items() if often >= 5]
    cells.append(tuple(num_requests - sum(column) for column in zip(*cells, strict=True)))
    chi_square = sum((count - often) ** 2 / often for count, often in cells if often > 0.5)
    assert chi_square < len(cells) + 4 * sqrt(2 * len(cells))


def three_tokens(oracle, prompt: list[int], temperature: float) -> dict[tuple[int, ...], float]:
    """The probability of each possible output, where a place has the two likeliest tokens."""
    chances: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer = {}
        for tokens, chance in chances.items():
            top = oracle.logprobs_of([*prompt, *tokens])[-1].topk(2)
            shares = torch.softmax(top.values / temperature, -1)
            for token, share in zip(top.indices.tolist(), shares.tolist(), strict=True):
                longer[*tokens, token] = chance * share
        chances = longer
    return chances


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
def cousin(model: Path, device: str, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """A model that was the same once drafts: often right, and often not."""
    folder = shutil.copytree(model, tmp_path_factory.mktemp("cousin") / "model")
    torch.manual_seed(1)
    weights = load_file(folder / "model.safetensors")
    changed = {name: weight + 0.1 * weight.std() * torch.randn_like(weight) for name, weight in weights.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    return make(model, device, draft_model(folder), adapters)


def test_a_model_that_drafts_for_itself_is_always_right(greedy, twin, prompts):
    assert ids(twin, prompts, GREEDY) == greedy[None]
    drafts = twin._engine.stats().drafts
    assert drafts.num_accepted_tokens >= 0.97 * drafts.num_draft_tokens
    assert drafts.num_draft_tokens >= 4 * 25


def test_so_it_is_when_tokens_are_drawn(plain, twin, prompts):
    """The draft model draws with the same random numbers."""
    before = twin._engine.stats().drafts
    params = [
        SamplingParams(temperature=0.9, seed=5, max_tokens=30, ignore_eos=True),
        SamplingParams(temperature=0.8, top_p=0.9, seed=6, max_tokens=30, ignore_eos=True),
        SamplingParams(temperature=1.0, top_k=20, seed=7, max_tokens=30, ignore_eos=True, presence_penalty=0.5),
        SamplingParams(temperature=0.5, seed=8, max_tokens=30, ignore_eos=True, logit_bias={7: 3.0}),
    ]
    assert ids(twin, prompts, params) == ids(plain, prompts, params)
    after = twin._engine.stats().drafts
    num_drafted = after.num_draft_tokens - before.num_draft_tokens
    assert after.num_accepted_tokens - before.num_accepted_tokens >= 0.97 * num_drafted > 60


def test_another_model_changes_nothing(plain, greedy, cousin, prompts):
    assert ids(cousin, prompts, GREEDY) == greedy[None]
    drawn = SamplingParams(temperature=0.8, seed=3, max_tokens=30, ignore_eos=True)
    assert ids(cousin, prompts, drawn) == ids(plain, prompts, drawn)
    drafts = cousin._engine.stats().drafts
    assert 0 < drafts.num_accepted_tokens < drafts.num_draft_tokens
    cousin._engine.check_integrity()


@pytest.mark.parametrize("name", ["one", "two"])
def test_adapters_are_the_models_alone(greedy, twin, cousin, prompts, name):
    for llm in (twin, cousin):
        assert ids(llm, prompts, GREEDY, name) == greedy[name]


def test_many_more_than_the_batch_holds(plain, twin, prompts):
    """Rows are taken by one request after another, prompts are longer than a step, and memory is short."""
    many = [prompt[i % 7 :] + prompts[(i + 1) % 4] for i in range(6) for prompt in prompts]
    short = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    assert ids(twin, many, short) == ids(plain, many, short)


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
