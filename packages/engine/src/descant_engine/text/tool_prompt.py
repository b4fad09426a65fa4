"""Tools for models whose chat template knows nothing of them: told in words, and asked for in plain JSON.

Pure functions on messages; templates that read `tools` are not concerned.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

INSTRUCTIONS = """You have access to these functions:
{tools}
To call functions, answer with nothing but a JSON list: [{{"name": "<function>", "parameters": {{...}}}}]."""

PlainMessage = dict[str, Any]


def with_tools_told(messages: Sequence[PlainMessage], tools: Sequence[Mapping[str, Any]]) -> list[PlainMessage]:
    """The instructions go into the system message, the first one if there is any."""
    told = INSTRUCTIONS.format(tools="\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools))
    if messages and messages[0]["role"] == "system":
        first = messages[0] | {"content": f"{messages[0]['content']}\n\n{told}".strip()}
        return [first, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]


def with_calls_as_content(messages: Sequence[PlainMessage]) -> list[PlainMessage]:
    """Calls of earlier turns, in the form that the instructions ask for."""
    return [_as_content(message) for message in messages]


def _as_content(message: PlainMessage) -> PlainMessage:
    if not message.get("tool_calls"):
        return message
    calls = [
        {"name": call["function"]["name"], "parameters": call["function"]["arguments"]}
        for call in message["tool_calls"]
    ]
    content = "\n".join(filter(None, [message["content"], json.dumps(calls, ensure_ascii=False)]))
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": content}
