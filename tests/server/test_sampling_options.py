"""Every sampling option, through the official client and a real server: it acts, streamed or not."""

import math
from collections.abc import Iterable
from typing import Any

import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]
PROMPT = "once upon a time there was a tiny model"
"""One token a character; more than two blocks of 16."""


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    extra = {"ignore_eos": True} | fields.pop("extra_body", {})
    fields = {"model": "tiny", "messages": HELLO, "max_tokens": 8, "temperature": 0} | fields
    return client.chat.completions.create(extra_body=extra, **fields)


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    extra = {"ignore_eos": True} | fields.pop("extra_body", {})
    fields = {"model": "tiny", "prompt": PROMPT, "max_tokens": 8, "temperature": 0} | fields
    return client.completions.create(extra_body=extra, **fields)


def text_of(answer: Any) -> str:
    return answer.choices[0].message.content


def by_choice(chunks: Iterable[Any]) -> dict[int, list[Any]]:
    choices: dict[int, list[Any]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            choices.setdefault(choice.index, []).append(choice)
    return choices


def test_n_samples_are_different_and_repeatable(client):
    ask = {"n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 16}
    first, again = chat(client, **ask), chat(client, **ask)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in again.choices]
    # The first is what the seed gives alone.
    assert texts[0] == text_of(chat(client, **ask | {"n": 1}))
    assert first.usage.prompt_tokens == chat(client).usage.prompt_tokens
    assert first.usage.completion_tokens == 48


def test_streamed_samples_say_what_the_whole_ones_do(client):
    ask = {"n": 3, "temperature": 1.5, "seed": 5, "logprobs": True, "top_logprobs": 2}
    whole = chat(client, **ask)
    *chunks, last = chat(client, stream=True, stream_options={"include_usage": True}, **ask)
    for index, parts in by_choice(chunks).items():
        choice = whole.choices[index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == ["length"]
        scored = [token for part in parts if part.logprobs for token in part.logprobs.content]
        assert [token.logprob for token in scored] == pytest.approx(
            [token.logprob for token in choice.logprobs.content], abs=1e-5
        )
    assert len(by_choice(chunks)) == 3
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )


def test_several_prompts_with_several_samples_each(client):
    answer = complete(client, prompt=["once", "twice"], n=2, temperature=1.5, seed=1)
    alone = [complete(client, prompt=prompt, n=2, temperature=1.5, seed=1) for prompt in ("once", "twice")]
    assert [choice.text for choice in answer.choices] == [c.text for one in alone for c in one.choices]
    assert answer.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone) == len("oncetwice")


def test_best_of_answers_with_the_likeliest(client):
    ask = {"temperature": 1.5, "seed": 3, "logprobs": 0}
    everything = complete(client, n=4, **ask)
    best = complete(client, n=2, best_of=4, **ask)

    def mean(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    ranked = sorted(everything.choices, key=mean, reverse=True)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.usage.completion_tokens == everything.usage.completion_tokens == 32
    assert complete(client, best_of=4, **ask | {"logprobs": None}).choices[0].logprobs is None


def test_logprobs_of_a_chat(client):
    answer = chat(client, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 8
    assert bytes(byte for token in tokens for byte in token.bytes).decode(errors="replace") == text_of(answer)
    for token in tokens:
        assert len(token.top_logprobs) == 3
        # Greedy: the token itself is the likeliest.
        assert token.top_logprobs[0].logprob == token.logprob
        assert math.exp(token.logprob) <= 1
    assert chat(client).choices[0].logprobs is None
    assert chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_logprobs_are_the_models_own(client):
    """Neither temperature nor penalties nor bias change them."""
    plain = chat(client, logprobs=True, max_tokens=1)
    changed = chat(client, logprobs=True, max_tokens=1, temperature=1e-3, seed=1, presence_penalty=2.0, top_p=0.5)
    assert changed.choices[0].logprobs.content[0].logprob == pytest.approx(plain.choices[0].logprobs.content[0].logprob)


def test_logprobs_end_with_the_text(client):
    """A stop string takes the tokens that are no part of the text with it."""
    text = text_of(chat(client, max_tokens=24))
    stop = next(symbol for symbol in text[3:] if symbol.isascii())
    ask = {"max_tokens": 24, "stop": [stop], "logprobs": True}
    answer = chat(client, **ask)
    tokens = answer.choices[0].logprobs.content
    assert bytes(byte for token in tokens for byte in token.bytes).decode(errors="replace") == text_of(answer)
    assert answer.usage.completion_tokens == len(tokens) + 1
    chunks = list(chat(client, stream=True, **ask))
    streamed = [t for chunk in chunks for c in chunk.choices if c.logprobs for t in c.logprobs.content]
    assert [token.bytes for token in streamed] == [token.bytes for token in tokens]


def test_logprobs_of_a_completion(client):
    choice = complete(client, logprobs=2).choices[0]
    scores = choice.logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.top_logprobs) == len(scores.text_offset) == 8
    assert scores.text_offset[0] == 0
    assert sorted(scores.text_offset) == scores.text_offset
    for token, logprob, top in zip(scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True):
        assert top[token] == logprob == max(top.values())
        assert len(top) == 2


def test_echo_puts_the_prompt_before_the_output(client):
    plain = complete(client, logprobs=2).choices[0]
    for prompt in (PROMPT, [PROMPT]):
        answer = complete(client, prompt=prompt, echo=True, logprobs=2)
        choice, scores = answer.choices[0], answer.choices[0].logprobs
        assert choice.text == PROMPT + plain.text
        assert "".join(scores.tokens[: len(PROMPT)]) == PROMPT
        assert scores.token_logprobs[0] is scores.top_logprobs[0] is None
        assert all(value < 0 for value in scores.token_logprobs[1:])
        assert scores.text_offset[: len(PROMPT)] == list(range(len(PROMPT)))
        assert scores.text_offset[len(PROMPT) :] == [len(PROMPT) + offset for offset in plain.logprobs.text_offset]
        # The prompt is computed anew where its own scores are asked for: in bfloat16, other roundings.
        assert scores.token_logprobs[len(PROMPT) :] == pytest.approx(plain.logprobs.token_logprobs, abs=0.02)


def test_echo_streams_what_it_says_whole(client):
    ask = {"echo": True, "logprobs": 1, "n": 2, "temperature": 1.0, "seed": 4, "prompt": [PROMPT, "twice"]}
    whole, chunks = complete(client, **ask), list(complete(client, stream=True, **ask))
    for index, parts in by_choice(chunks).items():
        assert "".join(part.text for part in parts) == whole.choices[index].text
        tokens = [token for part in parts if part.logprobs for token in part.logprobs.tokens]
        assert tokens == whole.choices[index].logprobs.tokens
    assert len(by_choice(chunks)) == 4


def test_a_prompt_alone_can_be_scored(client):
    answer = complete(client, echo=True, max_tokens=0, logprobs=0)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason, len(choice.logprobs.tokens)) == (PROMPT, "length", len(PROMPT))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), 0)


def test_prompt_logprobs(client):
    echoed = complete(client, echo=True, max_tokens=1, logprobs=1).choices[0].logprobs
    scores = complete(client, extra_body={"prompt_logprobs": 1}).choices[0].model_extra["prompt_logprobs"]
    assert scores[0] is None
    assert len(scores) == len(PROMPT)
    for place, symbol in enumerate(PROMPT[1:], start=1):
        (own,) = [entry for entry in scores[place].values() if entry["decoded_token"] == symbol]
        assert own["logprob"] == pytest.approx(echoed.token_logprobs[place], abs=1e-5)
        assert (own["rank"] == 1) == (len(scores[place]) == 1)
    in_chat = chat(client, extra_body={"prompt_logprobs": 0})
    assert len(in_chat.model_extra["prompt_logprobs"]) == in_chat.usage.prompt_tokens


def test_prompt_logprobs_come_with_the_first_event_of_a_stream(client):
    ask = {"n": 2, "temperature": 1.0, "seed": 3, "extra_body": {"prompt_logprobs": 1}}
    whole, chunks = complete(client, **ask), list(complete(client, stream=True, **ask))
    for index, (first, *others) in by_choice(chunks).items():
        assert first.model_extra["prompt_logprobs"] == whole.choices[index].model_extra["prompt_logprobs"]
        assert all("prompt_logprobs" not in (part.model_extra or {}) for part in others)
    in_chat, (first, *others) = chat(client, **ask), list(chat(client, stream=True, **ask))
    assert first.model_extra["prompt_logprobs"] == in_chat.model_extra["prompt_logprobs"]
    assert all("prompt_logprobs" not in (chunk.model_extra or {}) for chunk in others)


def test_logit_bias_and_allowed_tokens_and_bad_words(client):
    text = text_of(chat(client, max_tokens=1, logit_bias={"80": 100}))
    assert text == text_of(chat(client, max_tokens=1, extra_body={"allowed_token_ids": [80]}))
    forced = chat(client, logit_bias={"80": 100}, extra_body={"bad_words": [text * 2]})
    assert text_of(forced)[0] == text
    assert text * 2 not in text_of(forced)


def test_stop_strings_may_be_shown(client):
    text = text_of(chat(client, max_tokens=24))
    stop = next(symbol for symbol in text[3:] if symbol.isascii())
    shown = chat(client, max_tokens=24, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert text_of(shown) == text[: text.index(stop)] + stop
    assert shown.choices[0].stop_reason == stop


def test_special_tokens_may_be_shown(client):
    ask = {"max_tokens": 2, "logit_bias": {"0": 100}}
    assert text_of(chat(client, **ask)) == ""
    assert text_of(chat(client, **ask, extra_body={"skip_special_tokens": False})) == "<eos><eos>"


def test_prompts_may_be_truncated(client):
    whole = complete(client, prompt="time")
    cut = complete(client, prompt="once upon a time", extra_body={"truncate_prompt_tokens": 4})
    assert (cut.choices[0].text, cut.usage.prompt_tokens) == (whole.choices[0].text, 4)
    all_that_fits = complete(client, prompt="x" * 5000, extra_body={"truncate_prompt_tokens": -1})
    assert all_that_fits.usage.total_tokens == 4096
    echoed = complete(client, prompt="once upon a time", echo=True, extra_body={"truncate_prompt_tokens": 4})
    assert echoed.choices[0].text == "time" + whole.choices[0].text


def test_the_last_message_may_be_continued(client):
    messages = [*HELLO, {"role": "assistant", "content": "once upon"}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    continued = chat(client, messages=messages, extra_body=options)
    prompt = "<user>hello\n<assistant>once upon"
    assert text_of(continued) == complete(client, prompt=prompt).choices[0].text
    closed = chat(client, messages=messages, extra_body={"add_generation_prompt": False})
    assert text_of(closed) == complete(client, prompt=f"{prompt}\n").choices[0].text


def test_tokens_may_be_written_as_ids(client):
    (token,) = (
        chat(
            client, max_tokens=1, logprobs=True, logit_bias={"80": 100}, extra_body={"return_tokens_as_token_ids": True}
        )
        .choices[0]
        .logprobs.content
    )
    assert token.token == "token_id:80"


def test_a_seed_draws_the_same_beside_others(client, server):
    """While others sample in the same batch."""
    alone = text_of(chat(client, temperature=1.2, seed=11, max_tokens=24))
    others = chat(client, temperature=1.7, n=5, seed=2, max_tokens=48, top_p=0.9, logprobs=True, stream=True)
    next(others)
    beside = text_of(chat(client, temperature=1.2, seed=11, max_tokens=24))
    others.close()
    assert beside == alone
