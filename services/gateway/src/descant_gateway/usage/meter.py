"""What one request has had so far: written by the relay as it goes, read once at the end to charge for it."""

import time
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from descant_gateway.catalogue.snapshot import ModelRoute, Price
from descant_gateway.request import InferenceRequest
from descant_gateway.usage.content import ContentCount

Count = Annotated[int, Meta(ge=0)]


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: Count | None = None


class Usage(Struct, frozen=True):
    """OpenAI's `usage`, as far as we charge for it."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    prompt_tokens_details: PromptTokensDetails | None = None


class Charge(Struct, frozen=True):
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    is_estimated: bool

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


NO_CHARGE = Charge(0, 0, 0, False)


class Meter:
    __slots__ = (
        "backend",
        "content",
        "failure",
        "first_byte_at",
        "is_generating",
        "keeps_reply",
        "model",
        "price",
        "status",
        "usage",
        "whole_reply",
    )

    def __init__(self) -> None:
        self.backend = ""
        self.model: ModelRoute | None = None
        """The one that truly served, or tried to: another than was asked for after a fallback."""
        self.price: Price | None = None
        """Of that model, if it is another."""
        self.status = 0
        """What the client was answered with; 0 until then."""
        self.failure = ""
        """Why a reply that had begun was broken off."""
        self.is_generating = False
        """A backend has the request and has not refused it: from here on it costs."""
        self.first_byte_at: float | None = None
        """time.perf_counter()."""
        self.content = ContentCount()
        """Of the events that were sent on."""
        self.usage: Usage | None = None
        self.keeps_reply = False
        """Somebody wants to have the whole reply, if it is good."""
        self.whole_reply: bytes | None = None

    def mark_first_byte(self) -> None:
        if self.first_byte_at is None:
            self.first_byte_at = time.perf_counter()

    def charge(self, request: InferenceRequest) -> Charge:
        """The backend's own count where it gave one, else ours of what came through."""
        if not self.is_generating:
            return NO_CHARGE
        if self.usage is None:
            return Charge(request.estimated_prompt_tokens, 0, self.content.total, True)
        details = self.usage.prompt_tokens_details
        cached = details.cached_tokens if details is not None else None
        return Charge(self.usage.prompt_tokens, cached or 0, self.usage.completion_tokens, False)


class _AnyUsage(Struct, frozen=True):
    """Chat and completions count prompt and completion, responses input and output, rerank only all together."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: PromptTokensDetails | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: PromptTokensDetails | None = None
    total_tokens: Count | None = None

    def as_usage(self) -> Usage:
        prompt = self.prompt_tokens if self.prompt_tokens is not None else self.input_tokens
        completion = self.completion_tokens if self.completion_tokens is not None else self.output_tokens
        if prompt is None:
            prompt = max(0, (self.total_tokens or 0) - (completion or 0))
        return Usage(prompt, completion or 0, self.prompt_tokens_details or self.input_tokens_details)


class _WholeReply(Struct, frozen=True):
    usage: _AnyUsage | None = None


class _Chunk(Struct, frozen=True):
    usage: _AnyUsage | None = None
    choices: list[msgspec.Raw] = []
    response: _WholeReply | None = None
    """Where the event is one of the responses API."""


class ChunkUsage(Struct, frozen=True):
    usage: Usage | None = None
    has_content: bool = True
    """False for the chunk that a stream has only to tell its usage."""


_whole_decoder = msgspec.json.Decoder(_WholeReply)
_chunk_decoder = msgspec.json.Decoder(_Chunk)


def usage_of_reply(body: bytes) -> Usage | None:
    """The `usage` of a whole reply; None if the backend gave none that can be read."""
    try:
        usage = _whole_decoder.decode(body).usage
    except (msgspec.MsgspecError, RecursionError):
        return None
    return None if usage is None else usage.as_usage()


def usage_of_chunk(data: bytes) -> ChunkUsage:
    try:
        chunk = _chunk_decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return ChunkUsage()
    usage = chunk.usage if chunk.response is None else chunk.response.usage
    return ChunkUsage(None if usage is None else usage.as_usage(), bool(chunk.choices) or chunk.response is not None)
