"""What clients speak besides chat completions: a dialect says a request as a chat completion and its reply back.

The mirror image of `providers`. In between, admission, routing, relaying and settling know chat completions alone, and
what else backends of OpenAI's API have.
"""

from collections.abc import Mapping
from typing import Protocol as Interface

from descant_gateway.identity.authenticate import Caller


class Translation(Interface):
    """One request, and what becomes of its reply."""

    endpoint: str
    """The backends' that it is said to: chat completions, as a rule."""
    body: bytes
    """The same in that endpoint's words. Where it streams, it asks for the usage chunk."""

    background: "Background | None"
    """Who serves it while its client does something else, if that is what it asks for."""

    def refusal(self, body: bytes) -> bytes:
        """An error about what `body` said: it names the fields that the client sent."""

    async def whole(self, body: bytes) -> bytes:
        """The chat completion as the client's endpoint answers. ValueError for what is none."""

    async def events(self, chunk: bytes) -> bytes:
        """Any whole events of the chat completion in, the endpoint's own out; empty where there is nothing to say."""

    async def end(self) -> bytes:
        """The last events, after the last of the chat completion's."""


class Client(Interface):
    """Who waits for an answer: a call."""

    translation: Translation | None

    async def answer(self, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
        """The whole reply at once."""


class Background(Interface):
    async def begin(self, client: Client, caller: Caller) -> None:
        """Answers the client, whose request was translated, and serves it from then on by itself."""


class Dialect(Interface):
    """How clients of one endpoint speak."""

    def authorization(self, headers: Mapping[bytes, bytes]) -> bytes | None:
        """The Authorization header, or what stands for it."""

    def reply_headers(self, request_id: str) -> tuple[tuple[bytes, bytes], ...]:
        """What its clients expect beside those of every reply."""

    def error(self, status: int, body: bytes) -> bytes:
        """An error in OpenAI's shape, as the endpoint tells it."""

    async def translate(self, body: bytes, caller: Caller) -> Translation:
        """Raises ApiError for what is not a request, or can't be said as a chat completion."""
