"""A reply in events on its way to the client: each leaves in the moment in which it comes, whole."""

import asyncio
from typing import Final

from descant_gateway.call import Call
from descant_gateway.providers import StreamTranslator
from descant_gateway.relay.deadlines import Deadline
from descant_gateway.relay.stream_tap import StreamTap, tells_usage
from descant_gateway.usage.content import ContentCount


class EventStream:
    """Takes a backend's chunks: at once where the client's connection is free, else by waiting for it."""

    __slots__ = ("_call", "_clock", "_content", "_line", "_now", "_tap", "_translator")

    def __init__(
        self, call: Call, tap: StreamTap, content: ContentCount, translator: StreamTranslator | None, clock: Deadline
    ) -> None:
        self._call: Final = call
        self._line: Final = call.line
        self._tap: Final = tap
        self._content: Final = content
        self._translator: Final = translator
        self._clock: Final = clock
        self._now: Final = asyncio.get_running_loop().time

    @property
    def can_take(self) -> bool:
        return self._line is not None and self._line.is_free

    def take(self, chunk: bytes) -> None:
        """Only while `can_take`."""
        assert self._line is not None
        if events := self._look(chunk):
            self._line.write_chunk(events)

    def take_framed(self, chunk: bytes) -> bool:
        """A chunk of whole events, after whole events, in its HTTP frame. False: it has to come without the frame."""
        line = self._line
        if line is None or not line.is_free or self._translator is not None:
            return False
        if b'"usage"' in chunk and tells_usage(chunk):
            return False
        self._clock.since = self._now()
        self._content.add(chunk)
        line.write_framed(chunk)
        return True

    async def pass_on(self, chunk: bytes) -> None:
        if events := self._look(chunk):
            await self._call.send(events)

    async def finish(self) -> None:
        await self._call.finish(self._tap.finish())

    def _look(self, chunk: bytes) -> bytes:
        self._clock.since = self._now()
        return self._tap.feed(chunk if self._translator is None else self._translator.feed(chunk))
