"""The items that a response reads, said as messages of a chat completion. What has no word there is refused by name."""

import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from descant_wire.errors import ApiError, invalid_request, unsupported_field

Said = dict[str, Any]
"""A message of a chat completion; made here, read by nobody here."""

_TEXTS: Final = ("input_text", "output_text", "text", "refusal", "reasoning_text")
_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "message": ("content",),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}
_PREFIXES: Final = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


class _Part(Struct, frozen=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class _Item(Struct, frozen=True):
    """Any kind; which fields it needs is looked at below."""

    type: str = "message"
    role: str = "user"
    content: str | list[_Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[_Part] | None = None


def input_items(given: str | list[dict[str, Raw]]) -> list[Raw]:
    """Each with a type and an id, as they are stored."""
    if isinstance(given, str):
        content = [{"type": "input_text", "text": given}]
        given = [{"role": Raw(b'"user"'), "content": Raw(msgspec.json.encode(content))}]
    return [_named(item) for item in given]


def messages(items: Iterable[Raw], first: int = 0) -> list[Said]:
    """Thoughts and calls that follow each other are one message of the assistant's.

    Raises:
        ApiError: 400. Items are counted from `first`, where those of the request itself begin.
    """
    said: list[Said] = []
    thought = ""
    for index, raw in enumerate(items):
        place = f"input[{index - first}]"
        item = _read(raw, place)
        match item.type:
            case "message":
                said.append(_message(item, place, thought))
                thought = ""
            case "function_call":
                _add_call(said, item, place, thought)
                thought = ""
            case "function_call_output":
                said.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output, place)})
            case "reasoning":
                thought += _text(item.content, place)
            case _:
                raise unsupported_field(f"`{place}`: items of the type {item.type!r} are not taken here.", param=place)
    return said


def _read(raw: Raw, place: str) -> _Item:
    try:
        item = msgspec.json.decode(raw, type=_Item)
    except msgspec.MsgspecError as error:
        raise invalid_request(f"`{place}` can't be read: {error}.", param=place) from None
    for name in _REQUIRED.get(item.type, ()):
        if getattr(item, name) is None:
            raise _missing(f"{place}.{name}")
    return item


def _missing(place: str) -> ApiError:
    return invalid_request(f"`{place}` is required.", param=place, code="missing_required_parameter")


def _message(item: _Item, place: str, thought: str) -> Said:
    if item.role not in ("user", "assistant", "system", "developer"):
        raise invalid_request(f"`{place}.role` is {item.role!r}, which is none.", param=f"{place}.role")
    said: Said = {"role": item.role, "content": _text(item.content, place)}
    return said | ({"reasoning_content": thought} if thought and item.role == "assistant" else {})


def _add_call(said: list[Said], item: _Item, place: str, thought: str) -> None:
    _require_object(item.arguments or "", f"{place}.arguments")
    call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
    if not said or said[-1]["role"] != "assistant":
        said.append({"role": "assistant", "content": None})
    said[-1].setdefault("tool_calls", []).append(call)
    if thought:
        said[-1]["reasoning_content"] = thought


def _require_object(arguments: str, place: str) -> None:
    try:
        msgspec.json.decode(arguments or "{}", type=dict[str, Raw])
    except msgspec.MsgspecError:
        raise invalid_request(
            f"`{place}` must be the text of a JSON object.", param=place, code="invalid_value"
        ) from None


def _text(content: str | list[_Part] | None, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_text_of(part, f"{place}.content[{index}]") for index, part in enumerate(content))


def _text_of(part: _Part, place: str) -> str:
    if part.type not in _TEXTS:
        raise unsupported_field(f"`{place}`: parts of the type {part.type!r} are not taken here.", param=place)
    name = "refusal" if part.type == "refusal" else "text"
    text: str | None = getattr(part, name)
    if text is None:
        raise _missing(f"{place}.{name}")
    return text


def _named(item: dict[str, Raw]) -> Raw:
    kind = bytes(item.get("type", b'"message"')).decode().strip('"')
    named = {"type": Raw(msgspec.json.encode(kind))} | item
    if bytes(named.get("id", b"null")) == b"null":
        named["id"] = Raw(msgspec.json.encode(new_id(_PREFIXES.get(kind, "item"))))
    if kind == "message" and bytes(text := named.get("content", Raw(b"null"))).startswith(b'"'):
        named["content"] = Raw(msgspec.json.encode([{"type": "input_text", "text": text}]))
    return Raw(msgspec.json.encode(named))


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
