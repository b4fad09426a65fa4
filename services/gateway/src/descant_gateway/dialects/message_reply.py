"""A chat completion said as a message of the Messages API, whole or as events: both are read off the same blocks."""

import uuid
from typing import Any, Final

import msgspec

from descant_gateway.dialects.chat_pieces import Arguments, CallBegins, ChatPieces, ChatUsage, Piece, Reasoning, Text
from descant_wire.anthropic import MessagesUsage, StopReason
from descant_wire.errors import ErrorDetail

Block = dict[str, Any]
"""Of the message's content; made here, read by nobody here."""

_STOP_REASONS: Final[dict[str | None, StopReason]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_EMPTY: Final[dict[str, Block]] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
_DELTAS: Final = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}
_FIELDS: Final = {"text": "text", "thinking": "thinking", "tool_use": "partial_json"}


class MessageReply:
    """Blocks open and close one after the other, as the API has it."""

    def __init__(self, model: str) -> None:
        self._id = f"msg_{uuid.uuid4().hex}"
        self._model = model
        self._pieces = ChatPieces()
        self._blocks: list[Block] = []
        self._text: list[str] = []
        """Of the last block."""
        self._is_open = False
        self._is_begun = False

    def whole(self, body: bytes) -> bytes:
        for piece in self._pieces.whole(body):
            self._take(piece)
        self._close()
        message = self._message() | {"content": self._blocks, "usage": _usage(self._pieces.usage)} | self._ending()
        return msgspec.json.encode(message)

    def feed(self, chunk: bytes) -> bytes:
        pieces = self._pieces.feed(chunk)
        begin = b"" if self._is_begun or self._pieces.error else self._begin()
        return begin + b"".join(self._take(piece) for piece in pieces)

    def end(self) -> bytes:
        if self._pieces.error is not None:
            return _failure(self._pieces.error)
        usage = _usage(self._pieces.usage)
        closed = (b"" if self._is_begun else self._begin()) + self._close()
        return closed + _event("message_delta", delta=self._ending(), usage=usage) + _event("message_stop")

    def _begin(self) -> bytes:
        """The prompt is counted at the end of a chat completion only: here it is 0, in `message_delta` the truth."""
        self._is_begun = True
        usage = MessagesUsage(input_tokens=0, output_tokens=0)
        nothing: Block = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return _event("message_start", message=self._message() | nothing)

    def _take(self, piece: Piece) -> bytes:
        match piece:
            case Text():
                return self._add("text", piece.text)
            case Reasoning():
                return self._add("thinking", piece.text)
            case CallBegins():
                return self._open({"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}})
            case Arguments():
                return self._delta("tool_use", piece.text)

    def _add(self, kind: str, text: str) -> bytes:
        is_other = not self._is_open or self._blocks[-1]["type"] != kind
        opened = self._open(dict(_EMPTY[kind])) if is_other else b""
        return opened + self._delta(kind, text)

    def _open(self, block: Block) -> bytes:
        closed = self._close()
        self._blocks.append(block)
        self._is_open = True
        return closed + _event("content_block_start", index=len(self._blocks) - 1, content_block=block)

    def _delta(self, kind: str, text: str) -> bytes:
        self._text.append(text)
        delta = {"type": _DELTAS[kind], _FIELDS[kind]: text}
        return _event("content_block_delta", index=len(self._blocks) - 1, delta=delta)

    def _close(self) -> bytes:
        """What came for the block is in it from now on."""
        if not self._is_open:
            return b""
        block, text = self._blocks[-1], "".join(self._text)
        if block["type"] == "tool_use":
            block["input"] = _arguments(text)
        else:
            block[block["type"]] = text
        self._is_open, self._text = False, []
        return _event("content_block_stop", index=len(self._blocks) - 1)

    def _message(self) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model}

    def _ending(self) -> dict[str, str | None]:
        pieces = self._pieces
        if pieces.finish_reason == "stop" and pieces.stop_string is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": pieces.stop_string}
        return {"stop_reason": _STOP_REASONS.get(pieces.finish_reason, "end_turn"), "stop_sequence": None}


def _arguments(text: str) -> dict[str, Any]:
    """Nothing of those that `max_tokens` cut in the middle: the message's stop reason tells."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _usage(usage: ChatUsage) -> MessagesUsage:
    return MessagesUsage(
        input_tokens=usage.prompt_tokens - usage.cached_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_input_tokens=usage.cached_tokens,
    )


def _failure(detail: ErrorDetail) -> bytes:
    return _event("error", error={"type": "api_error", "message": detail.message})


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode({"type": kind} | fields))
