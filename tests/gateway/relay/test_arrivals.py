"""A reply's body, taken while the event loop reads it: all of it, in order, however the backend sends and ends it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import aiohttp
import pytest

from descant_gateway.relay.arrivals import Arrivals, is_chunk_of_events

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


class Unframed(list[bytes]):
    """Counts what comes in frames, and keeps it without."""

    def __init__(self, out: list[bytes]) -> None:
        super().__init__()
        self.num_framed = 0
        self._out = out

    def append(self, chunk: bytes) -> None:
        self.num_framed += 1
        self._out.append(chunk.partition(b"\r\n")[2].removesuffix(b"\r\n"))


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


def event(number: int) -> bytes:
    return b"data: %d\n\n" % number


async def test_whole_chunks_of_events_are_taken_in_their_frames(backend: Backend) -> None:
    taker = Taker()
    async with aiohttp.ClientSession() as session, reply_of(backend, session) as response:
        with Arrivals(response, taker) as arrivals:
            reading = asyncio.create_task(arrivals.next())
            await asyncio.sleep(0)
            backend.send(chunk(event(1)))
            await until(lambda: taker.taken == [event(1)])
            for number in (2, 3):
                backend.send(chunk(event(number)))
                await until(lambda number=number: len(taker.framed) == number - 1)
            backend.send(chunk(event(4))[:-3])
            await until(lambda: len(taker.taken) == 2)
            backend.send(chunk(event(4))[-3:] + chunk(event(5)))
            await until(lambda: len(taker.taken) == 3)
            backend.send(chunk(event(6)))
            await until(lambda: len(taker.framed) == 3)
            backend.send(END)
            assert await reading == b""
    assert taker.framed == [chunk(event(number)) for number in (2, 3, 6)]
    assert b"".join(taker.taken) == event(1) + event(4) + event(5)


async def test_content_that_looks_like_a_frame_is_content(backend: Backend) -> None:
    """An event's data in a chunk that is not at its end: what follows is read by who counts the chunk's bytes."""
    taker = Taker()
    inside = b"\n\n\r\n" + chunk(event(2))
    async with aiohttp.ClientSession() as session, reply_of(backend, session) as response:
        with Arrivals(response, taker) as arrivals:
            reading = asyncio.create_task(arrivals.next())
            await asyncio.sleep(0)
            backend.send(b"%x\r\n" % len(inside) + inside[:4])
            await until(lambda: len(taker.taken) == 1)
            backend.send(inside[4:])
            await until(lambda: len(taker.taken) == 2)
            backend.send(b"\r\n" + END)
            assert await reading == b""
    assert taker.framed == []
    assert b"".join(taker.taken) == inside


@pytest.mark.parametrize("seed", range(4))
async def test_events_come_whole_and_in_order_however_they_are_cut(backend: Backend, seed: int) -> None:
    """What a taker gets, framed or not, put together again as the client's side would."""
    random = Random(seed)
    events = [event(10 ** random.randrange(30)) for _ in range(60)]
    out: list[bytes] = []
    taker, framed = Taker(), Unframed(out)
    taker.taken, taker.framed = out, framed
    async with aiohttp.ClientSession() as session, reply_of(backend, session) as response:
        with Arrivals(response, taker) as arrivals:
            reading = asyncio.create_task(arrivals.next())
            await asyncio.sleep(0)
            for frame in map(chunk, events):
                cut = random.randrange(len(frame)) if random.random() < 0.2 else 0
                for piece in filter(None, (frame[:cut], frame[cut:])):
                    backend.send(piece)
                    await asyncio.sleep(0.002 if random.random() < 0.8 else 0)
            backend.send(END)
            while last := await reading:
                out.append(last)
                reading = asyncio.create_task(arrivals.next())
    assert b"".join(out) == b"".join(events)
    assert framed.num_framed > 10


@pytest.mark.parametrize(
    "data",
    [
        b"0\r\n\r\n",
        b"0\r\n\n\r\n",
        b"3\r\nx\n\n\r\n" * 2,
        b"03\r\nx\n\n\r\n",
        b"+3\r\nx\n\n\r\n",
        b"0x3\r\nx\n\n\r\n",
        b" 3\r\nx\n\n\r\n",
        b"3;a=b\r\nx\n\n\r\n",
        b"2\r\nx\n\n\r\n",
        b"4\r\nx\n\n\r\n",
        b"-1\r\n\n\r\n",
        b"5\r\nx\n\n\r\n\r\n",
        b"\n\n\r\n",
        b"",
    ],
)
def test_nothing_else_passes_for_a_chunk_of_events(data: bytes) -> None:
    assert not is_chunk_of_events(data)


@pytest.mark.parametrize("size", [2, 15, 16, 255, 256, 4095, 4096, 70_000])
def test_a_chunk_of_any_size_is_one(size: int) -> None:
    content = b"x" * (size - 2) + b"\n\n"
    assert is_chunk_of_events(chunk(content))
    assert is_chunk_of_events(b"%X\r\n%b\r\n" % (size, content))


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
