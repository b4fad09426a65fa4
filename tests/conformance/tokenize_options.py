"""The engine's own tokenizer, in vLLM's shapes. The gateway has no such endpoint: these ask the engine."""

from typing import Any

import pytest
from openai import NotFoundError

from .asking import assert_refused
from .model_folder import token_id
from .option import Api, OptionTable, Status
from .stack import MODEL, Stack

TOKENIZE, DETOKENIZE = OptionTable(Api.TOKENIZE), OptionTable(Api.DETOKENIZE)
HI = [{"role": "user", "content": "hi"}]


def tokenize(stack: Stack, **body: Any) -> dict[str, Any]:
    answer = stack.engine.post("/tokenize", body={"model": MODEL, **body}, cast_to=object)
    assert isinstance(answer, dict)
    assert answer["count"] == len(answer["tokens"])
    return answer


def text_of(stack: Stack, tokens: list[int], **body: Any) -> str:
    answer = stack.engine.post("/detokenize", body={"tokens": tokens, **body}, cast_to=object)
    assert isinstance(answer, dict)
    text: str = answer["prompt"]
    return text


@TOKENIZE.works("prompt")
def prompt(stack: Stack) -> None:
    assert tokenize(stack, prompt="hi")["tokens"] == [token_id("h"), token_id("i")]


@TOKENIZE.works("messages", "Instead of `prompt`.")
def messages(stack: Stack) -> None:
    assert text_of(stack, tokenize(stack, messages=HI)["tokens"]) == "<user>hi\n<assistant>"


@TOKENIZE.works("model", "May be left out.")
def model(stack: Stack) -> None:
    assert tokenize(stack, model=None, prompt="hi")["count"] == 2
    with pytest.raises(NotFoundError):
        tokenize(stack, model="nobody", prompt="hi")


@TOKENIZE.works("add_special_tokens", "True for a prompt, false for messages, unless said otherwise.")
def add_special_tokens(stack: Stack) -> None:
    counts = [tokenize(stack, prompt="hi", add_special_tokens=given)["count"] for given in (True, False)]
    assert counts == [2, 2], "the suite's model has no begin token"


@TOKENIZE.works("add_generation_prompt")
def add_generation_prompt(stack: Stack) -> None:
    tokens = tokenize(stack, messages=HI, add_generation_prompt=False)["tokens"]
    assert text_of(stack, tokens) == "<user>hi\n"


@TOKENIZE.works("return_token_strs")
def return_token_strs(stack: Stack) -> None:
    assert tokenize(stack, prompt="hi", return_token_strs=True)["token_strs"] == ["h", "i"]


@TOKENIZE.works("continue_final_message", "Needs `add_generation_prompt: false`.")
def continue_final_message(stack: Stack) -> None:
    begun = [*HI, {"role": "assistant", "content": "He"}]
    answer = tokenize(stack, messages=begun, add_generation_prompt=False, continue_final_message=True)
    assert text_of(stack, answer["tokens"]) == "<user>hi\n<assistant>He"


@TOKENIZE.works("chat_template_kwargs")
def chat_template_kwargs(stack: Stack) -> None:
    tokens = tokenize(stack, messages=HI, chat_template_kwargs={"enable_thinking": True})["tokens"]
    assert text_of(stack, tokens) == "<user>hi\n<assistant><think>"


@TOKENIZE.works("tools")
def tools(stack: Stack) -> None:
    offered = [{"type": "function", "function": {"name": "weather"}}]
    assert "weather" in text_of(stack, tokenize(stack, messages=HI, tools=offered)["tokens"])


@DETOKENIZE.works("tokens")
def tokens(stack: Stack) -> None:
    assert text_of(stack, [token_id("h"), token_id("i")]) == "hi"


@DETOKENIZE.works("model", "May be left out.")
def detokenize_model(stack: Stack) -> None:
    assert text_of(stack, [token_id("h")], model=MODEL) == "h"


def refused(name: str, value: object) -> None:
    def check(stack: Stack) -> None:
        assert_refused(lambda **body: tokenize(stack, messages=HI, **body), name, value)

    TOKENIZE.add(name, Status.REFUSED, "", check)


refused("chat_template", "{{ messages }}")
refused("media_io_kwargs", {"image": {}})
refused("mm_processor_kwargs", {"a": 1})
