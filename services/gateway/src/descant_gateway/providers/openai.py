"""A backend that speaks OpenAI's API: an engine of ours, vLLM, llama.cpp, a cloud.

Nothing is translated but errors that are not in OpenAI's shape.
"""

from typing import Final

import msgspec
from msgspec import Raw, Struct
from yarl import URL

from descant_gateway.catalogue.snapshot import Backend
from descant_gateway.providers.upstream_request import rewrite_body, url_of
from descant_gateway.request import InferenceRequest
from descant_wire.errors import invalid_request

_TOO_LONG: Final = (
    b'"context_length_exceeded"',  # OpenAI's code, and ours
    b'"exceed_context_size_error"',  # llama.cpp's type
    b"maximum context length",  # in the words of vLLM and SGLang
)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _OtherError(Struct, frozen=True):
    """An error that is not in OpenAI's shape: FastAPI's, an older vLLM's."""

    error: Raw = Raw(b"null")
    detail: Raw = Raw(b"null")
    message: Raw = Raw(b"null")


class OpenAIProvider:
    def url(self, backend: Backend, request: InferenceRequest) -> URL:
        return url_of(backend.base_url, request.endpoint)

    def headers(self, backend: Backend) -> dict[str, str]:
        if backend.api_key is None:
            return {"content-type": "application/json"}
        return {"content-type": "application/json", "authorization": f"Bearer {backend.api_key}"}

    def body(self, request: InferenceRequest, upstream_name: str) -> bytes:
        return rewrite_body(request, upstream_name)

    def whole_reply(self, body: bytes, request: InferenceRequest) -> bytes:
        return body

    def error_reply(self, body: bytes) -> bytes:
        """As it is, if clients can read it; else what it says, said so that they can."""
        message = _message_of(body)
        return body if message is None else invalid_request(message).body

    def stream(self, request: InferenceRequest) -> None:
        return None


def is_too_long(error: bytes) -> bool:
    """Whether a refusal says that prompt and answer do not fit the model's context."""
    return any(words in error for words in _TOO_LONG)


def _message_of(body: bytes) -> str | None:
    """What an error of another shape says; None of one in OpenAI's, or of what is no JSON object."""
    try:
        said = msgspec.json.decode(body, type=_OtherError)
        if bytes(said.error).startswith(b"{"):
            return None
        return next((_text_of(raw) for raw in (said.error, said.detail, said.message) if bytes(raw) != b"null"), None)
    except _UNREADABLE:
        return None


def _text_of(raw: Raw) -> str:
    return msgspec.json.decode(raw, type=str) if bytes(raw).startswith(b'"') else bytes(raw).decode()
