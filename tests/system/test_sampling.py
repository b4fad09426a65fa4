"""Several samples and log-probabilities through gateway and engine: whole and streamed alike, and booked once."""

import math

import pytest

from .conftest import MODELS, Stack

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

ASK = {
    "messages": [{"role": "user", "content": "Name a colour."}],
    "n": 3,
    "seed": 5,
    "temperature": 1.2,
    # Of all 49,152 tokens, a draw would at times fall within 1e-6 of the next one's share, where any rounding decides.
    "top_p": 0.5,
    "max_tokens": 8,
    "logprobs": True,
    "top_logprobs": 2,
}


@pytest.mark.parametrize("model", MODELS[:2])
async def test_samples_are_streamed_as_they_are_whole_and_booked_once(stack: Stack, model: str) -> None:
    ask, name = {**ASK, "model": model}, f"samples-{MODELS.index(model)}"
    async with stack.client() as client:
        whole = await client.chat.completions.create(**ask, extra_headers={"x-request-id": f"{name}-whole"})
        stream = await client.chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}, extra_headers={"x-request-id": f"{name}-stream"}
        )
        chunks = [chunk async for chunk in stream]
    texts, logprobs = ["", "", ""], [[], [], []]
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += choice.delta.content or ""
        logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert len(set(texts)) > 1
    for choice, streamed in zip(whole.choices, logprobs, strict=True):
        assert [token.token for token in streamed] == [token.token for token in choice.logprobs.content]
        assert all(math.exp(token.logprob) <= 1 and len(token.top_logprobs) == 2 for token in streamed)
    usage = chunks[-1].usage
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens < 100

    rows = await stack.rows_of(f"{name}-", 2)
    assert {(row["prompt_tokens"], row["completion_tokens"], row["estimated"]) for row in rows} == {
        (usage.prompt_tokens, usage.completion_tokens, False)
    }


async def test_a_prompt_of_token_ids_is_echoed_and_scored(stack: Stack) -> None:
    async with stack.client() as client:
        answer = await client.completions.create(
            model=MODELS[0], prompt=[[504, 3575, 282], [504]], echo=True, logprobs=1, max_tokens=0
        )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [len(choice.logprobs.tokens) for choice in answer.choices] == [3, 1]
    assert answer.choices[0].text == "".join(answer.choices[0].logprobs.tokens)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 0)
