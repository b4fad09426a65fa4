"""SmolLM2 and the demo adapters through the library, in float32, against transformers and PEFT, token for token."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from descant_cli.up.options import find_model
from descant_engine import LLM, SamplingParams
from descant_engine.checkpoint import gguf_cache
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig
from descant_engine.frontend import Chat, Frontend
from descant_engine.outputs import RequestOutput

from .conftest import ADAPTERS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Tokens = tuple[int, ...]

NUM_TOKENS = 64
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
STARTS = (
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "Dear colleagues,",
    "The three laws of thermodynamics are",
    "SELECT name FROM",
    '{"category": "login",',
    "It was a bright cold day in April, and",
    "1, 1, 2, 3, 5, 8,",
    "Wer früh aufsteht,",
)
QUESTIONS = (
    "What is the capital of France?",
    "Hello, I can't sign in to Polar Wiki. No rush.",
    "warehouses(id, city, type, capacity, shelves)\nWhich warehouses have a capacity above 208?",
    "Yvonne, review the team roster by noon. This is ridiculous.",
    "Name three uses of a paper clip.",
    "Explain in two sentences why the sky is blue.",
    "My invoice 4711 was charged twice, please help.",
    "Write a short note that tells the team about the new printer. " * 6,
    "¿Dónde está la biblioteca? 図書館はどこですか。",
    "x",
)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    llm = LLM(find_model(None)[0], dtype="float32", device="cpu", enable_lora=True, max_model_len=512)
    for name, path in ADAPTERS.items():
        llm.load_adapter(name, path)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def prompts() -> list[Tokens]:
    """Ten starts of a text and ten conversations."""
    frontend = Frontend(resolve(EngineConfig(model=find_model(None)[0])))
    chats = [Chat([{"role": "user", "content": question}]) for question in QUESTIONS]
    return [frontend.encode(prompt) for prompt in (*STARTS, *chats)]


@pytest.fixture(scope="module")
def mixed(llm: LLM, prompts: list[Tokens]) -> dict[str | None, dict[Tokens, Tokens]]:
    """What the base says to every prompt, and each adapter to some, all of it in one batch."""
    asked = [(name, prompt) for prompt in prompts for name in (None, *ADAPTERS) if prompt in asked_of(name, prompts)]
    names, batch = [name for name, _ in asked], [prompt for _, prompt in asked]
    outputs = token_ids(llm.generate(batch, GREEDY, adapter=names, use_tqdm=False))
    said: dict[str | None, dict[Tokens, Tokens]] = {name: {} for name in (None, *ADAPTERS)}
    for (name, prompt), output in zip(asked, outputs, strict=True):
        said[name][prompt] = output
    return said


def asked_of(adapter: str | None, prompts: list[Tokens]) -> list[Tokens]:
    return prompts if adapter is None else prompts[1::3]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> PeftModel:
    """transformers' model with PEFT's adapters around it. Its weights are what transformers once read from the file."""
    file = Path(find_model(None)[0])
    folder = tmp_path_factory.mktemp("reference")
    for part in (gguf_cache.config_folder(file), gguf_cache.weights_folder(file, "float32")):
        for each in part.iterdir():
            (folder / each.name).symlink_to(each)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    first, *others = ADAPTERS
    model = PeftModel.from_pretrained(base, ADAPTERS[first], adapter_name=first)
    for name in others:
        model.load_adapter(ADAPTERS[name], adapter_name=name)
    return model.eval()


def token_ids(outputs: list[RequestOutput]) -> list[Tokens]:
    return [output.token_ids for output in outputs]


def chosen(model: PeftModel, adapter: str | None, token_ids: Sequence[int], *, last: int) -> tuple[int, ...]:
    """At each of the `last` positions, the token that greedy decoding would choose next."""
    return tuple(logits(model, adapter, token_ids, last=last).argmax(-1).tolist())


def logits(model: PeftModel, adapter: str | None, token_ids: Sequence[int], *, last: int = 0) -> Tensor:
    """[last, vocab]; 0 is all of them"""
    if adapter is not None:
        model.set_adapter(adapter)
    with torch.inference_mode(), nullcontext() if adapter is not None else model.disable_adapter():
        return model(torch.tensor([token_ids]), logits_to_keep=last).logits[0]


@pytest.mark.parametrize("adapter", [None, *ADAPTERS], ids=str)
def test_greedy_output_is_the_reference_s(
    adapter: str | None,
    mixed: dict[str | None, dict[Tokens, Tokens]],
    reference: PeftModel,
) -> None:
    """By induction over the positions: given the same tokens before it, each token is the reference's own choice."""
    assert len(mixed[adapter]) == (20 if adapter is None else 7)
    for prompt, output in mixed[adapter].items():
        assert len(output) == NUM_TOKENS
        # What follows the output's last token is nobody's choice.
        assert chosen(reference, adapter, (*prompt, *output[:-1]), last=NUM_TOKENS) == output, prompt


@pytest.mark.parametrize("adapter", [None, *ADAPTERS], ids=str)
def test_log_probabilities_are_the_reference_s(
    adapter: str | None, llm: LLM, prompts: list[Tokens], reference: PeftModel
) -> None:
    """Of every token of prompt and output, and of the five likeliest at its place."""
    params = SamplingParams(temperature=0.9, seed=7, max_tokens=16, ignore_eos=True, logprobs=5, prompt_logprobs=5)
    some = asked_of(adapter, prompts)[::4]
    for prompt, output in zip(some, llm.generate(some, params, adapter=adapter, use_tqdm=False), strict=True):
        tokens = (*prompt, *output.token_ids)
        expected = logits(reference, adapter, tokens).log_softmax(-1)
        scores = [*output.prompt_logprobs, *(token.logprobs for token in output.logprobs)]
        assert [score.token_id for score in scores] == list(tokens[1:])
        for score, row in zip(scores, expected[:-1], strict=True):
            assert score.logprob == pytest.approx(float(row[score.token_id]), abs=1e-4)
            assert [value for _, value in score.top] == pytest.approx(row.topk(5).values.tolist(), abs=1e-4)


def test_every_model_has_its_own_answers(mixed: dict[str | None, dict[Tokens, Tokens]]) -> None:
    """Without this, equality could be that of adapters that do nothing."""
    for prompt in mixed["polite"]:
        assert len({said[prompt] for said in mixed.values()}) > 1
    answers = {tuple(said[prompt] for prompt in mixed["polite"]) for said in mixed.values()}
    assert len(answers) == len(mixed)


@pytest.mark.parametrize("adapter", [None, *ADAPTERS], ids=str)
def test_request_by_itself_gets_what_it_gets_in_the_mixed_batch(
    adapter: str | None, llm: LLM, mixed: dict[str | None, dict[Tokens, Tokens]]
) -> None:
    prompt, together = [*mixed[adapter].items()][-1]
    alone = replace(GREEDY, max_tokens=32)
    assert token_ids(llm.generate([prompt], alone, adapter=adapter, use_tqdm=False)) == [together[:32]]
