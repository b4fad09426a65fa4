"""What is encoded on the event loop, and what beside it."""

import asyncio
import threading
from collections.abc import Mapping
from typing import cast

import pytest

from descant_engine.frontend import Chat, Frontend, Prompt, Text
from descant_engine.pooling_inputs import PoolingInputs
from descant_engine.serving.encoding import INLINE_CHARACTERS, INLINE_MESSAGES, Encoding
from descant_engine.text.chat_template import ChatMessage

LONG = "word " * (INLINE_CHARACTERS // 5 + 1)
HELLO: ChatMessage = {"role": "user", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"word": LONG}}}


class NotingFrontend(Frontend):
    """Notes the thread that each prompt is encoded in."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def encode(self, prompt: Prompt, keep_last: int | None = None) -> tuple[int, ...]:
        self.threads.append(threading.current_thread())
        return (1,)


async def is_inline(prompt: Prompt) -> bool:
    frontend = NotingFrontend()
    encoding = Encoding(frontend, cast(PoolingInputs, None))
    async with asyncio.timeout(10):
        assert await encoding.prompt(prompt, None) == (1,)
    encoding.close()
    return frontend.threads == [threading.current_thread()]


def tool(parameters: Mapping[str, object]) -> Mapping[str, object]:
    return {"type": "function", "function": {"name": "look_up", "parameters": parameters}}


@pytest.mark.parametrize(
    "prompt",
    [
        "Hello",
        Text("Hello"),
        (1, 2, 3),
        Chat([HELLO] * INLINE_MESSAGES),
        Chat([HELLO], tools=[tool({"type": "object"})], template_kwargs={"enable_thinking": False}),
        Chat([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]),
    ],
)
async def test_a_short_prompt_is_encoded_at_once(prompt: Prompt) -> None:
    assert await is_inline(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        LONG,
        Text(LONG),
        Chat([HELLO] * (INLINE_MESSAGES + 1)),
        Chat([{"role": "user", "content": LONG}]),
        Chat([{"role": "user", "content": [{"type": "text", "text": LONG}]}]),
        Chat([HELLO, {"role": "assistant", "content": "", "reasoning_content": LONG}]),
        Chat([HELLO, {"role": "assistant", "content": "", "tool_calls": [CALL]}]),
        Chat([HELLO], tools=[tool({"description": LONG})]),
        Chat([HELLO], tools=[tool({LONG: {}})]),
        Chat([HELLO], tools=[tool({"enum": [[]] * INLINE_CHARACTERS})]),
        Chat([HELLO], template_kwargs={"documents_of_ours": [LONG]}),
    ],
)
async def test_a_long_prompt_is_encoded_in_a_thread_whatever_makes_it_long(prompt: Prompt) -> None:
    assert not await is_inline(prompt)
