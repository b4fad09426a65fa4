"""The library's front door: what scripts may pass, and what comes back."""

import dataclasses
import itertools
from pathlib import Path
from unittest.mock import Mock

import pytest

from descant_engine import LLM, EngineConfig, SamplingParams
from descant_engine.config import EngineOptions
from descant_engine.frontend import InvalidPrompt, PromptTooLong, UnknownModel
from descant_engine.outputs import OutputText
from descant_engine.request import FinishReason

from .conftest import byte_tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> LLM:
    return LLM(tiny_llama, dtype="float32", device="cpu", max_model_len=128, num_blocks=256, enable_lora=True)


def test_options_are_the_fields_of_the_configuration() -> None:
    fields = {field.name for field in dataclasses.fields(EngineConfig)}
    assert EngineOptions.__annotations__.keys() == fields - {"model", "speculative_config"}


def test_one_prompt_a_list_and_token_ids_agree(llm: LLM) -> None:
    one = llm.generate("hello", GREEDY, use_tqdm=False)[0]
    listed = llm.generate(["hello", "bye"], GREEDY, use_tqdm=False)
    # The tiny tokenizer has one token a byte, numbered in the byte alphabet's order.
    as_ids = llm.generate([byte_tokenizer().encode("hello")], GREEDY, use_tqdm=False)[0]
    assert one.token_ids == listed[0].token_ids == as_ids.token_ids
    assert one.finish_reason is FinishReason.LENGTH
    assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (5, 4)


def test_chat_takes_one_conversation_or_several(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "hi"}]
    one = llm.chat(conversation, GREEDY, use_tqdm=False)
    several = llm.chat([conversation, conversation], GREEDY, use_tqdm=False)
    assert one[0].token_ids == several[0].token_ids == several[1].token_ids
    assert one[0].usage.prompt_tokens == len("<user>hi\n<assistant>")


def test_more_prompts_than_a_server_would_queue(llm: LLM) -> None:
    short = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    assert len(llm.generate([[1 + i % 200] for i in range(1500)], short, use_tqdm=False)) == 1500


def test_a_progress_bar_counts_requests(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], GREEDY)
    assert "2/2" in capsys.readouterr().err


def test_a_stop_string_ends_one_request_and_not_the_others(llm: LLM) -> None:
    long = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    text = llm.generate("hello", long, use_tqdm=False)[0].text
    stop = text[3:5]
    stopping = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, stop=(stop,))
    stopped, whole = llm.generate(["hello", "hello"], [stopping, long], use_tqdm=False)
    assert whole.text == text
    assert stopped.text == text[: text.index(stop)]
    assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, stop)
    assert llm.stats().num_running == 0


def test_a_prompt_at_fault_is_named_and_nothing_is_left_behind(llm: LLM) -> None:
    with pytest.raises(PromptTooLong, match=r"200 tokens.*128"):
        llm.generate(["fine", [1] * 200], GREEDY)
    with pytest.raises(InvalidPrompt, match="9999"):
        llm.generate([[9999]], GREEDY)
    with pytest.raises(UnknownModel, match="nowhere"):
        llm.generate(["fine"], GREEDY, adapter="nowhere")
    with pytest.raises(ValueError, match="params: 1 given for 2 prompts"):
        llm.generate(["a", "b"], [GREEDY])
    assert (llm.stats().num_running, llm.stats().num_waiting) == (0, 0)


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["encode", "output_text"])
def test_an_interrupt_while_prompts_are_handed_in_leaves_nothing_behind(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    real, calls = getattr(llm._frontend, method), itertools.count()
    replaced = lambda *args: interrupt() if next(calls) == 2 else real(*args)  # noqa: E731
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(llm._frontend, method, replaced)
        llm.generate(["a", "b", "c"], GREEDY, use_tqdm=False)
    assert_nothing_is_left(llm)


def test_a_prompt_of_another_type_leaves_nothing_behind(llm: LLM) -> None:
    with pytest.raises(TypeError):
        llm.generate(["hello", 5], GREEDY, use_tqdm=False)  # type: ignore[list-item]
    assert_nothing_is_left(llm)


def test_a_fault_while_outputs_are_read_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    for fault in (KeyboardInterrupt, MemoryError):
        with monkeypatch.context() as patch, pytest.raises(fault):
            patch.setattr(OutputText, "apply", Mock(side_effect=fault))
            llm.generate(["hello", "bye"], GREEDY, use_tqdm=False)
        assert_nothing_is_left(llm)


def test_a_text_of_another_type_leaves_no_vector_s_request_behind(tiny_llama: Path) -> None:
    llm = LLM(tiny_llama, dtype="float32", device="cpu", max_model_len=64, num_blocks=64, runner="pooling")
    with pytest.raises(TypeError):
        llm.embed(["hello", 5], use_tqdm=False)  # type: ignore[list-item]
    assert (llm.stats().num_running, llm.stats().num_waiting) == (0, 0)
    assert len(llm.embed(["hello"], use_tqdm=False)) == 1


def assert_nothing_is_left(llm: LLM) -> None:
    assert (llm.stats().num_running, llm.stats().num_waiting) == (0, 0)
    assert len(llm.generate("bye", GREEDY, use_tqdm=False)[0].token_ids) == 4


def test_adapters_come_and_go(llm: LLM, tiny_adapters: dict[str, Path]) -> None:
    base = llm.generate("hello", GREEDY, use_tqdm=False)[0].token_ids
    llm.load_adapter("mine", tiny_adapters["all"])
    first = llm.generate("hello", GREEDY, adapter="mine", use_tqdm=False)[0].token_ids
    llm.load_adapter("mine", tiny_adapters["attention"])
    second = llm.generate("hello", GREEDY, adapter="mine", use_tqdm=False)[0].token_ids
    assert len({base, first, second}) == 3
    llm.unload_adapter("mine")
    with pytest.raises(UnknownModel):
        llm.generate("hello", GREEDY, adapter="mine")


def test_several_samples_of_each_prompt(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.5, seed=3, max_tokens=12, ignore_eos=True)
    outputs = llm.generate(["hello", "bye"], params, use_tqdm=False)
    assert len({output.token_ids for output in outputs}) == 6
    assert [output.usage.prompt_tokens for output in outputs] == [5, 0, 0, 3, 0, 0]
    alone = llm.generate("bye", dataclasses.replace(params, n=1), use_tqdm=False)
    assert alone[0].token_ids == outputs[3].token_ids
    best = llm.generate("bye", dataclasses.replace(params, n=1, best_of=3, logprobs=0), use_tqdm=False)[0]
    everything = llm.generate("bye", dataclasses.replace(params, logprobs=0), use_tqdm=False)
    assert best.mean_logprob == max(output.mean_logprob for output in everything)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_sample_counts_the_prompt(llm: LLM, seed: int) -> None:
    params = SamplingParams(
        n=2, best_of=4, temperature=1.5, seed=seed, max_tokens=4, ignore_eos=True, prompt_logprobs=0
    )
    best, second = llm.generate("hello", params, use_tqdm=False)
    assert (best.usage.prompt_tokens, len(best.prompt_logprobs)) == (5, 4)
    assert (second.usage.prompt_tokens, second.prompt_logprobs) == (0, ())


def test_a_seed_draws_the_same_whatever_is_beside_it(llm: LLM) -> None:
    def params(seed: int, **options: object) -> SamplingParams:
        return SamplingParams(seed=seed, max_tokens=16, ignore_eos=True, **options)  # type: ignore[arg-type]

    mine = params(1, temperature=1.3, top_p=0.9)
    (alone,) = llm.generate("hello", mine, use_tqdm=False)
    others = [params(2, top_k=5), GREEDY, params(3, logit_bias={5: 2.0}), params(4, min_p=0.1, logprobs=2)]
    beside = llm.generate(["hello", *("a", "bc", "def", "ghij")], [mine, *others], use_tqdm=False)[0]
    assert beside.token_ids == alone.token_ids
