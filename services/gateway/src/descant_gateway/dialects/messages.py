"""Anthropic's Messages API: its clients are served by any model here. Reference: https://docs.anthropic.com/en/api"""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from descant_gateway.dialects import Background
from descant_gateway.dialects.message_reply import MessageReply
from descant_gateway.dialects.message_request import chat_request, prompt_only
from descant_gateway.dialects.own_words import body_in_own_words
from descant_gateway.endpoints import CHAT, TOKENIZE
from descant_gateway.identity.authenticate import Caller
from descant_wire.anthropic import CountedTokens, CountTokensRequest, MessagesRequest
from descant_wire.decoding import decode_request
from descant_wire.errors import ErrorBody, ErrorDetail

KEY_HEADER: Final = b"x-api-key"
REQUEST_ID_HEADER: Final = b"request-id"
_ERROR_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OWN_WORDS: Final = {"stop": "stop_sequences"}
_unreadable: Final = ErrorBody(error=ErrorDetail(message="The request failed.", type="api_error"))


class Fault(Struct, frozen=True, kw_only=True):
    """An error, or the event of one, in Anthropic's shape."""

    type: str = "error"
    error: dict[str, str]


class MessagesDialect:
    def authorization(self, headers: Mapping[bytes, bytes]) -> bytes | None:
        key = headers.get(KEY_HEADER)
        return headers.get(b"authorization") if key is None else b"Bearer " + key

    def reply_headers(self, request_id: str) -> tuple[tuple[bytes, bytes], ...]:
        return ((REQUEST_ID_HEADER, request_id.encode()),)

    def error(self, status: int, body: bytes) -> bytes:
        try:
            detail = msgspec.json.decode(body, type=ErrorBody).error
        except msgspec.MsgspecError:
            detail = _unreadable.error
        return fault(status, detail)

    async def translate(self, body: bytes, caller: Caller) -> "MessagesTranslation":
        return MessagesTranslation(decode_request(body, MessagesRequest))


class MessagesTranslation:
    endpoint = CHAT
    background: Background | None = None

    def __init__(self, request: MessagesRequest) -> None:
        self.body = msgspec.json.encode(chat_request(request))
        self._reply = MessageReply(request.model)

    def refusal(self, body: bytes) -> bytes:
        return body_in_own_words(body, _OWN_WORDS)

    async def whole(self, body: bytes) -> bytes:
        return self._reply.whole(body)

    async def events(self, chunk: bytes) -> bytes:
        return self._reply.feed(chunk)

    async def end(self) -> bytes:
        return self._reply.end()


class CountTokensDialect(MessagesDialect):
    """How many tokens a message's prompt has, which the backend's own tokenizer tells."""

    async def translate(self, body: bytes, caller: Caller) -> "CountTokensTranslation":  # type: ignore[override]
        return CountTokensTranslation(decode_request(body, CountTokensRequest))


class CountTokensTranslation:
    endpoint = TOKENIZE
    background: Background | None = None

    def __init__(self, request: CountTokensRequest) -> None:
        self.body = msgspec.json.encode(prompt_only(request))

    def refusal(self, body: bytes) -> bytes:
        return body_in_own_words(body, _OWN_WORDS)

    async def whole(self, body: bytes) -> bytes:
        try:
            count = msgspec.json.decode(body, type=_Tokenized).count
        except msgspec.MsgspecError as error:
            raise ValueError(f"the backend's answer has no count: {error}") from None
        return msgspec.json.encode(CountedTokens(input_tokens=count))

    async def events(self, chunk: bytes) -> bytes:
        raise NotImplementedError("a count is never streamed")

    async def end(self) -> bytes:
        raise NotImplementedError("a count is never streamed")


class _Tokenized(Struct, frozen=True):
    count: int


def fault(status: int, detail: ErrorDetail) -> bytes:
    """The field at fault is named in the message, as Anthropic has no place for it."""
    message = detail.message
    if detail.param and detail.param not in message:
        message = f"{detail.param}: {message}"
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return msgspec.json.encode(Fault(error={"type": kind, "message": message}))
