"""A stream of the Messages API, said as chunks of a chat completion, event by event as they come."""

import time
from typing import Any

import msgspec
from msgspec import Struct

from descant_gateway.providers.anthropic_replies import AnthropicUsage, Block, error_body, finish_reason, usage_of
from descant_wire.sse import DONE_EVENT, SseDecoder, encode_event


class _Start(Struct, frozen=True):
    id: str = ""
    usage: AnthropicUsage = AnthropicUsage()


class _Delta(Struct, frozen=True):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _DeltaUsage(Struct, frozen=True):
    output_tokens: int = 0


class _Event(Struct, frozen=True):
    type: str
    index: int = 0
    message: _Start = _Start()
    content_block: Block = Block("")
    delta: _Delta = _Delta()
    usage: _DeltaUsage | None = None


_decoder = msgspec.json.Decoder(_Event)


class AnthropicStream:
    """Any pieces in, whole events of OpenAI's out. The usage chunk comes always; whoever relays hides it."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._created = int(time.time())
        self._sse = SseDecoder()
        self._id = ""
        self._usage = AnthropicUsage()
        self._tool_indexes: dict[int, int] = {}
        """Of content blocks: tools are counted by themselves in a chat completion."""

    def feed(self, chunk: bytes) -> bytes:
        """Raises SseTooLarge, and ValueError for an event that is none of the Messages API's."""
        return b"".join(self._say(event.data) for event in self._sse.feed(chunk))

    def _say(self, data: bytes) -> bytes:
        event = _decoder.decode(data)
        match event.type:
            case "message_start":
                self._id, self._usage = event.message.id, event.message.usage
                return self._chunk({"role": "assistant", "content": ""})
            case "content_block_start" if event.content_block.type == "tool_use":
                return self._open_tool(event)
            case "content_block_delta":
                return self._content(event)
            case "message_delta":
                return self._end(event)
            case "message_stop":
                return self._usage_chunk() + DONE_EVENT
            case "error":
                return encode_event(error_body(data))
        return b""

    def _open_tool(self, event: _Event) -> bytes:
        index = self._tool_indexes[event.index] = len(self._tool_indexes)
        function = {"name": event.content_block.name, "arguments": ""}
        call = {"index": index, "id": event.content_block.id, "type": "function", "function": function}
        return self._chunk({"tool_calls": [call]})

    def _content(self, event: _Event) -> bytes:
        delta = event.delta
        match delta.type:
            case "text_delta":
                return self._chunk({"content": delta.text})
            case "thinking_delta":
                return self._chunk({"reasoning_content": delta.thinking})
            case "input_json_delta" if event.index in self._tool_indexes:
                call = {"index": self._tool_indexes[event.index], "function": {"arguments": delta.partial_json}}
                return self._chunk({"tool_calls": [call]})
        return b""

    def _end(self, event: _Event) -> bytes:
        if event.usage is not None:
            self._usage = msgspec.structs.replace(self._usage, output_tokens=event.usage.output_tokens)
        if event.delta.stop_reason is None:
            return b""
        return self._chunk({}, finish_reason(event.delta.stop_reason))

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        return self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}])

    def _usage_chunk(self) -> bytes:
        return self._event([], usage_of(self._usage))

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        chunk: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        if usage is not None:
            chunk["usage"] = usage
        return encode_event(msgspec.json.encode(chunk))
