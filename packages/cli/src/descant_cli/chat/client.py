"""The two calls of a conversation: which models there are, and an answer as it is written."""

import json
from collections.abc import Generator, Iterator, Sequence
from types import TracebackType
from typing import Self, TypedDict

import httpx

TIMEOUT = httpx.Timeout(30.0, read=600.0)
DONE = "[DONE]"


class Message(TypedDict):
    role: str
    content: str


class ChatProblem(Exception):
    """What the server or the network said, for the user."""


class ChatClient:
    """`base_url` with or without /v1. Every method raises ChatProblem."""

    def __init__(self, base_url: str, api_key: str | None) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=f"{self.base_url}/v1", headers=headers, timeout=TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def models(self) -> list[str]:
        try:
            reply = self._http.get("/models")
            if not reply.is_success:
                raise ChatProblem(_refusal(reply))
            return [card["id"] for card in reply.json()["data"]]
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ChatProblem(f"cannot reach {self.base_url}: {error}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise ChatProblem(f"{self.base_url} does not answer like OpenAI's API") from error

    def answer(self, model: str, messages: Sequence[Message]) -> Generator[str, None, None]:
        """Pieces of the answer's text as they come. Closing the generator stops the server's work."""
        body = {"model": model, "messages": list(messages), "stream": True}
        try:
            with self._http.stream("POST", "/chat/completions", json=body) as reply:
                if not reply.is_success:
                    reply.read()
                    raise ChatProblem(_refusal(reply))
                yield from _pieces(reply.iter_lines())
        except httpx.HTTPError as error:
            raise ChatProblem(f"the answer broke off: {error}") from error


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == DONE:
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise ChatProblem(str(chunk["error"].get("message", chunk["error"])))
        for choice in chunk.get("choices") or ():
            delta = choice["delta"]
            if text := delta.get("reasoning_content") or delta.get("content"):
                yield text


def _refusal(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"the server answered {reply.status_code}: {reply.text[:200]}"
