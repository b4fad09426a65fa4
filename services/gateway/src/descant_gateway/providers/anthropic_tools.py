"""Tools and how they are to be chosen, in the words of the Messages API."""

import msgspec
from msgspec import Raw, Struct

from descant_wire.errors import invalid_request

_NO_PARAMETERS = Raw(b'{"type":"object","properties":{}}')


class _Function(Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: Raw = _NO_PARAMETERS


class _Tool(Struct, frozen=True):
    function: _Function


class _Named(Struct, frozen=True):
    name: str


class _NamedTool(Struct, frozen=True):
    function: _Named


def tools(members: dict[str, Raw]) -> dict[str, object]:
    given = members.get("tools", Raw(b"null"))
    try:
        decoded = msgspec.json.decode(given, type=list[_Tool] | None)
    except msgspec.MsgspecError as error:
        raise invalid_request(f"A tool can't be translated: {error}.", param="tools") from None
    return {"tools": [_tool(tool.function) for tool in decoded]} if decoded else {}


def tool_choice(members: dict[str, Raw]) -> dict[str, object]:
    given = members.get("tool_choice", Raw(b"null"))
    try:
        choice = msgspec.json.decode(given, type=str | _NamedTool | None)
    except msgspec.MsgspecError as error:
        raise invalid_request(f"tool_choice can't be translated: {error}.", param="tool_choice") from None
    one_at_a_time = bytes(members.get("parallel_tool_calls", b"null")) == b"false"
    said = _choice(choice)
    if one_at_a_time and "tools" in members:
        said = (said or {"type": "auto"}) | {"disable_parallel_tool_use": True}
    return {"tool_choice": said} if said else {}


def _choice(choice: str | _NamedTool | None) -> dict[str, object]:
    match choice:
        case None:
            return {}
        case _NamedTool():
            return {"type": "tool", "name": choice.function.name}
        case "auto" | "none":
            return {"type": choice}
        case "required":
            return {"type": "any"}
    raise invalid_request(f"tool_choice {choice!r} is not known.", param="tool_choice")


def _tool(function: _Function) -> dict[str, object]:
    said: dict[str, object] = {"name": function.name, "input_schema": function.parameters}
    return said if function.description is None else said | {"description": function.description}
