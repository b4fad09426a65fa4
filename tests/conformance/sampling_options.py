"""What chats and texts have in common, of OpenAI's reference."""

from typing import Any

import pytest
from openai import NotFoundError

from .asking import SEED, Asking, Chats, assert_refused
from .model_folder import token_id
from .option import Api, GenerationTable, OptionTable, changes_nothing

CHAT = OptionTable(Api.CHAT)
COMPLETIONS = OptionTable(Api.COMPLETIONS)
BOTH = GenerationTable(CHAT, COMPLETIONS)
LONG = 24
"""Enough tokens for the bare model to repeat itself."""


@BOTH.works("model", "The base model or an adapter, by name; 404 for what is not there or not the key's.")
def model(asking: Asking) -> None:
    assert asking.create().model == "tiny"
    with pytest.raises(NotFoundError) as missing:
        asking.create(model="nobody")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert "nobody" in missing.value.message


@BOTH.works("stream", "Server-sent events, ended by `[DONE]`. Together they are the answer that comes without it.")
def stream(asking: Asking) -> None:
    # Tokens that come while the server is busy share a chunk.
    chunks = list(asking.create(stream=True, max_tokens=64))
    assert len(chunks) > 3
    assert all(chunk.usage is None for chunk in chunks)
    assert asking.ask().num_tokens == 8


@BOTH.works(
    "stream_options",
    "`include_usage` gives the counts of the answer that is not streamed. `include_obfuscation` and vLLM's"
    " `continuous_usage_stats` are refused when true.",
)
def stream_options(asking: Asking) -> None:
    usage = [chunk.usage for chunk in asking.create(stream=True, stream_options={"include_usage": True})][-1]
    assert usage is not None
    assert usage.completion_tokens == asking.whole().num_tokens
    for option in ("include_obfuscation", "continuous_usage_stats"):
        assert_refused(asking.create, "stream_options", {option: True}, stream=True)


@BOTH.works("temperature", "0 to 2; 0 is greedy.")
def temperature(asking: Asking) -> None:
    greedy = {asking.ask(temperature=0, seed=seed).text for seed in (1, 2)}
    drawn = {asking.ask(temperature=1.5, seed=seed).text for seed in (1, 2)}
    assert (len(greedy), len(drawn), len(greedy & drawn)) == (1, 2, 0)
    assert_refused(asking.create, "temperature", 2.5)


@BOTH.works("top_p")
def top_p(asking: Asking) -> None:
    assert asking.ask(temperature=1, top_p=0.001).text == asking.ask().text != asking.ask(temperature=1).text
    assert_refused(asking.create, "top_p", 1.5)


@BOTH.works("seed", "The same answer again, whatever else is in the batch.")
def seed(asking: Asking) -> None:
    same = {asking.ask(temperature=1, seed=SEED).text for _ in range(2)}
    assert len(same | {asking.ask(temperature=1, seed=SEED + 1).text}) == 2
    unseeded = {asking.whole(temperature=1, seed=None).text for _ in range(2)}
    assert len(unseeded) == 2


def scored(asking: Asking) -> dict[str, Any]:
    """What asks this endpoint for the log-probabilities of its tokens, each with a name of its own."""
    return {"logprobs": True if isinstance(asking, Chats) else 0, "return_tokens_as_token_ids": True}


def repeats(asking: Asking, **options: object) -> int:
    """How many of an output's tokens have been there before."""
    tokens = asking.ask(**scored(asking), max_tokens=LONG, **options).choices[0].tokens
    return len(tokens) - len(set(tokens))


@BOTH.works("presence_penalty", "-2 to 2.")
def presence_penalty(asking: Asking) -> None:
    assert repeats(asking, presence_penalty=2) == 0
    assert repeats(asking, presence_penalty=-2) == LONG - 1
    assert_refused(asking.create, "presence_penalty", 3)


@BOTH.works("frequency_penalty", "-2 to 2.")
def frequency_penalty(asking: Asking) -> None:
    assert repeats(asking, frequency_penalty=2) == 0
    assert repeats(asking, frequency_penalty=-2) == LONG - 1
    assert_refused(asking.create, "frequency_penalty", -3)


@BOTH.works("max_tokens", "At least 1. Without it a chat goes on to the end of the context, a text for 16 tokens.")
def max_tokens(asking: Asking) -> None:
    answer = asking.ask(max_tokens=5)
    assert (answer.num_tokens, answer.choices[0].finish_reason) == (5, "length")
    assert_refused(asking.create, "max_tokens", -1)


@BOTH.works(
    "stop", "A string or up to 16 (OpenAI: 4). The text ends before it; vLLM's `stop_reason` says which it was."
)
def stop(asking: Asking) -> None:
    text = asking.ask(max_tokens=LONG, allowed_token_ids=LETTERS).text
    for given in (text[5:8], ["?", text[5:8]]):
        answer = asking.ask(max_tokens=LONG, allowed_token_ids=LETTERS, stop=given)
        assert answer.text == text[: text.index(text[5:8])]
        assert (answer.choices[0].finish_reason, answer.choices[0].stop_reason) == ("stop", text[5:8])
    assert_refused(asking.create, "stop", ["x"] * 17)


LETTERS = [token_id(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]


@BOTH.works("n", "Up to 128, which share the prompt's memory. The prompt is counted once.")
def several(asking: Asking) -> None:
    one, three = asking.ask(temperature=1), asking.ask(temperature=1, n=3)
    assert len(set(three.texts)) == 3
    assert three.num_tokens == 3 * one.num_tokens
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert_refused(asking.create, "n", 0)


@BOTH.works("logit_bias", "Up to 1,024 tokens; 100 forces and -100 forbids one.")
def logit_bias(asking: Asking) -> None:
    assert asking.ask(logit_bias={token_id("x"): 100}).text == "x" * 8
    forced = {token_id("x"): 50, token_id("y"): 50}
    assert asking.ask(logit_bias={**forced, token_id("x"): -100}).text == "y" * 8
    assert_refused(asking.create, "logit_bias", {token_id("x"): 101})


@BOTH.differs(
    "user",
    "Keeps a user's requests on one backend; nothing else.",
)
def user(asking: Asking) -> None:
    changes_nothing(asking, user="somebody")
