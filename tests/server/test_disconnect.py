"""A client that leaves ends its request at once, streaming or not: raw sockets, and the engine's own numbers."""

import json
import random
import socket
import time
from contextlib import closing
from urllib.parse import urlsplit

import httpx
import pytest

LONG = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4000, "ignore_eos": True}


@pytest.fixture(autouse=True)
def no_block_leaks(server):
    """Every test here leaves as many blocks held as it found."""
    server.wait_until(server.is_idle)
    held = server.held_blocks
    yield
    server.wait_until(lambda: server.is_idle() and server.held_blocks == held, seconds=5)


def open_request(server, path: str, body: dict[str, object]) -> socket.socket:
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=20)
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def ended(server) -> float:
    return server.metric("vllm:request_success_total")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", LONG), ("/v1/completions", LONG | {"prompt": ["a", "b", "c"]})],
)
def test_leaving_ends_the_request(server, path, body, stream):
    body = {key: value for key, value in body.items() if not (key == "messages" and "prompt" in body)}
    num_requests = len(body.get("prompt", [None]))
    aborted = server.metric("vllm:request_success_total", finished_reason="abort")
    generated = server.metric("vllm:generation_tokens_total")
    with closing(open_request(server, path, body | {"stream": stream})) as connection:
        if stream:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        server.wait_until(lambda: server.metric("vllm:num_requests_running") == num_requests)
    left = time.monotonic()
    server.wait_until(
        lambda: server.metric("vllm:request_success_total", finished_reason="abort") == aborted + num_requests
    )
    # The engine's numbers are reported four times a second.
    server.wait_until(server.is_idle, seconds=3)
    assert time.monotonic() - left < 5
    assert server.metric("vllm:generation_tokens_total") - generated < num_requests * 4000


def test_many_clients_that_leave_at_random_moments_leak_nothing(server):
    dice = random.Random(5)
    before = ended(server)
    connections = []
    for index in range(40):
        body = LONG | {"stream": bool(index % 2), "max_tokens": 300}
        connections.append(open_request(server, "/v1/chat/completions", body))
        if dice.random() < 0.7:
            connections.pop(dice.randrange(len(connections))).close()
        time.sleep(dice.random() * 0.02)
    for connection in connections:
        connection.close()
    server.wait_until(server.is_idle)
    # Some left before their request was read or submitted: those never were requests.
    assert before < ended(server) <= before + 40
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=LONG | {"max_tokens": 3}, timeout=20)
    assert answer.json()["usage"]["completion_tokens"] == 3
    assert not [line for line in server.lines if "ERROR" in line or "Traceback" in line]


def test_leaving_in_the_middle_of_the_body_is_nobodys_error(server):
    address = urlsplit(server.url)
    with closing(socket.create_connection((address.hostname, address.port))) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b'content-length: 1000\r\n\r\n{"model":'
        )
        time.sleep(0.1)
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert not [line for line in server.lines if "ERROR" in line or "Traceback" in line]


def test_a_reader_that_stops_reading_gets_everything_later(server):
    with closing(open_request(server, "/v1/chat/completions", LONG | {"stream": True, "max_tokens": 500})) as slow:
        server.wait_until(lambda: server.is_idle() and server.metric("vllm:generation_tokens_total") > 0)
        received = b""
        while b"[DONE]" not in received:
            piece = slow.recv(65536)
            assert piece
            received += piece
    assert b'"finish_reason":"length"' in received
