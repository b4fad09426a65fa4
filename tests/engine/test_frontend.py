from dataclasses import replace
from pathlib import Path

import pytest

from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig
from descant_engine.frontend import (
    Chat,
    Frontend,
    InvalidParams,
    InvalidPrompt,
    PromptTooLong,
    Text,
    UnknownModel,
    check_cut_length,
)
from descant_engine.outputs import OutputText
from descant_engine.request import FinishReason, Owner, TokenDelta
from descant_engine.sampling_params import SamplingParams
from descant_engine.text.chat_template import ChatTemplateError

MAX_MODEL_LEN = 32


@pytest.fixture
def frontend(tiny_llama: Path) -> Frontend:
    return Frontend(
        resolve(EngineConfig(model=str(tiny_llama), device="cpu", enable_lora=True, max_model_len=MAX_MODEL_LEN))
    )


def test_encodes_text_ids_and_chats(frontend: Frontend) -> None:
    assert frontend.tokenizer.decode(frontend.encode("Hello")) == "Hello"
    assert frontend.encode([5, 6, 7]) == (5, 6, 7)
    chat = Chat([{"role": "user", "content": "Hi"}])
    assert frontend.tokenizer.decode(frontend.encode(chat)) == "<user>Hi\n<assistant>"
    assert frontend.tokenizer.decode(frontend.encode(replace(chat, add_generation_prompt=False))) == "<user>Hi\n"


@pytest.mark.parametrize("prompt", ["x" * MAX_MODEL_LEN, [1] * MAX_MODEL_LEN])
def test_a_prompt_must_leave_room_for_one_token(frontend: Frontend, prompt: str | list[int]) -> None:
    assert len(frontend.encode(prompt[:-1])) == MAX_MODEL_LEN - 1
    with pytest.raises(PromptTooLong, match=r"has 32 tokens.* holds 32"):
        frontend.encode(prompt)


def test_a_huge_prompt_is_refused_without_encoding_it(frontend: Frontend) -> None:
    with pytest.raises(PromptTooLong, match="at least"):
        frontend.encode("x" * 50_000_000)
    with pytest.raises(PromptTooLong, match="at least"):
        frontend.encode(Chat([{"role": "user", "content": "x" * 50_000_000}]))


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(frontend: Frontend, prompt: str | list[int]) -> None:
    with pytest.raises(InvalidPrompt, match="empty"):
        frontend.encode(prompt)


@pytest.mark.parametrize("token_id", [-1, 264, 2**40])
def test_a_token_id_outside_the_vocabulary_is_named(frontend: Frontend, token_id: int) -> None:
    with pytest.raises(InvalidPrompt, match=f"{token_id} .* 264"):
        frontend.encode([1, token_id, 2])


def test_an_empty_chat_is_refused(frontend: Frontend) -> None:
    with pytest.raises(ChatTemplateError, match="there are no messages"):
        frontend.encode(Chat([]))


def test_a_request_carries_everything(frontend: Frontend, tiny_adapters: dict[str, Path]) -> None:
    manifest = frontend.read_adapter(tiny_adapters["all"])
    frontend.name_adapter("legal", manifest)
    params = SamplingParams(max_tokens=4)
    request = frontend.request((1, 2), params, request_id="r", adapter="legal", owner=Owner("x", "t", 3))
    assert (request.prompt_token_ids, request.params, request.adapter_digest) == ((1, 2), params, manifest.digest)
    assert (request.request_id, request.tenant, request.tenant_salt, request.priority) == ("r", "x", "t", 3)


@pytest.mark.parametrize("token_id", [-1, 264])
def test_a_stop_token_outside_the_vocabulary_is_named(frontend: Frontend, token_id: int) -> None:
    with pytest.raises(InvalidParams, match=f"stop_token_ids: {token_id} "):
        frontend.request((1,), SamplingParams(stop_token_ids=(5, token_id)), request_id="r")


def test_an_unknown_adapter_is_named(frontend: Frontend) -> None:
    with pytest.raises(UnknownModel, match="'nobody'"):
        frontend.request((1,), SamplingParams(), request_id="r", adapter="nobody")
    with pytest.raises(UnknownModel, match="'nobody'"):
        frontend.forget_adapter("nobody")


def test_a_name_given_anew_means_the_new_adapter(frontend: Frontend, tiny_adapters: dict[str, Path]) -> None:
    old, new = (frontend.read_adapter(tiny_adapters[name]) for name in ("all", "attention"))
    assert frontend.name_adapter("legal", old) is None
    running = frontend.request((1,), SamplingParams(), request_id="r", adapter="legal")
    assert frontend.name_adapter("legal", new) == old.digest
    assert frontend.request((1,), SamplingParams(), request_id="s", adapter="legal").adapter_digest == new.digest
    assert running.adapter_digest == old.digest


def test_an_adapter_is_unused_when_its_last_name_is_gone(frontend: Frontend, tiny_adapters: dict[str, Path]) -> None:
    manifest = frontend.read_adapter(tiny_adapters["all"])
    for name in ("legal", "legal@2"):
        frontend.name_adapter(name, manifest)
    # The same content under the same name changes nothing.
    assert frontend.name_adapter("legal", manifest) is None
    assert frontend.forget_adapter("legal") is None
    assert frontend.forget_adapter("legal@2") == manifest.digest
    assert frontend.adapters == {}


def test_chats_and_texts_get_their_text(frontend: Frontend) -> None:
    chat = Chat([{"role": "user", "content": "Hi"}])
    for prompt in ("Hello", chat):
        request = frontend.request(frontend.encode(prompt), SamplingParams(), request_id="r")
        text = frontend.output_text(request, prompt)
        assert isinstance(text, OutputText)
        output = text.apply(TokenDelta("r", frontend.encode(" yes"), FinishReason.LENGTH, None, 0))
        assert output is not None
        assert output.text == " yes"
        assert output.usage.prompt_tokens == len(request.prompt_token_ids)


def test_stop_tokens_beyond_the_bound_are_refused_by_their_number() -> None:
    # Each is looked up for each token of the output, by the loop that serves everybody.
    SamplingParams(stop_token_ids=tuple(range(1024)))
    with pytest.raises(ValueError, match=r"^stop_token_ids: at most 1024; got 1025$"):
        SamplingParams(stop_token_ids=tuple(range(1025)))


@pytest.mark.parametrize("stop", [("x" * 10_000_000, ""), tuple("x" * 100_000)])
def test_a_refusal_does_not_repeat_megabytes(stop: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"^stop: at most 16 strings") as caught:
        SamplingParams(stop=stop)
    assert len(str(caught.value)) < 400


def test_text_may_say_how_it_is_encoded_and_be_cut(frontend: Frontend) -> None:
    whole = frontend.encode("Hello")
    assert frontend.encode(Text("Hello", add_special_tokens=False)) == whole
    assert frontend.encode("Hello", keep_last=2) == whole[-2:]
    assert len(frontend.encode("x" * 50_000, keep_last=8)) == 8
    with pytest.raises(PromptTooLong):
        frontend.encode("x" * 50_000, keep_last=50_000)


@pytest.mark.parametrize("as_chat", [False, True])
def test_a_text_too_long_to_be_cut_is_refused_without_encoding_it(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch, as_chat: bool
) -> None:
    text = "x" * ((1 << 20) + 1)
    prompt = Chat([{"role": "user", "content": text}]) if as_chat else text
    monkeypatch.setattr(frontend.tokenizer, "encode", lambda *_, **__: pytest.fail("it was encoded"))
    with pytest.raises(PromptTooLong, match=r"1048577 characters.* at most 1048576 .* 32 tokens"):
        frontend.encode(prompt, keep_last=8)


def test_more_may_be_cut_for_a_longer_context() -> None:
    check_cut_length(2_000_000, max_model_len=125_000)
    with pytest.raises(PromptTooLong, match="2000001"):
        check_cut_length(2_000_001, max_model_len=125_000)


def test_a_chat_may_leave_its_last_message_open(frontend: Frontend) -> None:
    chat = Chat(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}],
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert frontend.tokenizer.decode(frontend.encode(chat)) == "<user>Hi\n<assistant>Well"


@pytest.mark.parametrize(
    "params",
    [{"logit_bias": {264: 1.0}}, {"allowed_token_ids": (1, -1)}, {"bad_token_sequences": ((1, 264),)}],
    ids=lambda params: next(iter(params)),
)
def test_tokens_outside_the_vocabulary_are_named(frontend: Frontend, params: dict[str, object]) -> None:
    with pytest.raises(InvalidParams, match=f"{next(iter(params))}: -?[0-9]+ is not in the model's vocabulary of 264"):
        frontend.request((1,), SamplingParams(**params), request_id="r")  # type: ignore[arg-type]


def test_bad_words_become_tokens_at_a_texts_start_and_after_a_space(frontend: Frontend) -> None:
    params = SamplingParams(bad_words=("no", " so"), bad_token_sequences=((5,),))
    request = frontend.request((1,), params, request_id="r")
    texts = [frontend.tokenizer.decode(sequence) for sequence in request.params.bad_token_sequences[1:]]
    assert texts == ["no", " no", " so"]
    with pytest.raises(InvalidParams, match="bad_words: each must have 1 to 64 tokens; one has 65"):
        frontend.request((1,), SamplingParams(bad_words=("x" * 65,)), request_id="r")
