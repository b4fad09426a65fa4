"""What a backend sends of a stream, handed on while the event loop reads it from the socket.

A reader that waits costs a future, a wake-up and another round of the event loop for every chunk: more than all the
rest of a chunk's way. So while the relay waits, a chunk goes to its `Taker` at once, and the relay is only woken up for
what the taker can't have: the end, an error, and what comes faster than the client reads.

Most of what comes is one chunk with whole events in it. aiohttp's parser needs not see those: the taker has them first,
in their HTTP frame, and what it lets pass is neither unpacked nor packed again.
"""

import asyncio
from types import TracebackType
from typing import Final, Protocol, Self

import aiohttp

_END_OF_EVENTS: Final = b"\n\n\r\n"


class Taker(Protocol):
    @property
    def can_take(self) -> bool:
        """Whether a chunk can be passed on without waiting for anybody."""

    def take(self, chunk: bytes) -> None:
        """What it raises is raised in the relay."""

    def take_framed(self, chunk: bytes) -> bool:
        """One HTTP chunk as it came, whose content ends with an event as all before it did. Raises nothing.

        False: not taken.
        """


class Arrivals(asyncio.Protocol):
    """`with` it around reading a reply's body: sits between the connection and aiohttp's own protocol, which parses.

    Bytes that nobody takes stay in aiohttp's reader, which stops reading from the socket when it has too many.
    """

    def __init__(self, response: aiohttp.ClientResponse, taker: Taker) -> None:
        connection = response.connection  # None once the whole body is there
        self._parser = None if connection is None else connection.protocol
        self._transport = None if connection is None else connection.transport
        self._content = response.content
        self._taker = taker
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._is_lost = False
        self._is_between = False
        """The relay waits, and the parser stands where a chunk and an event have ended."""

    def __enter__(self) -> Self:
        if self._transport is not None:
            self._transport.set_protocol(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    async def next(self) -> bytes:
        """What has come that was not taken; empty at the end. Raises aiohttp's errors, and the taker's."""
        content = self._content
        chunk = content.read_nowait()
        while not chunk and not content.is_eof():
            if self._is_lost:
                raise aiohttp.ClientPayloadError("The connection ended before the reply did.")
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
                self._is_between = False
            chunk = content.read_nowait()
        return chunk

    def data_received(self, data: bytes) -> None:
        if self._is_between and is_chunk_of_events(data) and self._taker.take_framed(data):
            return
        self._is_between = False
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        assert self._parser is not None
        self._parser.data_received(data)
        content = self._content
        if content.is_eof():
            self._leave()  # the connection is in the pool again
        waiter = self._waiter
        if waiter is None or waiter.done():
            return  # the relay is busy and will look for itself
        if content.is_eof() or content.exception() is not None or not self._taker.can_take:
            waiter.set_result(None)
            return
        num_bytes = content.total_bytes
        chunk = b""
        try:
            if chunk := content.read_nowait():
                self._taker.take(chunk)
        except Exception as error:
            waiter.set_exception(error)
            return
        if content.total_bytes != num_bytes or content.is_eof():  # reading made room, and aiohttp parsed more
            waiter.set_result(None)
            return
        # Were the last line end not a frame's, it would be the content's.
        self._is_between = data.endswith(_END_OF_EVENTS) and chunk.endswith(b"\n\n")

    def eof_received(self) -> None:
        if self._parser is not None:
            self._parser.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._parser is not None:
            self._parser.connection_lost(exc)
        self._is_lost = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def pause_writing(self) -> None:
        if self._parser is not None:
            self._parser.pause_writing()

    def resume_writing(self) -> None:
        if self._parser is not None:
            self._parser.resume_writing()

    def _leave(self) -> None:
        if self._transport is not None and self._transport.get_protocol() is self:
            assert self._parser is not None
            self._transport.set_protocol(self._parser)


def is_chunk_of_events(data: bytes) -> bool:
    """One HTTP chunk, all of it and nothing else (RFC 9112 7.1), without extensions; an empty line ends its content.

    The size has to be written as `%x` or `%X` would: what others may read otherwise goes to the parser.
    """
    end = data.find(b"\r\n")
    return data.endswith(_END_OF_EVENTS) and data[:end].lower() == b"%x" % (len(data) - end - 4)
