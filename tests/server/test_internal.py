"""What a gateway asks an engine: how busy it is, which adapters it holds, what a call came to that nobody read."""

import json
import socket
import time
import uuid
from urllib.parse import urlsplit

import httpx
import pytest

LONG = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4000, "ignore_eos": True}
CHAT = "/v1/chat/completions"


def load(server, **query: object) -> dict:
    return httpx.get(f"{server.url}/internal/load", params=query).raise_for_status().json()


def usage(server, charge: str) -> httpx.Response:
    return httpx.get(f"{server.url}/internal/usage/{charge}", timeout=10)


def open_call(server, charge: str, body: dict[str, object]) -> socket.socket:
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=20)
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-descant-charge: {charge}\r\ncontent-length: {len(content)}\r\n"
    connection.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + content)
    return connection


def test_an_idle_engine_says_so(server):
    server.wait_until(server.is_idle)
    report = load(server)
    assert report["num_running"] == report["num_waiting"] == report["num_queued_tokens"] == 0
    assert report["max_running"] > 1
    assert 0 <= report["kv_usage"] < 1


def test_a_busy_engine_says_how_busy(server):
    connection = open_call(server, uuid.uuid4().hex, LONG)
    server.wait_until(lambda: load(server)["num_running"] == 1)
    connection.close()
    server.wait_until(lambda: load(server)["num_running"] == 0)


def test_an_adapter_is_named_once_it_is_held_and_only_to_those_who_do_not_know(server):
    httpx.post(f"{server.url}{CHAT}", json=LONG | {"model": "pirate", "max_tokens": 2}, timeout=20).raise_for_status()
    server.wait_until(lambda: load(server)["adapters"].get("pirate") == "gpu")
    report = load(server)
    assert "adapters" not in load(server, known=report["residency"])
    assert load(server, known=report["residency"] - 1)["adapters"] == report["adapters"]


def test_usage_of_a_call_that_was_read_is_what_it_was_told(server):
    charge = uuid.uuid4().hex
    headers = {"x-descant-charge": charge}
    body = {"model": "tiny", "prompt": ["ab", "cde"], "max_tokens": 7, "ignore_eos": True}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=20).json()["usage"]
    assert usage(server, charge).json() == {
        "prompt_tokens": answer["prompt_tokens"],
        "cached_tokens": answer["prompt_tokens_details"]["cached_tokens"],
        "completion_tokens": 14,
    }


@pytest.mark.parametrize("stream", [True, False])
def test_usage_of_a_call_that_was_left_is_what_the_engine_counted(server, stream):
    server.wait_until(server.is_idle)
    counted = server.metric("vllm:generation_tokens_total")
    charge = uuid.uuid4().hex
    connection = open_call(server, charge, LONG | {"stream": stream})
    server.wait_until(lambda: load(server)["num_running"] == 1)
    time.sleep(0.2)
    connection.close()
    told = usage(server, charge).json()
    assert told["prompt_tokens"] > 0
    assert 0 < told["completion_tokens"] < 4000
    assert told["completion_tokens"] >= server.metric("vllm:generation_tokens_total") - counted


def test_a_call_that_runs_is_not_told_yet(server):
    charge = uuid.uuid4().hex
    connection = open_call(server, charge, LONG)
    server.wait_until(lambda: load(server)["num_running"] == 1)
    answer = usage(server, charge)
    connection.close()
    assert answer.status_code in (200, 503)  # a quick machine may have ended it by itself meanwhile
    if answer.status_code == 503:
        assert answer.json()["error"]["code"] == "call_runs"


def test_an_unknown_call_is_404(server):
    answer = usage(server, "nobody")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_charge")
