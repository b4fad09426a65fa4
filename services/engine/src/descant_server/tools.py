"""From the wire's tools to what the engine needs: tools for the template, a grammar where a call must come, and how the
output is to be read."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from descant_engine.grammar.alternatives import (
    Alternative,
    JsonPart,
    Part,
    RegexPart,
    TextPart,
    TokenPart,
    alternatives_spec,
)
from descant_engine.grammar.schema import read_schema
from descant_engine.grammar.spec import GrammarKind, GrammarRefused, GrammarSpec
from descant_engine.text.tokenizer import Tokenizer
from descant_engine.text.tool_calls.parsers import CallSyntax
from descant_server.chat_model import ChatModel
from descant_server.structured_output import Demand, invalid_grammar
from descant_wire.chat import ChatCompletionRequest
from descant_wire.errors import invalid_request
from descant_wire.tools import NamedToolChoice, Tool

NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

MAX_CALLS = 32
"""In one answer whose calls a grammar sees to: a small model, once it calls, may not find an end."""


def tools_of(request: ChatCompletionRequest) -> list[Tool]:
    """Those that the model may call.

    Raises:
        ApiError: 400, two of one name, or a choice of tools that are not there.
    """
    tools = request.tools or []
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise invalid_request("`tools`: each needs a name of its own.", param="tools")
    if request.tool_choice not in (None, "none", "auto") and not tools:
        raise invalid_request("`tool_choice` needs `tools`.", param="tool_choice")
    if isinstance(request.tool_choice, NamedToolChoice) and request.tool_choice.function.name not in names:
        raise invalid_request(
            f"`tool_choice` names {request.tool_choice.function.name!r}, which is not among `tools`.",
            param="tool_choice",
        )
    return [] if request.tool_choice == "none" else tools


def for_template(tools: Sequence[Tool]) -> tuple[dict[str, Any], ...]:
    """In OpenAI's form, as plain data."""
    return tuple(_plain(tool) for tool in tools)


def _plain(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.function.name, "description": tool.function.description or ""}
    return {"type": "function", "function": function | {"parameters": _parameters(tool)}}


def tool_demand(request: ChatCompletionRequest, tools: list[Tool]) -> Demand | None:
    """The form of an output that must be a call; None where it need not."""
    try:
        if isinstance(request.tool_choice, NamedToolChoice):
            (named,) = [tool for tool in tools if tool.function.name == request.tool_choice.function.name]
            return _json_demand(_parameters(named))
        if request.tool_choice == "required":
            return _json_demand(_calls_schema(tools, is_single=request.parallel_tool_calls is False))
    except (GrammarRefused, RecursionError) as error:
        raise invalid_grammar(str(error), "tools") from None
    return None


def content_or_calls(
    demand: Demand, request: ChatCompletionRequest, tools: list[Tool], model: ChatModel
) -> Demand | None:
    """The form of an output that keeps to `demand` or calls tools as the model does; None if no grammar can say so.

    Raises:
        ApiError: 400, a tool's parameters are no schema.
    """
    forms, syntax = _content_forms(demand.grammar), model.tools.syntax
    if not forms or syntax is None:
        return None
    calls = JsonPart(_calls(tools, syntax, is_single=request.parallel_tool_calls is False))
    parts = (*_marker(syntax.begin, model.tokenizer), calls, *_marker(syntax.end, model.tokenizer))
    separator = None if request.parallel_tool_calls is False else syntax.separator
    try:
        return Demand(demand.field, alternatives_spec([*forms, Alternative(parts, separator)]))
    except (GrammarRefused, RecursionError) as error:
        raise invalid_grammar(str(error), "tools") from None


def _content_forms(grammar: GrammarSpec) -> list[Alternative]:
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return [Alternative((JsonPart(read_schema(grammar.text)),))]
        case GrammarKind.REGEX:
            return [Alternative((RegexPart(grammar.text),))]
        case GrammarKind.CHOICE:
            return [Alternative((TextPart(choice),)) for choice in msgspec.json.decode(grammar.text, type=list[str])]
        case _:
            return []


def _marker(text: str, tokenizer: Tokenizer) -> tuple[Part, ...]:
    """Special tokens have no text that a grammar could ask for."""
    token_id = tokenizer.special_token_id(text.strip())
    if token_id is None:
        return (TextPart(text),) if text else ()
    before, _, after = text.partition(text.strip())
    return tuple(
        TextPart(part) if isinstance(part, str) else TokenPart(part) for part in (before, token_id, after) if part
    )


def _calls(tools: list[Tool], syntax: CallSyntax, *, is_single: bool) -> dict[str, Any]:
    schema = _calls_schema(tools, arguments_key=syntax.arguments_key, is_single=is_single)
    return schema if syntax.is_list else schema["items"] | {"$defs": schema["$defs"]}


def _json_demand(schema: dict[str, Any]) -> Demand:
    return Demand("tools", GrammarSpec(GrammarKind.JSON_SCHEMA, msgspec.json.encode(schema).decode()))


def _calls_schema(tools: list[Tool], *, is_single: bool, arguments_key: str = "parameters") -> dict[str, Any]:
    """A list of {"name": ..., "parameters": ...}, in this order: so the arguments can be passed on as they come."""
    schema: dict[str, Any] = {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [_call_schema(index, tool, arguments_key) for index, tool in enumerate(tools)]},
        "$defs": {f"tool{index}": _moved(_parameters(tool), index) for index, tool in enumerate(tools)},
    }
    return schema | {"maxItems": 1 if is_single else MAX_CALLS}


def _call_schema(index: int, tool: Tool, arguments_key: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, arguments_key: {"$ref": f"#/$defs/tool{index}"}},
        "required": ["name", arguments_key],
        "additionalProperties": False,
    }


def _moved(value: Any, index: int) -> Any:
    """A schema whose root is now a definition: its references begin there."""
    if isinstance(value, list):
        return [_moved(part, index) for part in value]
    if not isinstance(value, dict):
        return value
    return {key: _moved_reference(part, index) if key == "$ref" else _moved(part, index) for key, part in value.items()}


def _moved_reference(reference: Any, index: int) -> Any:
    is_local = isinstance(reference, str) and reference.startswith("#")
    return f"#/$defs/tool{index}{reference[1:]}" if is_local else reference


def _parameters(tool: Tool) -> dict[str, Any]:
    return tool.function.parameters or NO_ARGUMENTS


def arguments_object(arguments: str, path: str) -> Mapping[str, Any]:
    """A call of an earlier turn, for the template. Raises ApiError 400."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise invalid_request(f"`{path}` must be the text of a JSON object.", param=path, code="invalid_value")
    return value
