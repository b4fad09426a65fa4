"""Anthropic's Messages API, asked by Anthropic's client."""

from typing import Any

import pytest

from .asking import call
from .option import Api, OptionTable, Status
from .stack import MODEL, Stack
from .tool_options import tool

MESSAGES = OptionTable(Api.MESSAGES)
HELLO = [{"role": "user", "content": "Hello"}]


def anthropic_tool(name: str) -> dict[str, Any]:
    function = tool(name)["function"]
    return {"name": function["name"], "input_schema": function["parameters"]}


TOOLS = [anthropic_tool("weather"), anthropic_tool("time")]


def create(stack: Stack, **options: Any) -> Any:
    defaults = {"model": MODEL, "messages": HELLO, "max_tokens": 8, "temperature": 0}
    return call(stack.anthropic.messages.create, defaults | options)


def ask(stack: Stack, **options: Any) -> Any:
    """The message, which came whole and as the client's own stream alike."""
    whole = create(stack, **options)
    events = list(create(stack, stream=True, **options))
    said = "".join(
        event.delta.text for event in events if getattr(getattr(event, "delta", None), "type", "") == "text_delta"
    )
    assert said == text(whole)
    ended = next(event for event in events if event.type == "message_delta")
    assert (ended.delta.stop_reason, ended.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    return whole


def text(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def num_input(message: Any) -> int:
    return int(message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0))


def assert_refused(stack: Stack, field: str, value: object, **others: Any) -> None:
    """400 in Anthropic's shape, whose message names the field."""
    import anthropic  # late: see fields.py

    with pytest.raises(anthropic.BadRequestError) as refusal:
        create(stack, **{field: value}, **others)
    assert isinstance(refusal.value.body, dict)
    error = refusal.value.body["error"]
    assert error["type"] == "invalid_request_error"
    assert field in error["message"]


@MESSAGES.works("model")
def model(stack: Stack) -> None:
    import anthropic

    assert create(stack).model == MODEL
    with pytest.raises(anthropic.NotFoundError):
        create(stack, model="nobody")


@MESSAGES.works(
    "messages",
    "Texts, tool calls and their results, thinking. An answer goes on from an assistant's text that comes last. Images"
    " and documents are refused.",
)
def messages(stack: Stack) -> None:
    plain = ask(stack)
    assert (plain.type, plain.role, plain.usage.output_tokens) == ("message", "assistant", 8)
    blocks = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    assert text(ask(stack, messages=blocks)) == text(plain)
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}
    used = [
        *HELLO,
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "snow"}]},
    ]
    assert num_input(ask(stack, messages=used, tools=TOOLS)) > num_input(plain)
    begun = [*HELLO, {"role": "assistant", "content": text(plain)[:3]}]
    assert num_input(ask(stack, messages=begun)) == num_input(plain) + 3
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    assert_refused(stack, "messages", [{"role": "user", "content": [image]}])


@MESSAGES.works("max_tokens", "At least 1; the reason to stop is then `max_tokens`.")
def max_tokens(stack: Stack) -> None:
    cut = ask(stack, max_tokens=3)
    assert (cut.usage.output_tokens, cut.stop_reason) == (3, "max_tokens")
    assert_refused(stack, "max_tokens", 0)


@MESSAGES.works("system", "A text or text blocks.")
def system(stack: Stack) -> None:
    counts = {num_input(ask(stack, system=given)) for given in ("Be brief.", [{"type": "text", "text": "Be brief."}])}
    assert counts == {num_input(ask(stack)) + len("<system>Be brief.\n")}


@MESSAGES.works("stop_sequences", "Up to 16; `stop_sequence` tells which.")
def stop_sequences(stack: Stack) -> None:
    whole = text(create(stack))
    character = next(each for each in whole if each.isascii() and each.isprintable())
    cut = ask(stack, stop_sequences=[character])
    assert text(cut) == whole[: whole.index(character)]
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", character)
    assert_refused(stack, "stop_sequences", ["x"] * 17)


@MESSAGES.works("stream", "Anthropic's events.")
def stream(stack: Stack) -> None:
    types = [event.type for event in create(stack, stream=True)]
    assert types[0] == "message_start"
    assert types[-2:] == ["message_delta", "message_stop"]
    greedy = {"temperature": 0}
    with stack.anthropic.messages.stream(model=MODEL, messages=HELLO, max_tokens=8, extra_body=greedy) as events:  # type: ignore[arg-type]
        assert text(events.get_final_message()) == text(create(stack))


@MESSAGES.works("temperature")
def temperature(stack: Stack) -> None:
    assert text(create(stack)) == text(create(stack)) != text(create(stack, temperature=1))
    assert_refused(stack, "temperature", 3)


@MESSAGES.works("top_p")
def top_p(stack: Stack) -> None:
    assert text(create(stack, temperature=1, top_p=0.001)) == text(create(stack))
    assert_refused(stack, "top_p", 2)


@MESSAGES.works("top_k")
def top_k(stack: Stack) -> None:
    assert text(create(stack, temperature=1, top_k=1)) == text(create(stack))
    assert_refused(stack, "top_k", -2)


@MESSAGES.works("tools", "Tools of the client's own; those of Anthropic's servers are refused by name.")
def tools(stack: Stack) -> None:
    assert num_input(create(stack, tools=TOOLS)) > num_input(create(stack))
    assert_refused(stack, "tools", [{"type": "web_search_20250305", "name": "web_search"}])


@MESSAGES.works("tool_choice", "auto, any, tool and none; `disable_parallel_tool_use`.")
def tool_choice(stack: Stack) -> None:
    for choice in ({"type": "tool", "name": "time"}, {"type": "any", "disable_parallel_tool_use": True}):
        used = called(stack, choice)
        assert used.name in ("weather", "time")
        assert used.input["city"] in ("Oslo", "Rome")
    none = create(stack, tools=TOOLS, tool_choice={"type": "none"})
    assert all(block.type == "text" for block in none.content)


def called(stack: Stack, choice: dict[str, Any]) -> Any:
    """A random model may write spaces up to the limit: one of several answers is a call."""
    for _ in range(4):
        answer = create(stack, tools=TOOLS, tool_choice=choice, max_tokens=300, temperature=1)
        if answer.stop_reason == "tool_use":
            (used,) = (block for block in answer.content if block.type == "tool_use")
            return used
    raise AssertionError(answer)


@MESSAGES.works("metadata", "`user_id` keeps a user's requests on one backend.")
def metadata(stack: Stack) -> None:
    assert text(create(stack, metadata={"user_id": "somebody"})) == text(create(stack))


@MESSAGES.differs("cache_control", "Taken; prefixes are found by content, marked or not, and reads are counted.")
def cache_control(stack: Stack) -> None:
    long = [{"role": "user", "content": "z" * 64}]
    create(stack, messages=long)
    again = create(stack, messages=long, cache_control={"type": "ephemeral"})
    assert again.usage.cache_read_input_tokens >= 48
    assert again.usage.input_tokens < 40


def refused(name: str, value: object, note: str = "", harmless: tuple[object, ...] = ()) -> None:
    def check(stack: Stack) -> None:
        assert_refused(stack, name, value)
        for taken in harmless:
            assert text(create(stack, **{name: taken})) == text(create(stack))

    MESSAGES.add(name, Status.REFUSED, note, check)


refused("thinking", {"type": "enabled", "budget_tokens": 1024}, "Other than disabled.", ({"type": "disabled"},))
refused("service_tier", "priority", "Other than auto and standard_only.", ("auto", "standard_only"))
refused("container", "c1", "There is no code execution.")
refused("inference_geo", "eu")
refused("output_config", {"effort": "low"})
refused("output_format", {"type": "json_schema", "schema": {}}, "OpenAI's `response_format` has it.")
refused("context_management", {"edits": []})
refused("mcp_servers", [{"type": "url", "url": "x", "name": "x"}], "", ([],))
refused("diagnostics", {"a": 1})
refused("speed", "fast")


def header_only(name: str) -> None:
    def check(stack: Stack) -> None:
        assert text(create(stack, **{name: "mine"})) == text(create(stack))

    MESSAGES.add(name, Status.DIFFERS, "Its client sends a header, which nobody reads: a key has its team.", check)


header_only("user_profile_id")
header_only("workspace_id")
