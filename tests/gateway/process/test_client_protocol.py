"""What a client's socket carries: whole replies in one piece, whatever else is said, and the news that it is gone."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import NoReturn

import pytest
from tests.gateway.gateway_under_test import Running, World
from uvicorn.protocols.http.flow_control import FlowControl

from descant_gateway.call import Call
from descant_gateway.errors import ClientLeft
from descant_gateway.process.client_protocol import CLIENT_LINE, ClientLine, ReplyTransport

CHAT = "/v1/chat/completions"
BODY = b'{"model":"m","messages":[]}'


def request(key: str, method: str = "POST", more: str = "") -> bytes:
    head = (
        f"{method} {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{more}content-length: {len(BODY)}\r\n"
    )
    return head.encode() + b"\r\n" + BODY


async def replies_to(gateway: Running, sent: bytes) -> bytes:
    """All that comes until the gateway closes the connection."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    async with asyncio.timeout(5):
        replies = await reader.read()
    writer.close()
    return replies


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="only Linux counts a connection's segments")
async def test_a_whole_reply_is_written_once(world: World, gateway: Running) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    key = world.add_key()
    with socket.create_connection((host, int(port))) as client:
        client.setblocking(False)
        for num_replies in range(1, 6):
            await loop.sock_sendall(client, request(key))
            reply = await asyncio.wait_for(loop.sock_recv(client, 1 << 16), 5)
            assert reply.startswith(b"HTTP/1.1 200")
            assert reply.endswith(b"}")
            assert num_segments_in(client) == num_replies


def num_segments_in(client: socket.socket) -> int:
    """That held data: `tcpi_data_segs_in` of Linux's `struct tcp_info`."""
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    return int(struct.unpack_from("I", info, 152)[0])


async def test_pipelined_requests_are_answered_in_turn(world: World, gateway: Running) -> None:
    key = world.add_key()
    replies = await replies_to(gateway, 3 * request(key) + request(key, more="connection: close\r\n"))
    assert replies.count(b"HTTP/1.1 200 OK") == 4
    assert replies.count(b'"usage"') == 4
    assert replies.endswith(b"}")


async def test_a_reply_without_a_body_is_sent(world: World, gateway: Running) -> None:
    replies = await replies_to(gateway, request(world.add_key(), "HEAD", "connection: close\r\n"))
    assert replies.startswith(b"HTTP/1.1 405")
    assert replies.endswith(b"\r\n\r\n")


async def test_a_refusal_that_closes_the_connection_comes_whole(gateway: Running) -> None:
    replies = await replies_to(gateway, request("no-key", more="connection: close\r\n"))
    assert replies.startswith(b"HTTP/1.1 401")
    assert replies.endswith(b"}")


async def nothing_more() -> NoReturn:
    raise AssertionError("the line tells of the client, not ASGI")


async def nobody_listens(message: object) -> None:
    raise AssertionError(message)


@pytest.fixture
async def line() -> AsyncIterator[ClientLine]:
    """Of a connection to a server that says nothing."""
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, host, port)
        yield ClientLine(transport, ReplyTransport(transport), FlowControl(transport))
        transport.close()


def call_on(line: ClientLine) -> Call:
    scope = {"type": "http", "path": CHAT, "method": "POST", "headers": [], "client": None}
    return Call({**scope, "extensions": {CLIENT_LINE: line}}, nothing_more, nobody_listens)  # type: ignore[typeddict-item]


async def test_who_left_already_is_not_served(line: ClientLine) -> None:
    line.lost()
    with pytest.raises(ClientLeft):
        async with call_on(line).cancelled_on_disconnect():
            pytest.fail("nobody waits for this")


async def test_who_leaves_later_is_not_served_to_the_end(line: ClientLine) -> None:
    asyncio.get_running_loop().call_later(0.01, line.lost)
    with pytest.raises(ClientLeft):
        async with call_on(line).cancelled_on_disconnect():
            await asyncio.sleep(5)
            pytest.fail("nobody waits for this")


async def test_a_connection_lost_after_its_request_cancels_nothing(line: ClientLine) -> None:
    async with call_on(line).cancelled_on_disconnect():
        await asyncio.sleep(0)
    line.lost()
    await asyncio.sleep(0.01)
