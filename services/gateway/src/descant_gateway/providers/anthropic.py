"""Anthropic's Messages API behind OpenAI's chat completions: requests said in its words, replies said back in ours.

What it has no word for is refused, never dropped silently. Reference: https://docs.anthropic.com/en/api/messages
"""

from typing import Final

import msgspec
from msgspec import Raw
from yarl import URL

from descant_gateway.catalogue.snapshot import Backend
from descant_gateway.providers.anthropic_messages import conversation
from descant_gateway.providers.anthropic_replies import chat_completion, error_body
from descant_gateway.providers.anthropic_stream import AnthropicStream
from descant_gateway.providers.anthropic_tools import tool_choice, tools
from descant_gateway.providers.upstream_request import url_of
from descant_gateway.request import InferenceRequest
from descant_wire.errors import invalid_request, unsupported_field

API_VERSION: Final = "2023-06-01"
CHAT: Final = "/v1/chat/completions"
MESSAGES: Final = "/v1/messages"
DEFAULT_MAX_TOKENS: Final = 4096
"""The Messages API demands a number."""

_PASSED: Final = ("temperature", "top_p", "top_k", "stream")
_TRANSLATED: Final = frozenset(
    {
        *("model", "messages", "max_tokens", "max_completion_tokens", "stop", "user", "tools", "tool_choice"),
        *("parallel_tool_calls", "stream_options"),
        *_PASSED,
    }
)
_WITHOUT_EFFECT: Final = frozenset(
    {
        *("metadata", "prompt_cache_key", "safety_identifier", "store", "service_tier"),
        "continue_final_message",  # it always does
    }
)
_ONE: Final = frozenset({b"1", b"null"})
_NOTHING: Final = frozenset({b"null", b"false", b"0", b"0.0", b"{}", b"[]"})
"""Values that ask for what happens anyway."""


class AnthropicProvider:
    def url(self, backend: Backend, request: InferenceRequest) -> URL:
        return url_of(backend.base_url, MESSAGES)

    def headers(self, backend: Backend) -> dict[str, str]:
        headers = {"content-type": "application/json", "anthropic-version": API_VERSION}
        return headers if backend.api_key is None else headers | {"x-api-key": backend.api_key}

    def body(self, request: InferenceRequest, upstream_name: str) -> bytes:
        if request.endpoint != CHAT:
            raise invalid_request(f"The model {request.model!r} serves {CHAT} only.", param="model")
        members = request.members
        _refuse_unknown(members)
        talk = conversation(members.get("messages", Raw(b"[]")))
        said: dict[str, object] = {
            "model": upstream_name,
            "max_tokens": request.max_tokens or DEFAULT_MAX_TOKENS,
            "messages": talk.messages,
        }
        if talk.system:
            said["system"] = talk.system
        said |= {name: members[name] for name in _PASSED if bytes(members.get(name, b"null")) != b"null"}
        said |= _stop(members) | _user(members) | tools(members) | tool_choice(members)
        return msgspec.json.encode(said)

    def whole_reply(self, body: bytes, request: InferenceRequest) -> bytes:
        return chat_completion(body, request.model)

    def error_reply(self, body: bytes) -> bytes:
        return error_body(body)

    def stream(self, request: InferenceRequest) -> AnthropicStream:
        return AnthropicStream(request.model)


def _refuse_unknown(members: dict[str, Raw]) -> None:
    for name, value in members.items():
        if name in _TRANSLATED or name in _WITHOUT_EFFECT or bytes(value) in _NOTHING:
            continue
        if name == "n" and bytes(value) in _ONE:
            continue
        raise unsupported_field(f"This model's provider has no {name!r}; leave it out.", param=name)


def _stop(members: dict[str, Raw]) -> dict[str, object]:
    stop = msgspec.json.decode(members.get("stop", b"null"), type=str | list[str] | None)
    if not stop:
        return {}
    return {"stop_sequences": [stop] if isinstance(stop, str) else stop}


def _user(members: dict[str, Raw]) -> dict[str, object]:
    user = members.get("user")
    return {} if user is None or bytes(user) == b"null" else {"metadata": {"user_id": user}}
