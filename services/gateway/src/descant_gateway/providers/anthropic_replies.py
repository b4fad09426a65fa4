"""Replies of the Messages API, said as chat completions."""

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from descant_wire.errors import ErrorBody, ErrorDetail

FINISH_REASONS: Final[Mapping[str | None, str]] = MappingProxyType(
    {
        "end_turn": "stop",
        "stop_sequence": "stop",
        "max_tokens": "length",
        "model_context_window_exceeded": "length",
        "tool_use": "tool_calls",
        "refusal": "content_filter",
    }
)
_TOO_LONG: Final = "prompt is too long"


class AnthropicUsage(Struct, frozen=True):
    input_tokens: int = 0
    """Without those that were read from or written to the cache."""
    output_tokens: int = 0
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None

    @property
    def prompt_tokens(self) -> int:
        return self.input_tokens + (self.cache_creation_input_tokens or 0) + (self.cache_read_input_tokens or 0)


class Block(Struct, frozen=True):
    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: Raw = Raw(b"{}")


class _Reply(Struct, frozen=True):
    id: str
    content: list[Block]
    usage: AnthropicUsage = AnthropicUsage()
    stop_reason: str | None = None


class _Fault(Struct, frozen=True):
    type: str = "invalid_request_error"
    message: str = "The provider refused the request."


class _Error(Struct, frozen=True):
    error: _Fault = _Fault()


_reply_decoder = msgspec.json.Decoder(_Reply)
_error_decoder = msgspec.json.Decoder(_Error)


def chat_completion(body: bytes, model: str) -> bytes:
    """Raises ValueError for what is no reply of the Messages API."""
    reply = _reply_decoder.decode(body)
    message: dict[str, Any] = {"role": "assistant", "content": _joined(reply.content, "text") or None}
    if thinking := _joined(reply.content, "thinking"):
        message["reasoning_content"] = thinking
    if calls := [_tool_call(block) for block in reply.content if block.type == "tool_use"]:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(reply.stop_reason)}
    answer = {
        "id": reply.id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": usage_of(reply.usage),
    }
    return msgspec.json.encode(answer)


def error_body(body: bytes) -> bytes:
    """In OpenAI's shape, with its code for a prompt that is too long."""
    try:
        fault = _error_decoder.decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        fault = _Fault()
    code = "context_length_exceeded" if _TOO_LONG in fault.message else None
    detail = ErrorDetail(message=fault.message, type=fault.type, code=code)
    return msgspec.json.encode(ErrorBody(error=detail))


def finish_reason(stop_reason: str | None) -> str:
    return FINISH_REASONS.get(stop_reason, "stop")


def usage_of(usage: AnthropicUsage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_input_tokens or 0},
    }


def _joined(blocks: list[Block], kind: str) -> str:
    return "".join(block.text if kind == "text" else block.thinking for block in blocks if block.type == kind)


def _tool_call(block: Block) -> dict[str, Any]:
    arguments = bytes(block.input).decode()
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}
