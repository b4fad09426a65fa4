"""Answers have every field that the reference says is always there: read as strictly as the client's types can."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from .asking import HELLO
from .stack import MODEL, Stack

CHAT = {"model": MODEL, "messages": HELLO, "max_completion_tokens": 2, "logprobs": True, "n": 2}
TEXT = {"model": MODEL, "prompt": "Hello", "max_tokens": 2, "logprobs": 1}
RESPONSE = {"model": MODEL, "input": "Hello", "max_output_tokens": 2}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def ask(stack: Stack, path: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    answer = httpx.post(f"{stack.gateway_url}/v1/{path}", json=body, headers=headers, trust_env=False, timeout=30)
    return answer.raise_for_status()


def events(stack: Stack, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for line in ask(stack, path, body).text.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            for choice in event.get("choices", ()) if path == "completions" else ():
                choice["finish_reason"] = choice["finish_reason"] or "stop"  # the type forgets that streams have null
            yield event


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("chat/completions", CHAT, ChatCompletion),
        ("completions", TEXT, Completion),
        ("embeddings", {"model": MODEL, "input": ["a", "b"]}, CreateEmbeddingResponse),
        ("responses", RESPONSE, Response),
    ],
)
def test_whole_answers(stack: Stack, path: str, body: dict[str, Any], answer: type) -> None:
    TypeAdapter(answer).validate_python(ask(stack, path, body).json())


@pytest.mark.parametrize(
    ("path", "body", "event"),
    [
        ("chat/completions", CHAT | USAGE, ChatCompletionChunk),
        ("completions", TEXT | USAGE, Completion),
        ("responses", RESPONSE | {"stream": True}, ResponseStreamEvent),
    ],
)
def test_streamed_answers(stack: Stack, path: str, body: dict[str, Any], event: Any) -> None:
    reader = TypeAdapter[Any](event)
    assert [reader.validate_python(each) for each in events(stack, path, body)]


def test_fields_that_are_null_are_there(stack: Stack) -> None:
    """The Python client gives None for these in any case; others read what is there."""
    for choice in ask(stack, "chat/completions", CHAT | {"logprobs": False}).json()["choices"]:
        assert choice["logprobs"] is None
        assert choice["message"]["refusal"] is None
    assert ask(stack, "completions", TEXT | {"logprobs": None}).json()["choices"][0]["logprobs"] is None
    response = ask(stack, "responses", RESPONSE | {"max_output_tokens": 300}).json()
    null = {"access_programs", "error", "instructions", "metadata", "temperature", "top_p", "incomplete_details"}
    assert null <= response.keys()
