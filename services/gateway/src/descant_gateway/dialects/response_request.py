"""A request for a response, said as a chat completion."""

from typing import Any, Final

from msgspec import Raw

from descant_gateway.dialects.response_items import messages
from descant_wire.errors import invalid_request, unsupported_field
from descant_wire.responses import (
    CreateResponse,
    FunctionTool,
    NamedFunction,
    ObjectFormat,
    ReasoningOptions,
    SchemaFormat,
    TextOptions,
)

Said = dict[str, Any]
"""A part of a chat completion's body; made here, read by nobody here."""

_PASSED: Final = ("temperature", "top_p", "parallel_tool_calls", "metadata", "user", "prompt_cache_key")


def chat_request(request: CreateResponse, before: list[Raw], items: list[Raw]) -> Said:
    """`before` is all that was said up to now, `items` the request's own input. Raises ApiError 400."""
    refuse_fields(request)
    said: Said = {"model": request.model, "messages": _instructed(request, before, items)}
    said |= {name: value for name in _PASSED if (value := getattr(request, name)) is not None}
    if request.max_output_tokens is not None:
        said["max_completion_tokens"] = request.max_output_tokens
    if request.stream:
        said |= {"stream": True, "stream_options": {"include_usage": True}}
    return said | _reasoning(request.reasoning) | _form(request.text) | _tools(request)


def refuse_fields(request: CreateResponse) -> None:
    for field, accepted in request.only.items():
        value = getattr(request, field)
        if value is not None and value not in accepted:
            raise unsupported_field(f"`{field}` is not supported here; leave it out.", param=field)


def _instructed(request: CreateResponse, before: list[Raw], items: list[Raw]) -> list[Said]:
    said = messages([*before, *items], first=len(before))
    if not said:
        raise invalid_request("`input` is required.", param="input", code="missing_required_parameter")
    return said if request.instructions is None else [{"role": "system", "content": request.instructions}, *said]


def _reasoning(wanted: ReasoningOptions | None) -> Said:
    """Thoughts are given whole; nobody sums them up."""
    if wanted is None:
        return {}
    for name in ("summary", "generate_summary"):
        if getattr(wanted, name) not in (None, "auto"):
            place = f"reasoning.{name}"
            raise unsupported_field(f"`{place}` is not supported here: only null or auto is accepted.", param=place)
    return {} if wanted.effort is None else {"reasoning_effort": wanted.effort}


def _form(text: TextOptions | None) -> Said:
    said: Said = {}
    if text is None:
        return said
    if text.verbosity is not None:
        said["verbosity"] = text.verbosity
    match text.format:
        case ObjectFormat():
            said["response_format"] = {"type": "json_object"}
        case SchemaFormat() as form:
            schema: Said = {"name": form.name, "schema": form.schema}
            schema |= {} if form.description is None else {"description": form.description}
            schema |= {} if form.strict is None else {"strict": form.strict}
            said["response_format"] = {"type": "json_schema", "json_schema": schema}
    return said


def _tools(request: CreateResponse) -> Said:
    choice = request.tool_choice
    if not request.tools:
        if choice not in (None, "auto", "none"):
            raise invalid_request("`tool_choice` needs `tools`.", param="tool_choice")
        return {}
    said: Said = {"tools": [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools)]}
    if isinstance(choice, NamedFunction):
        if choice.type != "function" or not choice.name:
            raise unsupported_field("`tool_choice` must name a function.", param="tool_choice")
        said["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice is not None:
        said["tool_choice"] = choice
    return said


def _tool(tool: FunctionTool, place: str) -> Said:
    if tool.type != "function":
        raise unsupported_field(f"`{place}`: tools of the type {tool.type!r} are not run here.", param=place)
    if not tool.name:
        raise invalid_request(f"`{place}.name` is required.", param=f"{place}.name")
    given = {"name": tool.name, "parameters": tool.parameters, "description": tool.description, "strict": tool.strict}
    return {"type": "function", "function": {name: value for name, value in given.items() if value is not None}}
