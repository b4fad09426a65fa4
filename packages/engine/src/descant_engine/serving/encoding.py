"""Prompts to tokens beside an event loop: a short one at once, a long one in a thread, without the interpreter lock."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from descant_engine.frontend import Chat, Frontend, Prompt, Text
from descant_engine.pooling_inputs import EncodedInput, Pair, PoolingInput, PoolingInputs

INLINE_CHARACTERS = 2048
"""A prompt up to this long is encoded on the event loop: that takes a millisecond or two, hardly more than a thread
costs."""
INLINE_MESSAGES = 32
INLINE_TOKENS = 65_536
"""Token ids are only copied and checked."""
ENCODING_THREADS = 2


class Encoding:
    """Owns its threads. Used on one event loop."""

    def __init__(self, frontend: Frontend, pooling_inputs: PoolingInputs) -> None:
        self._frontend = frontend
        self._pooling_inputs = pooling_inputs
        self._threads = ThreadPoolExecutor(ENCODING_THREADS, thread_name_prefix="encode")

    async def prompt(self, prompt: Prompt, keep_last: int | None) -> tuple[int, ...]:
        """With the errors of `Frontend.encode`."""
        if _is_quickly_encoded(prompt):
            return self._frontend.encode(prompt, keep_last)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._frontend.encode, prompt, keep_last)

    async def pooling_input(self, given: PoolingInput, keep_first: int | None) -> EncodedInput:
        """With the errors of `PoolingInputs.encode`."""
        if all(_is_quickly_encoded(part) for part in (given if isinstance(given, Pair) else (given,))):
            return self._pooling_inputs.encode(given, keep_first)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._pooling_inputs.encode, given, keep_first)

    def close(self) -> None:
        """Does not wait; what has not begun is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _is_quickly_encoded(prompt: Prompt) -> bool:
    match prompt:
        case str():
            return len(prompt) <= INLINE_CHARACTERS
        case Text(text):
            return len(text) <= INLINE_CHARACTERS
        case Chat(messages, tools=tools, template_kwargs=template_kwargs):
            return len(messages) <= INLINE_MESSAGES and _is_short((messages, tools, template_kwargs))
        case _:
            return len(prompt) <= INLINE_TOKENS


def _is_short(given: object) -> bool:
    """Whether all the strings in it, keys too, come to INLINE_CHARACTERS at most. What is no string counts one, and so
    does each place in a list or an object: looking takes no longer for megabytes than for what is just too long."""
    room, pending = INLINE_CHARACTERS, [given]
    while pending:
        part = pending.pop()
        room -= len(part) if isinstance(part, (str, Mapping, Sequence)) else 1
        if room < 0:
            return False
        if isinstance(part, Mapping):
            pending += (*part.keys(), *part.values())
        elif isinstance(part, Sequence) and not isinstance(part, str):
            pending += part
    return True
