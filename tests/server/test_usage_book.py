"""Which call a name stands for, where a gateway has used it more than once."""

import asyncio

import pytest

from descant_engine.outputs import Usage
from descant_engine.serving.request_stream import OutputBuffer, RequestStream
from descant_server.usage_book import UsageBook
from descant_wire.load import EndedUsage


def generated(num_tokens: int) -> list[RequestStream]:
    buffer = OutputBuffer(num_prompt_tokens=3)
    buffer.usage = Usage(prompt_tokens=3, completion_tokens=num_tokens, cached_tokens=0)
    return [RequestStream("request", buffer, abandon=lambda: None)]


def usage_of(num_tokens: int) -> EndedUsage:
    return EndedUsage(prompt_tokens=3, cached_tokens=0, completion_tokens=num_tokens)


async def test_a_call_is_waited_for_though_an_earlier_one_of_its_name_has_ended() -> None:
    book = UsageBook()
    earlier, later = book.entry("charge", generated(1)), book.entry("charge", generated(7))
    earlier.__enter__()
    later.__enter__()
    earlier.__exit__(None, None, None)
    with pytest.raises(TimeoutError):
        await book.ended("charge", within_s=0.01)
    asyncio.get_running_loop().call_later(0.01, later.__exit__, None, None, None)
    assert await book.ended("charge", within_s=5) == usage_of(7)


async def test_an_earlier_call_that_ends_last_does_not_stand_for_its_name() -> None:
    book = UsageBook()
    with book.entry("charge", generated(1)), book.entry("charge", generated(7)):
        pass
    assert await book.ended("charge", within_s=0) == usage_of(7)


async def test_a_name_may_be_used_again_after_its_end() -> None:
    book = UsageBook()
    for num_tokens in (1, 7):
        with book.entry("charge", generated(num_tokens)):
            pass
        assert await book.ended("charge", within_s=0) == usage_of(num_tokens)


async def test_the_oldest_calls_are_forgotten() -> None:
    book = UsageBook(max_ended=1)
    for charge in ("old", "new"):
        with book.entry(charge, generated(1)):
            pass
    assert await book.ended("old", within_s=0) is None
    assert await book.ended("new", within_s=0) == usage_of(1)
