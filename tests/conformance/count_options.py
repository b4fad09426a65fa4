"""Anthropic's count of a message's tokens: what the same message is charged for."""

from typing import Any

import pytest

from .asking import call
from .message_options import HELLO, TOOLS, create, num_input
from .option import Api, OptionTable, Status
from .stack import MODEL, Stack

COUNT_TOKENS = OptionTable(Api.COUNT_TOKENS)
SYSTEM = "Be brief."


def count(stack: Stack, **options: Any) -> int:
    counted = call(stack.anthropic.messages.count_tokens, {"model": MODEL, "messages": HELLO, **options})
    return int(counted.input_tokens)


def counts_what_is_charged(stack: Stack, **options: Any) -> None:
    assert count(stack, **options) == num_input(create(stack, max_tokens=1, **options))


@COUNT_TOKENS.works("model", "Of a backend that has vLLM's /tokenize, as ours do.")
def model(stack: Stack) -> None:
    import anthropic  # late: see fields.py

    with pytest.raises(anthropic.NotFoundError):
        count(stack, model="nobody")


@COUNT_TOKENS.works("messages")
def messages(stack: Stack) -> None:
    counts_what_is_charged(stack)
    counts_what_is_charged(stack, messages=[*HELLO, {"role": "assistant", "content": "Hi"}, *HELLO])
    counts_what_is_charged(stack, messages=[*HELLO, {"role": "assistant", "content": "Hi"}])


@COUNT_TOKENS.works("system")
def system(stack: Stack) -> None:
    counts_what_is_charged(stack, system=SYSTEM)
    assert count(stack, system=SYSTEM) > count(stack)


@COUNT_TOKENS.works("tools")
def tools(stack: Stack) -> None:
    counts_what_is_charged(stack, tools=TOOLS)
    assert count(stack, tools=TOOLS) > count(stack)


@COUNT_TOKENS.works("tool_choice", "Tools that may not be called are not in the prompt.")
def tool_choice(stack: Stack) -> None:
    counts_what_is_charged(stack, tools=TOOLS, tool_choice={"type": "none"})
    assert count(stack, tools=TOOLS, tool_choice={"type": "none"}) == count(stack)


@COUNT_TOKENS.differs("cache_control", "Taken; prefixes are found by content, marked or not.")
def cache_control(stack: Stack) -> None:
    assert count(stack, cache_control={"type": "ephemeral"}) == count(stack)


@COUNT_TOKENS.differs("user_profile_id", "Its client sends a header, which nobody reads: a key has its team.")
def user_profile_id(stack: Stack) -> None:
    assert count(stack, user_profile_id="mine") == count(stack)


@COUNT_TOKENS.differs("workspace_id", "Its client sends a header, which nobody reads: a key has its team.")
def workspace_id(stack: Stack) -> None:
    assert count(stack, workspace_id="mine") == count(stack)


def refused(name: str, value: object, note: str = "", harmless: tuple[object, ...] = ()) -> None:
    """Sent as it is: for some options the client has forms of its own."""

    def check(stack: Stack) -> None:
        import anthropic

        with pytest.raises(anthropic.BadRequestError, match=name):
            count(stack, extra_body={name: value})
        for taken in harmless:
            assert count(stack, extra_body={name: taken}) == count(stack)

    COUNT_TOKENS.add(name, Status.REFUSED, note, check)


refused("thinking", {"type": "enabled", "budget_tokens": 1024}, "Other than disabled.", ({"type": "disabled"},))
refused("context_management", {"edits": []})
refused("mcp_servers", [{"type": "url", "url": "x", "name": "x"}], "", ([],))
refused("output_config", {"effort": "low"})
refused("output_format", {"type": "json_schema", "schema": {}})
refused("speed", "fast")
