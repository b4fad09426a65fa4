"""A request of the Messages API, said as a chat completion. What has no word there is refused by name."""

from typing import Any, Final

import msgspec

from descant_wire.anthropic import (
    ContentBlock,
    CountTokensRequest,
    InputMessage,
    MessagesRequest,
    ResultBlock,
    TextBlock,
    ThinkingBlock,
    ToolChoice,
    ToolDefinition,
    ToolResultBlock,
    ToolUseBlock,
)
from descant_wire.errors import invalid_request, unsupported_field

Said = dict[str, Any]
"""A part of a chat completion's body; made here, read by nobody here."""

_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_CUSTOM: Final = (None, "custom")
_OF_THE_PROMPT: Final = ("model", "messages", "tools", "continue_final_message", "add_generation_prompt")


def chat_request(request: MessagesRequest) -> Said:
    """Raises ApiError 400."""
    _refuse_fields(request)
    said: Said = {"model": request.model, "messages": _messages(request), "max_tokens": _max_tokens(request)}
    passed = {name: getattr(request, name) for name in ("temperature", "top_p", "top_k")}
    said |= {name: value for name, value in passed.items() if value is not None}
    if request.stop_sequences:
        said["stop"] = request.stop_sequences
    if request.stream:
        said |= {"stream": True, "stream_options": {"include_usage": True}}
    if request.metadata and request.metadata.get("user_id"):
        said["user"] = request.metadata["user_id"]
    return said | _opening(request) | _tools(request)


def prompt_only(request: CountTokensRequest) -> Said:
    """What a chat completion's prompt is made of. Raises ApiError 400."""
    said = chat_request(MessagesRequest(max_tokens=1, **msgspec.structs.asdict(request)))
    if said.get("tool_choice") == "none":
        said.pop("tools")
    return {name: said[name] for name in _OF_THE_PROMPT if name in said}


def _refuse_fields(request: MessagesRequest) -> None:
    for field, accepted in request.only.items():
        value = getattr(request, field)
        if value is not None and value not in accepted:
            raise unsupported_field(f"`{field}` is not supported here; leave it out.", param=field)


def _max_tokens(request: MessagesRequest) -> int:
    if request.max_tokens < 1:
        raise invalid_request("`max_tokens` must be at least 1.", param="max_tokens")
    return request.max_tokens


def _messages(request: MessagesRequest) -> list[Said]:
    said: list[Said] = []
    if request.system:
        text = request.system if isinstance(request.system, str) else "".join(part.text for part in request.system)
        said.append({"role": "system", "content": text})
    for index, message in enumerate(request.messages):
        said += _turn(message, f"messages.{index}")
    return said


def _opening(request: MessagesRequest) -> Said:
    """Where the assistant has the last word, the answer goes on from it, in vLLM's and our words."""
    last = request.messages[-1] if request.messages else None
    if last is None or last.role != "assistant" or not _ends_in_text(last.content):
        return {}
    return {"continue_final_message": True, "add_generation_prompt": False}


def _ends_in_text(content: str | list[ContentBlock]) -> bool:
    if isinstance(content, str):
        return bool(content)
    return any(isinstance(block, TextBlock) and block.text != "" for block in content[-1:])


def _turn(message: InputMessage, place: str) -> list[Said]:
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    blocks = message.content
    return _assistant(blocks, place) if message.role == "assistant" else _user(blocks, place)


def _assistant(blocks: list[ContentBlock], place: str) -> list[Said]:
    said: Said = {"role": "assistant", "content": None}
    texts, thoughts, calls = [], [], []
    for index, block in enumerate(blocks):
        match block:
            case TextBlock():
                texts.append(block.text)
            case ThinkingBlock():
                thoughts.append(block.thinking)
            case ToolUseBlock():
                calls.append(_call(block))
            case _:
                raise _refused(block, f"{place}.content.{index}")
    said |= {"content": "".join(texts)} if texts or not calls else {}
    said |= {"reasoning_content": "".join(thoughts)} if thoughts else {}
    return [said | ({"tool_calls": calls} if calls else {})]


def _user(blocks: list[ContentBlock], place: str) -> list[Said]:
    """Each result is a message of its own; what the user says beside them follows."""
    results: list[Said] = []
    texts: list[str] = []
    for index, block in enumerate(blocks):
        where = f"{place}.content.{index}"
        match block:
            case TextBlock():
                texts.append(block.text)
            case ToolResultBlock():
                results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block, where)})
            case _:
                raise _refused(block, where)
    said = {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}
    return [*results, said] if texts or not results else results


def _call(block: ToolUseBlock) -> Said:
    arguments = msgspec.json.encode(block.input).decode()
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _result(block: ToolResultBlock, place: str) -> str:
    if block.content is None or isinstance(block.content, str):
        text = block.content or ""
    else:
        text = "".join(_result_text(part, f"{place}.content.{index}") for index, part in enumerate(block.content))
    return f"Error: {text}" if block.is_error else text


def _result_text(part: ResultBlock, place: str) -> str:
    if isinstance(part, TextBlock):
        return part.text
    raise _refused(part, place)


def _refused(block: ContentBlock | ResultBlock, place: str) -> Exception:
    kind = type(block).__struct_config__.tag
    return unsupported_field(f"`{place}`: blocks of the type {kind!r} are not taken here.", param=place)


def _tools(request: MessagesRequest) -> Said:
    if not request.tools:
        if request.tool_choice is not None and request.tool_choice.type in ("any", "tool"):
            raise invalid_request("`tool_choice` needs `tools`.", param="tool_choice")
        return {}
    said: Said = {"tools": [_tool(tool, f"tools.{index}") for index, tool in enumerate(request.tools)]}
    if request.tool_choice is not None:
        said["tool_choice"] = _choice(request.tool_choice)
        if request.tool_choice.disable_parallel_tool_use:
            said["parallel_tool_calls"] = False
    return said


def _tool(tool: ToolDefinition, place: str) -> Said:
    if tool.type not in _CUSTOM:
        raise unsupported_field(f"`{place}`: tools of the type {tool.type!r} are not run here.", param=place)
    if tool.input_schema is None:
        raise invalid_request(f"`{place}.input_schema` is required.", param=f"{place}.input_schema")
    function: Said = {"name": tool.name, "parameters": tool.input_schema}
    function |= {} if tool.description is None else {"description": tool.description}
    return {"type": "function", "function": function | ({} if tool.strict is None else {"strict": tool.strict})}


def _choice(choice: ToolChoice) -> str | Said:
    if choice.type != "tool":
        return _CHOICES[choice.type]
    if not choice.name:
        raise invalid_request("`tool_choice.name` is required for the type 'tool'.", param="tool_choice.name")
    return {"type": "function", "function": {"name": choice.name}}
