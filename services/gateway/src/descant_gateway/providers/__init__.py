"""What backends speak. Clients are spoken to in OpenAI's words; a provider says the same in a backend's."""

from collections.abc import Mapping
from typing import Final
from typing import Protocol as Interface

from yarl import URL

from descant_gateway.catalogue.snapshot import Backend, Protocol
from descant_gateway.providers.anthropic import AnthropicProvider
from descant_gateway.providers.openai import OpenAIProvider
from descant_gateway.request import InferenceRequest


class StreamTranslator(Interface):
    def feed(self, chunk: bytes) -> bytes:
        """Any piece of the backend's stream in, whole events of OpenAI's stream out, as soon as they are known."""


class Provider(Interface):
    """Replies come out in OpenAI's shape. Bytes that need no translation are passed as they are."""

    def url(self, backend: Backend, request: InferenceRequest) -> URL: ...

    def headers(self, backend: Backend) -> dict[str, str]:
        """How the backend knows the gateway, and what the body is."""

    def body(self, request: InferenceRequest, upstream_name: str) -> bytes:
        """Raises ApiError 400 for what the backend has no way to say."""

    def whole_reply(self, body: bytes, request: InferenceRequest) -> bytes: ...

    def error_reply(self, body: bytes) -> bytes: ...

    def stream(self, request: InferenceRequest) -> StreamTranslator | None:
        """A new translator for one reply; None if there is nothing to translate."""


PROVIDERS: Final[Mapping[Protocol, Provider]] = {
    Protocol.OPENAI: OpenAIProvider(),
    Protocol.ANTHROPIC: AnthropicProvider(),
}
