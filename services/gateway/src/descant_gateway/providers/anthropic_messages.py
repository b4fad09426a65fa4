"""A conversation: OpenAI's list of messages as the Messages API's system text and turns of blocks."""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Raw, Struct, field

from descant_wire.errors import invalid_request

_DATA_URL: Final = "data:"


class _ImageUrl(Struct, frozen=True):
    url: str


class _Part(Struct, frozen=True):
    type: str
    text: str = ""
    image_url: _ImageUrl | None = None


class _Function(Struct, frozen=True):
    name: str
    arguments: str = ""


class _ToolCall(Struct, frozen=True):
    id: str
    function: _Function


class _Message(Struct, frozen=True):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None


Block = dict[str, Any]
"""As the Messages API has it; made here, read by nobody here."""


class Turn(Struct):
    role: Annotated[str, "user or assistant"]
    content: list[Block] = field(default_factory=list)


class Conversation(Struct, frozen=True):
    system: str
    messages: list[Turn]


_decoder = msgspec.json.Decoder(list[_Message])


def conversation(messages: Raw) -> Conversation:
    """Raises ApiError 400 for a message that can't be said so."""
    try:
        said = _decoder.decode(messages)
    except msgspec.MsgspecError as error:
        raise invalid_request(f"A message can't be translated: {error}.", param="messages") from None
    system: list[str] = []
    turns: list[Turn] = []
    for message in said:
        if message.role in ("system", "developer"):
            system.append("".join(block["text"] for block in _blocks(message) if block["type"] == "text"))
        else:
            _add(turns, _role(message), _tool_result(message) if message.role == "tool" else _turn(message))
    return Conversation("\n\n".join(system), turns)


def _add(turns: list[Turn], role: str, blocks: list[Block]) -> None:
    """Turns alternate: what one side says in a row is one turn."""
    if not turns or turns[-1].role != role:
        turns.append(Turn(role))
    turns[-1].content += blocks


def _role(message: _Message) -> str:
    if message.role in ("user", "tool"):
        return "user"
    if message.role == "assistant":
        return "assistant"
    raise invalid_request(f"{message.role!r} is not the role of a message.", param="messages")


def _turn(message: _Message) -> list[Block]:
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.function.name, "input": _arguments(call.function.arguments)}
        for call in message.tool_calls or ()
    ]
    return _blocks(message) + calls


def _tool_result(message: _Message) -> list[Block]:
    if not message.tool_call_id:
        raise invalid_request("A message of the role 'tool' needs a tool_call_id.", param="messages")
    return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": _blocks(message)}]


def _blocks(message: _Message) -> list[Block]:
    if message.content is None or message.content == "":
        return []
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}]
    return [_block(part) for part in message.content]


def _block(part: _Part) -> Block:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    if part.type == "image_url" and part.image_url is not None:
        return {"type": "image", "source": _image_source(part.image_url.url)}
    raise invalid_request(f"This model's provider takes no part of the type {part.type!r}.", param="messages")


def _image_source(url: str) -> Block:
    if not url.startswith(_DATA_URL):
        return {"type": "url", "url": url}
    kind, _, data = url.removeprefix(_DATA_URL).partition(";base64,")
    if not data:
        raise invalid_request("An image's data URL must be base64.", param="messages")
    return {"type": "base64", "media_type": kind, "data": data}


def _arguments(text: str) -> Raw:
    """A tool's arguments are JSON in a string here, and JSON there."""
    try:
        msgspec.json.decode(text or "{}", type=dict[str, Raw])
    except msgspec.MsgspecError:
        raise invalid_request("A tool call's arguments are not a JSON object.", param="messages") from None
    return Raw((text or "{}").encode())
