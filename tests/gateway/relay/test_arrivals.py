"""A reply's body, taken while the event loop reads it: all of it, in order, however the backend sends and ends it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from descant_gateway.relay.arrivals import Arrivals

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


class Taker:
    def __init__(self) -> None:
        self.can_take = True
        self.taken: list[bytes] = []
        self.framed: list[bytes] = []

    def take(self, chunk: bytes) -> None:
        if chunk == b"bad":
            raise ValueError("bad")
        self.taken.append(chunk)

    def take_framed(self, chunk: bytes) -> bool:
        if self.can_take:
            self.framed.append(chunk)
        return self.can_take


class Backend:
    """Sends what a test tells it to, when it tells it to."""

    def __init__(self) -> None:
        self.url = ""
        self.num_connections = 0
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._writer = writer
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(HEAD)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def send(self, data: bytes) -> None:
        assert self._writer is not None
        self._writer.write(data)

    def cut(self) -> None:
        assert self._writer is not None
        self._writer.transport.abort()


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    backend = Backend()
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
    backend.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield backend
    server.close()


@asynccontextmanager
async def reply_of(backend: Backend, session: aiohttp.ClientSession) -> AsyncIterator[aiohttp.ClientResponse]:
    async with asyncio.timeout(10):
        response = await session.get(backend.url)
        try:
            yield response
        finally:
            response.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_a_chunk_is_taken_without_waking_the_reader(backend: Backend) -> None:
    taker = Taker()
    async with aiohttp.ClientSession() as session, reply_of(backend, session) as response:
        with Arrivals(response, taker) as arrivals:
            reading = asyncio.create_task(arrivals.next())
            await asyncio.sleep(0)
            for number in range(1, 4):
                backend.send(chunk(b"%d" % number))
                await until(lambda number=number: len(taker.taken) == number)
            assert not reading.done()
            backend.send(chunk(b"last") + END)
            assert await reading == b"last"
            assert await arrivals.next() == b""
    assert taker.taken == [b"1", b"2", b"3"]


async def test_what_cannot_be_taken_comes_to_the_reader_in_order(backend: Backend) -> None:
    taker = Taker()
    taker.can_take = False
    async with aiohttp.ClientSession() as session, reply_of(backend, session) as response:
        with Arrivals(response, taker) as arrivals:
            reading = asyncio.create_task(arrivals.next())
            await asyncio.sleep(0)
            backend.send(chunk(b"one"))
            assert await reading == b"one"
            backend.send(chunk(b"two") + chunk(b"three"))
            await asyncio.sleep(0.05)  # the reader is busy meanwhile
            assert await arrivals.next() == b"twothree"
    assert taker.taken == []


@pytest.mark.parametrize("size", [1, 3_000_000])
async def test_nothing_is_lost_of_what_comes_faster_than_it_is_read(backend: Backend, size: int) -> None:
    """Whole megabytes at once, and one byte a chunk: aiohttp stops reading, and parsing, at bounds of each."""
    taker, sent = Taker(), (b"x" * size if size > 1 else b"y" * 60_000)
    frames = chunk(sent) if size > 1 else b"".join(chunk(b"y") for _ in sent)
    async with aiohttp.ClientSession() as session, reply_of(backend, session) as response:
        with Arrivals(response, taker) as arrivals:
            reading = asyncio.create_task(arrivals.next())
            await asyncio.sleep(0)
            backend.send(frames + END)
            parts = []
            while part := await reading:
                parts += [*taker.taken, part]
                taker.taken.clear()
                reading = asyncio.create_task(arrivals.next())
                await asyncio.sleep(0)
            parts += taker.taken
    assert b"".join(parts) == sent


async def test_an_error_of_the_taker_is_raised_in_the_reader(backend: Backend) -> None:
    async with aiohttp.ClientSession() as session, reply_of(backend, session) as response:
        with Arrivals(response, Taker()) as arrivals:
            reading = asyncio.create_task(arrivals.next())
            await asyncio.sleep(0)
            backend.send(chunk(b"bad"))
            with pytest.raises(ValueError, match="bad"):
                await reading


@pytest.mark.parametrize("ending", [b"", b"no chunk\r\n"])
async def test_a_reply_that_breaks_is_an_error(backend: Backend, ending: bytes) -> None:
    async with aiohttp.ClientSession() as session, reply_of(backend, session) as response:
        with Arrivals(response, Taker()) as arrivals:
            reading = asyncio.create_task(arrivals.next())
            await asyncio.sleep(0)
            backend.send(chunk(b"one") + ending)
            await asyncio.sleep(0.02)
            backend.cut()
            with pytest.raises((aiohttp.ClientError, OSError)):
                await reading


async def test_the_connection_serves_the_next_request(backend: Backend) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            async with reply_of(backend, session) as response:
                backend.send(chunk(b"one"))
                with Arrivals(response, Taker()) as arrivals:
                    reading = asyncio.create_task(arrivals.next())
                    await asyncio.sleep(0.01)
                    backend.send(END)
                    while await reading:
                        reading = asyncio.create_task(arrivals.next())
    assert backend.num_connections == 1
