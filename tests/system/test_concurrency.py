"""64 clients at once through gateway and engine, over the base model and all adapters."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass

import pytest
from openai.types import CompletionUsage

from .conftest import MODELS, Stack

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

NUM_CLIENTS = 64
MAX_TOKENS = 12
QUESTIONS = (
    "What is the capital of France?",
    "Hello, I can't sign in to Polar Wiki. No rush.",
    "warehouses(id, city, capacity)\nWhich warehouses have a capacity above 208?",
    "Yvonne, review the team roster by noon. This is ridiculous.",
)


@dataclass(frozen=True)
class Streamed:
    request_id: str
    model: str
    question: str
    text: str
    finish_reasons: tuple[str, ...]
    usage: CompletionUsage


async def ask(stack: Stack, number: int) -> Streamed:
    model, question = MODELS[number % len(MODELS)], QUESTIONS[number // len(MODELS) % len(QUESTIONS)]
    request_id = f"concurrent-{number}"
    texts, finish_reasons, usages = [], [], []
    async with stack.client() as client:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=MAX_TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"x-request-id": request_id},
        )
        async for chunk in stream:
            texts += [choice.delta.content or "" for choice in chunk.choices]
            finish_reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
            usages += [chunk.usage] if chunk.usage else []
    (usage,) = usages
    return Streamed(request_id, model, question, "".join(texts), tuple(finish_reasons), usage)


async def test_64_streams_are_complete_equal_and_booked(stack: Stack) -> None:
    streams = await asyncio.gather(*(ask(stack, number) for number in range(NUM_CLIENTS)))

    for stream in streams:
        assert stream.text
        assert stream.finish_reasons in [("stop",), ("length",)]
        assert (stream.finish_reasons == ("length",)) <= (stream.usage.completion_tokens == MAX_TOKENS)
        assert stream.usage.total_tokens == stream.usage.prompt_tokens + stream.usage.completion_tokens

    answers = defaultdict(set)
    for stream in streams:
        answers[stream.model, stream.question].add(stream.text)
    assert len(answers) == len(MODELS) * len(QUESTIONS)
    assert all(len(texts) == 1 for texts in answers.values()), answers
    # Each model answers the same question in its own way.
    assert len({texts.copy().pop() for (_, question), texts in answers.items() if question == QUESTIONS[1]}) >= 3

    rows = {row["request_id"]: row for row in await stack.rows_of("concurrent-", NUM_CLIENTS)}
    assert len(rows) == NUM_CLIENTS
    for stream in streams:
        row, usage = rows[stream.request_id], stream.usage
        assert (row["model"], row["outcome"], row["status"], row["stream"]) == (stream.model, "completed", 200, True)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
        assert row["estimated"] is False
    assert stack.errors == []
    assert stack.engine.errors == []
