"""A chat completion taken apart into pieces in the order of the output: the same whether it came whole or streamed."""

from typing import Final

import msgspec
from msgspec import Struct

from descant_wire.errors import ErrorDetail
from descant_wire.sse import SseDecoder


class Reasoning(Struct, frozen=True):
    """More of what the model thought."""

    text: str


class Text(Struct, frozen=True):
    """More of what it says."""

    text: str


class CallBegins(Struct, frozen=True):
    """A call of a tool; its arguments follow."""

    id: str
    name: str


class Arguments(Struct, frozen=True):
    """More of the JSON text of the latest call."""

    text: str


Piece = Reasoning | Text | CallBegins | Arguments


class _Function(Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct, frozen=True):
    function: _Function = _Function()
    id: str | None = None
    index: int | None = None
    """Among the message's calls; in a whole message, its place tells."""


class _Said(Struct, frozen=True):
    """A message or a delta of one."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(Struct, frozen=True):
    index: int = 0
    message: _Said | None = None
    delta: _Said | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class _CachedTokens(Struct, frozen=True):
    cached_tokens: int | None = None


class _ReasoningTokens(Struct, frozen=True):
    reasoning_tokens: int | None = None


class ChatUsage(Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _CachedTokens | None = None
    completion_tokens_details: _ReasoningTokens | None = None

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return 0 if details is None else details.cached_tokens or 0

    @property
    def reasoning_tokens(self) -> int:
        details = self.completion_tokens_details
        return 0 if details is None else details.reasoning_tokens or 0


class _Completion(Struct, frozen=True):
    """A whole reply, or one chunk."""

    choices: list[_Choice] = []
    usage: ChatUsage | None = None
    error: ErrorDetail | None = None


NO_USAGE: Final = ChatUsage()
_decoder = msgspec.json.Decoder(_Completion)


class ChatPieces:
    """What a reply says, piece by piece; how it ended is known after the last."""

    def __init__(self) -> None:
        self._sse = SseDecoder()
        self._calls: list[int] = []
        self.usage = NO_USAGE
        self.finish_reason: str | None = None
        self.stop_string: str | None = None
        """The stop string that ended it, where the backend tells."""
        self.error: ErrorDetail | None = None
        """Why it broke off."""

    def whole(self, body: bytes) -> list[Piece]:
        """Raises ValueError for what is no chat completion."""
        return self._take(_decoder.decode(body))

    def feed(self, chunk: bytes) -> list[Piece]:
        """Raises ValueError for an event that is none of a chat completion's."""
        pieces: list[Piece] = []
        for event in self._sse.feed(chunk):
            if not event.is_done:
                pieces += self._take(_decoder.decode(event.data))
        return pieces

    def _take(self, said: _Completion) -> list[Piece]:
        self.usage = said.usage or self.usage
        self.error = said.error or self.error
        pieces: list[Piece] = []
        for choice in said.choices:
            self.finish_reason = choice.finish_reason or self.finish_reason
            if isinstance(choice.stop_reason, str):
                self.stop_string = choice.stop_reason
            pieces += self._pieces(choice.message or choice.delta or _Said())
        return pieces

    def _pieces(self, said: _Said) -> list[Piece]:
        pieces: list[Piece] = []
        if thought := said.reasoning_content or said.reasoning:
            pieces.append(Reasoning(thought))
        if said.content:
            pieces.append(Text(said.content))
        for place, call in enumerate(said.tool_calls or ()):
            pieces += self._call(place if call.index is None else call.index, call)
        return pieces

    def _call(self, index: int, call: _Call) -> list[Piece]:
        pieces: list[Piece] = []
        if index not in self._calls:
            self._calls.append(index)
            pieces.append(CallBegins(call.id or "", call.function.name or ""))
        elif index != self._calls[-1]:
            raise ValueError("the calls of a chat completion are not told one after the other")
        if call.function.arguments:
            pieces.append(Arguments(call.function.arguments))
        return pieces
