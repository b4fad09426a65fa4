"""A chat completion said as the output of a response, whole or as typed events: both are read off the same items."""

from typing import Any, Final

import msgspec

from descant_gateway.dialects.chat_pieces import Arguments, CallBegins, ChatPieces, ChatUsage, Piece, Reasoning, Text
from descant_gateway.dialects.response_items import new_id
from descant_wire.responses import CachedTokens, ReasoningTokens, ResponseUsage

Item = dict[str, Any]
"""Of the output; made here, read by nobody here."""

_REASONS: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
_PARTS: Final[dict[str, Item]] = {
    "message": {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
    "reasoning": {"type": "reasoning_text", "text": ""},
}
_NAMES: Final = {"message": "response.output_text", "reasoning": "response.reasoning_text"}


class ResponseReply:
    """`response`: all that is known of it before anything was generated. Items come one after the other."""

    def __init__(self, response: dict[str, Any]) -> None:
        self._response = response
        self._pieces = ChatPieces()
        self._output: list[Item] = []
        self._text: list[str] = []
        """Of the last item."""
        self._is_open = False
        self._num_events = 0

    def whole(self, body: bytes) -> dict[str, Any]:
        """The finished response. Raises ValueError for what is no chat completion."""
        for piece in self._pieces.whole(body):
            self._take(piece)
        self._close()
        return self._finished()

    def feed(self, chunk: bytes) -> bytes:
        pieces = self._pieces.feed(chunk)
        begin = b"" if self._num_events else self._begin()
        return begin + b"".join(self._take(piece) for piece in pieces)

    def close(self) -> tuple[bytes, dict[str, Any]]:
        """The events that end the last item, and the finished response, for which `ending` has the last event."""
        begin = b"" if self._num_events else self._begin()
        return begin + self._close(), self._finished()

    def ending(self, response: dict[str, Any]) -> bytes:
        return self._event(f"response.{response['status']}", response=response)

    def _begin(self) -> bytes:
        return self._event("response.created", response=self._response) + self._event(
            "response.in_progress", response=self._response
        )

    def _take(self, piece: Piece) -> bytes:
        match piece:
            case Text():
                return self._add("message", piece.text)
            case Reasoning():
                return self._add("reasoning", piece.text)
            case CallBegins():
                call = {"type": "function_call", "id": new_id("fc"), "call_id": piece.id, "name": piece.name}
                return self._open(call | {"arguments": "", "status": "in_progress"})
            case Arguments():
                self._text.append(piece.text)
                return self._of_item("response.function_call_arguments.delta", delta=piece.text)

    def _add(self, kind: str, text: str) -> bytes:
        is_other = not self._is_open or self._output[-1]["type"] != kind
        opened = self._open_text(kind) if is_other else b""
        self._text.append(text)
        extra: Item = {"logprobs": []} if kind == "message" else {}
        return opened + self._of_item(f"{_NAMES[kind]}.delta", content_index=0, delta=text, **extra)

    def _open_text(self, kind: str) -> bytes:
        if kind == "message":
            item: Item = {
                "type": kind,
                "id": new_id("msg"),
                "role": "assistant",
                "content": [],
                "status": "in_progress",
            }
        else:
            item = {"type": kind, "id": new_id("rs"), "summary": [], "content": [], "status": "in_progress"}
        return self._open(item) + self._of_item("response.content_part.added", content_index=0, part=_PARTS[kind])

    def _open(self, item: Item) -> bytes:
        closed = self._close()
        self._output.append(item)
        self._is_open = True
        return closed + self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _close(self) -> bytes:
        """What came for the item is in it from now on."""
        if not self._is_open:
            return b""
        item, text = self._output[-1], "".join(self._text)
        self._is_open, self._text = False, []
        is_cut = self._pieces.finish_reason in _REASONS
        item["status"] = "incomplete" if is_cut else "completed"
        said = self._close_call(item, text) if item["type"] == "function_call" else self._close_text(item, text)
        return said + self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _close_call(self, item: Item, text: str) -> bytes:
        item["arguments"] = text
        return self._of_item("response.function_call_arguments.done", arguments=text, name=item["name"])

    def _close_text(self, item: Item, text: str) -> bytes:
        part = _PARTS[item["type"]] | {"text": text}
        item["content"] = [part]
        extra: Item = {"logprobs": []} if item["type"] == "message" else {}
        done = self._of_item(f"{_NAMES[item['type']]}.done", content_index=0, text=text, **extra)
        return done + self._of_item("response.content_part.done", content_index=0, part=part)

    def _finished(self) -> dict[str, Any]:
        pieces = self._pieces
        finished = self._response | {"output": self._output, "usage": _usage(pieces.usage)}
        if pieces.error is not None:
            error = {"code": "server_error", "message": pieces.error.message}
            return finished | {"status": "failed", "error": error, "usage": None}
        if pieces.finish_reason in _REASONS:
            why = {"reason": _REASONS[pieces.finish_reason]}
            return finished | {"status": "incomplete", "incomplete_details": why}
        return finished | {"status": "completed"}

    def _of_item(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._output[-1]["id"], output_index=len(self._output) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = msgspec.json.encode({"type": kind, "sequence_number": self._num_events} | fields)
        self._num_events += 1
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)


def _usage(usage: ChatUsage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=CachedTokens(cached_tokens=usage.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=ReasoningTokens(reasoning_tokens=usage.reasoning_tokens),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )
