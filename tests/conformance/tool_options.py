"""Tools of chats. The bare model is led to its words by a grammar; what is read from them is the server's work."""

import json
from typing import Any

from .asking import Chats, assert_refused
from .form_options import COMPACT
from .sampling_options import CHAT
from .stack import Stack


def tool(name: str, argument: str = "city") -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {argument: {"enum": ["Oslo", "Rome"]}},
        "required": [argument],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


PLENTY: dict[str, Any] = {"max_tokens": 300, "logit_bias": COMPACT}
TOOLS = [tool("weather"), tool("time")]


def said(*calls: str) -> dict[str, Any]:
    """Makes the model say calls in the form of its template, of its own accord as far as the server can tell."""
    text = "".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
    return {"structured_outputs": {"choice": [text]}, **PLENTY}


WEATHER, TIME = '{"name": "weather", "arguments": {"city": "Oslo"}}', '{"name": "time", "arguments": {"city": "Rome"}}'


def calls_of(chats: Chats, **options: Any) -> list[tuple[str, Any]]:
    """The calls of an answer that came whole and streamed alike."""
    (choice,) = chats.ask(**options).choices
    assert choice.finish_reason == "tool_calls"
    return [(name, json.loads(arguments)) for name, arguments in choice.calls.values()]


@CHAT.works(
    "tools",
    "Functions. Calls are read in the forms of Hermes and Qwen, Llama 3, Mistral, pythonic and plain JSON, by the chat"
    " template or `--tool-call-parser`. Custom tools are refused.",
)
def tools(stack: Stack) -> None:
    assert calls_of(stack.chats, tools=TOOLS, **said(WEATHER)) == [("weather", {"city": "Oslo"})]
    plain, offered = stack.chats.whole().usage, stack.chats.whole(tools=TOOLS).usage
    assert offered.prompt_tokens > plain.prompt_tokens
    conversation = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "snow"},
    ]
    assert stack.chats.ask(messages=conversation, tools=TOOLS).num_tokens == 8
    custom = {"type": "custom", "custom": {"name": "f"}}
    assert_refused(stack.chats.create, "tools", [custom])
    assert_refused(stack.chats.create, "tools", [TOOLS[0], TOOLS[0]])


@CHAT.works("tool_choice", "auto, none, required and a named function; required and named are held to by a grammar.")
def tool_choice(stack: Stack) -> None:
    required = calls_of(stack.chats, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, **PLENTY)
    assert required[0][0] in ("weather", "time")
    assert required[0][1]["city"] in ("Oslo", "Rome")
    named = {"type": "function", "function": {"name": "time"}}
    (choice,) = stack.chats.ask(tools=TOOLS, tool_choice=named, **PLENTY).choices
    assert choice.calls[0][0] == "time"
    assert json.loads(choice.calls[0][1])["city"] in ("Oslo", "Rome")
    assert stack.chats.ask(tools=TOOLS, tool_choice="none", **said(WEATHER)).choices[0].calls == {}
    unknown = {"type": "function", "function": {"name": "nobody"}}
    assert_refused(stack.chats.create, "tool_choice", unknown, tools=TOOLS)
    assert_refused(stack.chats.create, "tool_choice", "required")


@CHAT.works("parallel_tool_calls", "False allows one call.")
def parallel_tool_calls(stack: Stack) -> None:
    options = {"tools": TOOLS, **said(WEATHER, TIME)}
    both = [("weather", {"city": "Oslo"}), ("time", {"city": "Rome"})]
    assert calls_of(stack.chats, **options) == both
    (choice,) = stack.chats.whole(parallel_tool_calls=False, **options).choices
    assert [name for name, _ in choice.calls.values()] == ["weather"]
